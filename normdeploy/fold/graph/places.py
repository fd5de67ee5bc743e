"""What follows from sizes alone: positions, masks, and the arithmetic that makes indices of them."""

from __future__ import annotations

import onnx_ir as ir

from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.basics import is_quantized
from normdeploy.fold.operators.table import states


def made_of_sizes(state: GraphState) -> set[ir.Value]:
    """Return the values that no input has a part in but by its shape: they are the same whatever the network is fed.

    Behind such arithmetic there may be a rounding to a cell or a bucket, which another order of the same products
    decides otherwise: ``i / 49 * 49`` is not ``i`` in float32. A weight that is stored as integers is none of them.
    """
    found: set[ir.Value] = set()
    for node in state.nodes:
        alone = all(value is None or value in found or state.view.is_constant(value) for value in node.inputs)
        has_body = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if (alone and not has_body and not is_quantized(node)) or states(node).shape_only:
            found.update(node.outputs)
    return found
