"""What plugins compute, as functions of ONNX's own operators: what onnx.reference runs a graph of them by."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

from normdeploy.engine.plugin import DOMAIN
from normdeploy.graph import operator


def with_definitions(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` in which each plugin is a function of ONNX's own operators."""
    copy = model.clone()
    prefix = f"{DOMAIN}::"
    called = {operator(node) for node in copy.graph.all_nodes()}
    for name in sorted(name.removeprefix(prefix) for name in called if name.startswith(prefix)):
        function = ir.serde.deserialize_function(_definition(name))
        copy.functions[function.identifier()] = function
    return copy


def _definition(name: str) -> onnx.FunctionProto:
    """Return what a plugin computes, as an ONNX function."""
    norm = "LayerNormalization <axis: int = @axis, epsilon: float = @epsilon>"
    bodies = {
        "LayerNorm": f"LayerNorm <axis, epsilon> (x, gamma, beta) => (y) {{ y = {norm} (x, gamma, beta) }}",
        "RMSNorm": "RMSNorm <axis, epsilon> (x, gamma) => (y)"
        " { y = RMSNormalization <axis: int = @axis, epsilon: float = @epsilon> (x, gamma) }",
        "AddLayerNorm": "AddLayerNorm <axis, epsilon> (x, residual, gamma, beta) => (y, sum)"
        f" {{ sum = Add (x, residual) y = {norm} (sum, gamma, beta) }}",
        "LayerNormQuantize": "LayerNormQuantize <axis, epsilon, to> (x, gamma, beta, scale) => (y)"
        f" {{ n = {norm} (x, gamma, beta) y = QuantizeLinear <output_dtype: int = @to> (n, scale) }}",
    }
    return onnx.parser.parse_function(f'<opset_import: ["" : 23], domain: "{DOMAIN}"> {bodies[name]}')
