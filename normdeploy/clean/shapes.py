"""Static shapes that follow from the inputs of a model, whatever its file says of the values in between.

What a file declares of a value may be from before its inputs were made dynamic: a size read from it would be stored as
a constant, and wrong. So the declared shapes are put aside, and shapes are inferred anew where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from normdeploy.clean.scope import Scope
from normdeploy.limits import more_memory
from normdeploy.onnxfile.maps import has_map

_MEMORY = 2**30
"""Bytes that shape inference may take."""

Dims = tuple[int | str | None, ...]
"""Sizes, names of sizes, None for what is not known."""

_SMALL = 2**10
"""Bytes up to which a weight is shown to shape inference: what is larger is no shape."""


class Shapes:
    """The shapes of the values of one model's main graph.

    Where the model does not tell the type of a value, it is added to it; nothing that is declared is changed.

    Args:
        declared: True where all that is declared is right.
    """

    def __init__(self, model: ir.Model, *, declared: bool = False) -> None:
        self._model = model
        self.declared = declared
        self._inferred: dict[str, onnx.TypeProto] | None = None
        values = [output for node in model.graph for output in node.outputs]
        if any(value.shape is None or value.dtype is None for value in values):
            _add_types(values, self._types())

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
            self._inferred = _infer(self._model)
        return self._inferred


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
    return size is None or str(size).startswith("unk__")


def _dims(shape: ir.Shape | None) -> Dims | None:
    return None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _infer(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """Return the type of every value of the main graph that follows from its inputs."""
    given = _skeleton(model)
    for follows_values in (True, False):  # which takes 150 bytes for each element of a vector
        try:
            with more_memory(_MEMORY):
                found = onnx.shape_inference.infer_shapes(given, data_prop=follows_values)
        except Exception:  # it fails on models that can still be cleaned in part
            continue
        return {info.name: info.type for info in found.graph.value_info}
    return {}


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
        if tensor is not None and tensor.nbytes <= _SMALL and not value.is_graph_input():
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
    for node in model.graph:
        graph.node.append(ir.serde.serialize_node(node))
    return proto
