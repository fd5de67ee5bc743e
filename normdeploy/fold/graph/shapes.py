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
    else:
        value.shape = filled(value.shape, shape, names=not value.is_graph_output())


def filled(declared: ir.Shape, found: ir.Shape | None, *, names: bool) -> ir.Shape:
    """Return the ``declared`` shape, with what is found for its unknown dimensions; ``names`` only where asked."""
    if found is None or len(found) != len(declared):
        return declared
    sizes: ir.Shape = declared.copy(frozen=False)
    for axis, (told, size) in enumerate(zip(declared, found, strict=True)):
        is_open = told < 0 if isinstance(told, int) else told.value is None  # Paddle declares -1
        if is_open and (isinstance(size, int) or names):
            sizes[axis] = size
    return sizes
