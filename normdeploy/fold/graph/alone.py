"""One node by itself: whether it can be evaluated, and the model that does."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from normdeploy.fold.operators import basics
from normdeploy.graph import is_of_onnx, operator


def is_evaluated(node: ir.Node) -> bool:
    """Return True if ``node`` computes the same of the same inputs, and nothing but that."""
    drawn = operator(node) in basics.NOT_CONSTANT or any(_holds_graph(attr) for attr in node.attributes.values())
    return is_of_onnx(node) and not drawn


def alone(node: ir.Node, opset: int) -> onnx.ModelProto:
    """Return a model of ``node`` at ``opset`` and nothing else."""
    make, proto = onnx.helper, ir.to_proto(node)
    inputs = [make.make_empty_tensor_value_info(name) for name in dict.fromkeys(proto.input) if name]
    outputs = [make.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = make.make_graph([proto], "one", inputs, outputs)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", opset)])


def _holds_graph(attr: ir.Attr) -> bool:
    return attr.is_ref() or attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
