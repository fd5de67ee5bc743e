"""Static shapes that follow from the inputs of a model, whatever its file says of the values in between.

What a file declares of a value may be from before its inputs were made dynamic: a size read from it would be stored as
a constant, and wrong. So the declared shapes are put aside, in bodies too, and shapes are inferred anew where they are
asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from normdeploy.clean.apart import graphs
from normdeploy.clean.inference import MADE_UP, forget_shapes, inferred, pairs
from normdeploy.clean.scope import Scope, bodies
from normdeploy.graph import is_of_onnx, operator
from normdeploy.onnxfile.maps import has_map

Dims = tuple[int | str | None, ...]
"""Sizes, names of sizes, None for what is not known."""

SMALL = 2**10
"""Bytes up to which a weight is shown to shape inference: what is larger is no shape."""


class Shapes:
    """The shapes of the values of one model's main graph and its bodies.

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
        self._inferred: dict[ir.Graph, dict[str, onnx.TypeProto]] | None = None
        if any(value.shape is None or value.dtype is None for graph in model.graphs() for value in _made(graph)):
            self._add_types()

    def of(self, scope: Scope, value: ir.Value | None) -> Dims | None:
        """Return each size of ``value`` that is certain, its name, or None; None where its rank is not."""
        if value is None:
            return None
        tensor = scope.constant(value)
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        main = self._model.graph
        if value.graph is main and (value.is_graph_input() or self.declared):
            return _dims(value.shape)
        found = self._types().get(value.graph, {}).get(str(value.name)) if isinstance(value.graph, ir.Graph) else None
        return None if found is None else told(found)

    def follow(self) -> dict[ir.Value, Dims]:
        """Return the shapes of what nodes make and bodies are given, as far as they follow from the inputs."""
        return self._found(self._types())

    def suppose(self) -> list[tuple[ir.Value, Dims]]:
        """Return what shapes would be if bodies and operators that ONNX does not know had those that are declared.

        A value comes more than once where it is handed on: the state of a loop is what it begins with, and what the
        body makes of it. Without bodies nothing is supposed.
        """
        nodes = [node for graph in self._model.graphs() for node in graph if any(bodies(node))]
        if not nodes:
            return []
        found = self._found(self._infer(_skeleton(self._model, supposing=True)))
        handed = ((value, source) for node in nodes for body in bodies(node) for value, source in _handed(node, body))
        given = {value: _dims(value.shape) for value in self._model.graph.inputs}
        known = {**{value: shape for value, shape in given.items() if shape is not None}, **found}
        return [*found.items(), *((value, known[source]) for value, source in handed if source in known)]

    def _found(self, known: Mapping[ir.Graph, Mapping[str, onnx.TypeProto]]) -> dict[ir.Value, Dims]:
        found: dict[ir.Value, Dims] = {}
        for graph, types in known.items():
            for value in (*_made(graph), *(() if graph is self._model.graph else graph.inputs)):
                kind = types.get(str(value.name))
                if kind is not None and (shape := told(kind)) is not None:
                    found[value] = tuple(None if is_made_up(size) else size for size in shape)
        return found

    def renew(self) -> None:
        """Forget what was inferred: constants have been found that tell more."""
        self._inferred = None

    def _types(self) -> dict[ir.Graph, dict[str, onnx.TypeProto]]:
        if self._inferred is None:
            self._inferred = self._infer(_skeleton(self._model))
        return self._inferred

    def _infer(self, given: onnx.ModelProto) -> dict[ir.Graph, dict[str, onnx.TypeProto]]:
        found, notes = inferred(given)
        self.notes += [note for note in notes if note not in self.notes]
        known = pairs(self._model.graph, (given if found is None else found).graph)
        return {graph: _types(message) for graph, message in known}

    def _add_types(self) -> None:
        for graph, types in self._types().items():
            _add_types(_made(graph), types)


def _made(graph: ir.Graph) -> list[ir.Value]:
    """Return what the nodes of ``graph`` make."""
    return [output for node in graph for output in node.outputs]


def _types(message: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    infos = (*message.input, *message.value_info, *message.output)
    return {info.name: info.type for info in infos if info.HasField("type")}


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
    return size is None or (size < 0 if isinstance(size, int) else size.startswith(MADE_UP))  # Paddle declares -1


def told(kind: onnx.TypeProto) -> Dims | None:
    """Return the shape of a tensor or of the elements of a sequence; of a map there is none."""
    if not kind.HasField("tensor_type"):
        return None if has_map(kind) else _dims(ir.serde.deserialize_type_proto_for_shape(kind))
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _dims(shape: ir.Shape | None) -> Dims | None:
    return None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _handed(node: ir.Node, body: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value | None]]:
    """Yield each value that is another by what ``node`` does with ``body``, with that one."""
    match operator(node):
        case "If":
            yield from zip(node.outputs, body.outputs, strict=False)
        case "Loop" | "Scan" as kind:
            spare = 2 if kind == "Loop" else 0  # the number of the round, and whether there is another
            scanned = node.attributes.get("num_scan_inputs")
            state = body.inputs[spare : len(body.inputs) - (0 if scanned is None else scanned.as_int())]
            made = body.outputs[spare // 2 :][: len(state)]
            yield from zip(state, node.inputs[spare:], strict=False)
            yield from zip(state, made, strict=False)
            yield from zip(node.outputs, made, strict=False)


def _skeleton(model: ir.Model, *, supposing: bool = False) -> onnx.ModelProto:
    """Return the model with the types of what comes in alone; large weights are inputs, outputs have no shape.

    Supposing, what bodies are given and operators make that ONNX does not know has the shape that is declared.
    """
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    proto.opset_import.extend(onnx.helper.make_opsetid(*item) for item in model.opset_imports.items())
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph = proto.graph
    graph.name = "shapes"
    # Below IR version 4 every initializer is an input.
    held = [v for v in model.graph.initializers.values() if model.ir_version < 4 or not v.is_graph_input()]
    stored = {value: tensor for value in held if (tensor := value.const_value) is not None}
    graph.input.extend(ir.serde.serialize_value(value) for value in model.graph.inputs if value not in stored)
    for value, tensor in stored.items():  # what is declared of it may be wrong
        dims = list(tensor.shape.numpy())
        graph.input.append(onnx.helper.make_tensor_value_info(str(value.name), tensor.dtype.value, dims))
        if tensor.nbytes <= SMALL:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
    for node in model.graph:
        graph.node.append(ir.serde.serialize_node(node))
        graph.value_info.extend(() if is_of_onnx(node) else _told_types(node, supposing))
    for body in graphs(graph):
        if body is not graph:
            _forget_declared(body, supposing)
    return proto


def _forget_declared(body: onnx.GraphProto, supposing: bool) -> None:
    """Take back what ``body`` declares of shapes; of a weight it is that of its numbers.

    Declared without a shape, a weight is none to inference, and a Slice by it has no axes and no steps.
    """
    weights = {tensor.name for tensor in body.initializer}
    others = [info for info in body.value_info if info.name not in weights]
    del body.value_info[:]
    body.value_info.extend(others)
    kept = {name for node in body.node if supposing and "::" in operator(node) for name in node.output}
    made = [info for info in (*body.value_info, *body.output) if info.name not in kept]
    forget_shapes((*(() if supposing else body.input), *made))


def _told_types(node: ir.Node, supposing: bool) -> list[onnx.ValueInfoProto]:
    """Return the types that the model tells of what an operator makes that ONNX does not know, with shapes if asked."""
    tensors = [value for value in node.outputs if isinstance(value.type, ir.TensorType)]
    if supposing:
        return [ir.serde.serialize_value(value) for value in tensors]
    return [onnx.helper.make_tensor_value_info(str(v.name), v.type.dtype.value, None) for v in tensors if v.type]
