"""nn.Module → onnx_ir.Model that keeps on every node the name of the module it came from.

torch.export traces the module at sizes that no code can mistake for a constant, torch.onnx translates the trace
operator by operator without its optimizer, and ``clean`` evaluates what is constant. Norms leave as they came.

Loaded when first used: who runs a module as it is needs neither torch.onnx nor onnx_ir.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.export.call import arguments as arguments
    from normdeploy.export.call import bind_inputs as bind_inputs
    from normdeploy.export.dtypes import in_float32 as in_float32
    from normdeploy.export.values import example_inputs as example_inputs
    from normdeploy.export.values import flatten_outputs as flatten_outputs
    from normdeploy.export.whole import BFLOAT16_OPSET as BFLOAT16_OPSET
    from normdeploy.export.whole import OPSETS as OPSETS
    from normdeploy.export.whole import Exported as Exported
    from normdeploy.export.whole import to_graph as to_graph

_HOME = {
    "BFLOAT16_OPSET": "whole",
    "Exported": "whole",
    "OPSETS": "whole",
    "arguments": "call",
    "bind_inputs": "call",
    "example_inputs": "values",
    "flatten_outputs": "values",
    "in_float32": "dtypes",
    "to_graph": "whole",
}
__all__ = [
    "BFLOAT16_OPSET",
    "OPSETS",
    "Exported",
    "arguments",
    "bind_inputs",
    "example_inputs",
    "flatten_outputs",
    "in_float32",
    "to_graph",
]

__getattr__ = loaded_from(__name__, _HOME)
