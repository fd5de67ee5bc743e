"""Types and shapes that a model does not declare, as far as ONNX infers them: what is declared stays declared."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from normdeploy.clean.inference import inferred, pairs
from normdeploy.fold.graph.light import light


def infer(model: ir.Model) -> list[str]:
    """Add the types and shapes that ``model`` does not declare, in place; return notes where that failed."""
    missing = (
        out
        for graph in (model.graph, *model.graph.subgraphs(), *model.functions.values())
        for node in graph
        for out in node.outputs
    )
    if all(value.type is not None and value.shape is not None for value in missing):
        return []
    found, notes = inferred(light(model))
    if found is not None:
        for graph, message in pairs(model.graph, found.graph):
            _add(graph, message)
    return notes


def _add(graph: ir.Graph, message: onnx.GraphProto) -> None:
    infos = {info.name: info for info in (*message.input, *message.value_info, *message.output)}
    for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
        info = infos.get(str(value.name))
        if info is not None and info.HasField("type"):
            _complete(value, info.type)


def _complete(value: ir.Value, told: onnx.TypeProto) -> None:
    try:
        kind = ir.serde.deserialize_type_proto_for_type(told)
    except Exception:  # it knows no maps
        return
    if value.type is None:
        value.type = kind
    elif kind is not None and value.type != kind:
        return  # what is declared is another type: then its shape is of another value
    shape = ir.serde.deserialize_type_proto_for_shape(told)
    if shape is None:
        return
    if value.shape is None:
        value.shape = shape
    elif len(value.shape) == len(shape):
        value.shape = _filled(value, shape)


def _filled(value: ir.Value, shape: ir.Shape) -> ir.Shape:
    """Return the declared shape of ``value``, with what is found for its unknown dimensions; of an output no made-up
    names.
    """
    assert value.shape is not None
    filled: ir.Shape = value.shape.copy(frozen=False)
    for axis, (declared, found) in enumerate(zip(value.shape, shape, strict=True)):
        is_open = declared < 0 if isinstance(declared, int) else declared.value is None  # Paddle declares -1
        if is_open and (isinstance(found, int) or not value.is_graph_output()):
            filled[axis] = found
    return filled
