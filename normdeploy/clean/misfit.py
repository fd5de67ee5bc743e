"""Nodes that cannot take the shapes that are believed of their inputs, or make others of them than are believed.

No inference confirms what is declared behind an operator that only its runtime knows. But what reads it has a kernel of
so many axes, or an axis to join along, and so each node is inferred by itself: another one's failure hides nothing.
Inference holds no data against the sizes of a kernel or of a norm's scale, and so they are held against them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from normdeploy.clean.constants import Budget, evaluate_constants
from normdeploy.clean.inference import certain
from normdeploy.clean.scope import Scope, bodies, scopes
from normdeploy.clean.shapes import SMALL, Dims, Shapes, is_made_up, told
from normdeploy.clean.sizes import Sizes
from normdeploy.graph import is_of_onnx, label, operator

Believed = Mapping[ir.Value, Dims | None]

_AS_LONG = {
    "Conv": (1, 1, 1),
    "ConvInteger": (1, 1, 1),
    "QLinearConv": (3, 1, 1),
    "DeformConv": (1, 1, 1),
    "ConvTranspose": (1, 0, 1),
    "BatchNormalization": (1, 0, 1),
    "InstanceNormalization": (1, 0, 1),
    "RNN": (1, 2, 2),
    "GRU": (1, 2, 2),
    "LSTM": (1, 2, 2),
}
"""Which input is a parameter, which axis of it is as long as which one of the data: of each group of a convolution."""
_BROADCAST = {"PRelu": (1,), "LayerNormalization": (1, 2), "RMSNormalization": (1,)}
"""Which inputs are broadcast to the data, and never the data to them."""


def misfits(model: ir.Model, believed: Believed, follows: Believed) -> Iterator[str]:
    """Yield what contradicts ``believed``, as words.

    Args:
        model: without what it declares in functions.
        believed: shapes by value.
        follows: as much of them as follows from the inputs of the model: what fails with them alone says nothing.
    """
    believed = dict(believed)
    for scope in scopes(model):
        for node in scope.graph if scope.function is None else ():
            around = [value for value in (*node.inputs, *node.outputs) if value is not None]
            if not is_of_onnx(node) or any(bodies(node)) or all(believed.get(v) == follows.get(v) for v in around):
                continue
            made = _made(scope, node, believed)
            fails = made is None and _made(scope, node, follows) is not None
            if fails or (not _fits(node, believed) and _fits(node, follows)):
                yield f"{label(node)} cannot take the sizes that are declared of what it reads"
            for value, shape in (made or {}).items():
                if _differ(before := believed.get(value), shape):
                    yield f"{value.name} is declared otherwise than {label(node)} makes it of the sizes in front"
                elif before is None or None in before:
                    believed[value] = tuple(b if a is None else a for a, b in zip(before or shape, shape, strict=True))


def impossible(model: ir.Model) -> Iterator[tuple[ir.Node, list[Dims | None]]]:
    """Yield each node that cannot take what it reads, with the shapes of that, as constants and inputs tell them.

    The constants of ``model`` are evaluated in place, and nothing else is done: it is sorted, and of no other use then.
    """
    shapes, budget = Shapes(model), Budget()
    known = list(scopes(model))
    while sum(evaluate_constants(scope, shapes, Sizes(scope, shapes), budget).total() for scope in known):
        shapes.renew()
    for scope in known:
        for node in scope.graph if scope.function is None else ():
            if is_of_onnx(node) and not any(bodies(node)):
                read = {value: shapes.of(scope, value) for value in node.inputs if value is not None}
                if _made(scope, node, read) is None and _made(scope, node, {}) is not None:
                    yield node, list(read.values())


def _differ(one: Dims | None, other: Dims) -> bool:
    if one is None:
        return False
    pairs = zip(one, other, strict=False)
    return len(one) != len(other) or any(isinstance(a, int) and isinstance(b, int) and 0 <= a != b for a, b in pairs)


def _fits(node: ir.Node, shapes: Believed) -> bool:
    """Return whether the data of ``node`` has the sizes that its parameters ask for, as far as both are known."""
    data, *others = [None if value is None else shapes.get(value) for value in node.inputs] or [None]
    parameters = {index: shape for index, shape in enumerate(others, 1) if shape is not None}
    asked: list[tuple[int, int | str | None]] = []
    for index in _BROADCAST.get(operator(node), ()):
        shape = parameters.get(index, ())
        asked += [(axis - len(shape), size) for axis, size in enumerate(shape) if size != 1]
    index, axis, along = _AS_LONG.get(operator(node), (0, 0, 0))
    if isinstance(size := dict(enumerate(parameters.get(index, ()))).get(axis), int):
        asked.append((along, size * node.attributes.get_int("group", 1)))
    return data is None or all(-len(data) <= at < len(data) and not _differ((data[at],), (size,)) for at, size in asked)


def _made(scope: Scope, node: ir.Node, shapes: Believed) -> dict[ir.Value, Dims] | None:
    """Return the shapes of what ``node`` makes of inputs of ``shapes``; None where inference fails."""
    read = {str(value.name): value for value in node.inputs if value is not None}
    made = {str(value.name): value for value in node.outputs if value.name}
    held = {name: tensor for name, value in read.items() if (tensor := scope.constant(value)) is not None}
    graph = onnx.GraphProto(name="one", node=[ir.serde.serialize_node(node)])
    graph.input.extend(_declared(value, shapes.get(value)) for value in read.values())
    graph.output.extend(_declared(value, None) for value in made.values())
    for name, tensor in held.items():
        if tensor.nbytes <= SMALL:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = name
    proto = onnx.ModelProto(ir_version=max(scope.ir_version, 4), graph=graph)
    proto.opset_import.append(onnx.helper.make_opsetid(node.domain, scope.opset))
    try:
        found = certain(proto, check_type=False, data_prop=True, strict_mode=True)
    except Exception:  # it raises its own, and what its C++ has
        return None
    kinds = {made[info.name]: info.type for info in found.graph.output}
    return {value: shape for value, kind in kinds.items() if (shape := told(kind)) is not None}


def _declared(value: ir.Value, shape: Dims | None) -> onnx.ValueInfoProto:
    sizes = None if shape is None else ir.Shape([None if is_made_up(size) else size for size in shape])
    return ir.serde.serialize_value(ir.Value(name=value.name, type=value.type, shape=sizes))
