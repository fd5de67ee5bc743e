"""One node by itself: whether it can be evaluated, and the model that does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from normdeploy.clean.evaluate import KNOWN, NotEvaluated, evaluate, require_moderate, rounded_once
from normdeploy.fold.operators import basics
from normdeploy.graph import operator


def is_evaluated(node: ir.Node) -> bool:
    """Return True if it is known what ``node`` makes of constants, in every runtime."""
    is_known = operator(node) in KNOWN or operator(node) in basics.EVALUATED
    return is_known and not any(_holds_graph(attr) for attr in node.attributes.values())


def alone(node: ir.Node, opset: int) -> onnx.ModelProto:
    """Return a model of ``node`` at ``opset`` and nothing else."""
    make, proto = onnx.helper, ir.to_proto(node)
    inputs = [make.make_empty_tensor_value_info(name) for name in dict.fromkeys(proto.input) if name]
    outputs = [make.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = make.make_graph([proto], "one", inputs, outputs)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", opset)])


def computed(model: onnx.ModelProto, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return ``output`` of the one node of ``model``, which :func:`is_evaluated`.

    Raises:
        Exception: of any kind, where the node does not allow what it is given, or runtimes differ about it.
    """
    (node,) = model.graph.node
    kind, opset = operator(node), model.opset_import[0].version
    attributes = {attribute.name: ir.serde.deserialize_attribute(attribute) for attribute in node.attribute}
    if kind == basics.SHAPE:  # the reference has another end where it is counted from far before the first
        start, end = (attributes[name].as_int() if name in attributes else None for name in ("start", "end"))
        return np.array(feeds[node.input[0]].shape, np.int64)[start:end]
    if kind in KNOWN:
        return evaluate(kind, opset, [feeds[name] if name else None for name in node.input], attributes)
    if kind not in basics.ROUNDED:
        return _by_reference(model, output, feeds)
    if output != node.output[0]:  # statistics have a type of their own
        raise NotEvaluated(kind)
    if basics.trains_unsaid(kind, opset):
        if len(node.output) > 1:
            raise NotEvaluated(kind)
        model.opset_import[0].version = basics.TRAINING_IS_SAID  # with one output it does not, which the reference does
    names = [name for name in dict.fromkeys(node.input) if name]
    require_moderate([feeds[name] for name in names])
    return rounded_once(
        [feeds[name] for name in names],
        lambda precise: _by_reference(model, output, dict(zip(names, precise, strict=True))),
    )


def _by_reference(model: onnx.ModelProto, output: str, feeds: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(next(iter(ReferenceEvaluator(model).run([output], dict(feeds)))))


def _holds_graph(attr: ir.Attr) -> bool:
    return attr.is_ref() or attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
