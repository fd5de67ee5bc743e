"""Static shapes that follow from the inputs of a model, whatever its file says of the values in between.

What a file declares of a value may be from before its inputs were made dynamic: a size read from it would be stored as
a constant, and wrong. So the declared shapes are put aside, and shapes are inferred anew where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from normdeploy.clean.inference import MADE_UP, inferred, pairs
from normdeploy.clean.scope import Scope
from normdeploy.graph import is_of_onnx
from normdeploy.onnxfile.maps import has_map

Dims = tuple[int | str | None, ...]
"""Sizes, names of sizes, None for what is not known."""

_SMALL = 2**10
"""Bytes up to which a weight is shown to shape inference: what is larger is no shape."""


class Shapes:
    """The shapes of the values of one model's main graph.

    Where the model does not tell the type of a value, in a body too, it is added to it; nothing declared is changed.

    Args:
        declared: True where all that is declared is right.

    Attributes:
        notes: where inference failed.
    """

    def __init__(self, model: ir.Model, *, declared: bool = False) -> None:
        self._model = model
        self.declared = declared
        self.notes: list[str] = []
        self._inferred: dict[str, onnx.TypeProto] | None = None
        if any(value.shape is None or value.dtype is None for graph in model.graphs() for value in _made(graph)):
            self._add_types()

    def of(self, scope: Scope, value: ir.Value | None) -> Dims | None:
        """Return each size of ``value`` that is certain, its name, or None; None where its rank is not."""
        if value is None:
            return None
        tensor = scope.constant(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        if value.graph is not self._model.graph:
            return None
        if value.is_graph_input() or self.declared:
            return _dims(value.shape)
        found = self._types().get(str(value.name))
        return None if found is None else _dims(ir.serde.deserialize_type_proto_for_shape(found))

    def renew(self) -> None:
        """Forget what was inferred: constants have been found that tell more."""
        self._inferred = None

    def _types(self) -> dict[str, onnx.TypeProto]:
        if self._inferred is None:
            self._inferred = _types(self._infer().graph)
        return self._inferred

    def _add_types(self) -> None:
        found = self._infer().graph
        self._inferred = _types(found)
        for graph, message in pairs(self._model.graph, found):
            _add_types(_made(graph), _types(message))

    def _infer(self) -> onnx.ModelProto:
        given = _skeleton(self._model)
        found, notes = inferred(given)
        self.notes += [note for note in notes if note not in self.notes]
        return given if found is None else found


def _made(graph: ir.Graph) -> list[ir.Value]:
    """Return what the nodes of ``graph`` make."""
    return [output for node in graph for output in node.outputs]


def _types(message: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    return {info.name: info.type for info in (*message.value_info, *message.output) if info.HasField("type")}


def _add_types(values: Sequence[ir.Value], types: Mapping[str, onnx.TypeProto]) -> None:
    for value in values:
        found = types.get(str(value.name))
        if found is None or has_map(found):
            continue
        if value.type is None:
            value.type = ir.serde.deserialize_type_proto_for_type(found)
        if value.shape is None:
            value.shape = _named(ir.serde.deserialize_type_proto_for_shape(found))


def _named(shape: ir.Shape | None) -> ir.Shape | None:
    """Return ``shape`` without the names that inference made up: another run gives them to other sizes."""
    if shape is None:
        return None
    return ir.Shape([None if isinstance(dim, ir.SymbolicDim) and is_made_up(dim.value) else dim for dim in shape])


def is_made_up(size: int | str | None) -> bool:
    """Return True for no size at all, and for a name that inference made up for one."""
    return size is None or str(size).startswith(MADE_UP)


def _dims(shape: ir.Shape | None) -> Dims | None:
    return None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model with the types of what comes in alone; large weights are inputs, outputs have no shape."""
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    proto.opset_import.extend(onnx.helper.make_opsetid(*item) for item in model.opset_imports.items())
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph, initializers = proto.graph, model.graph.initializers.values()
    graph.name = "shapes"
    for value in {*model.graph.inputs, *initializers}:
        graph.input.append(ir.serde.serialize_value(value))
    for value in initializers:
        tensor = value.const_value
        is_constant = not value.is_graph_input() or model.ir_version < 4  # before that every initializer is an input
        if tensor is not None and tensor.nbytes <= _SMALL and is_constant:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
    for node in model.graph:
        graph.node.append(ir.serde.serialize_node(node))
        graph.value_info.extend(() if is_of_onnx(node) else _told_types(node))
    return proto


def _told_types(node: ir.Node) -> list[onnx.ValueInfoProto]:
    """Return the types that the model tells of what an operator makes that ONNX does not know, without shapes."""
    tensors = [value for value in node.outputs if isinstance(value.type, ir.TensorType)]
    return [onnx.helper.make_tensor_value_info(str(v.name), v.type.dtype.value, None) for v in tensors if v.type]
