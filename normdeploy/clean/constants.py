"""Constant subgraphs: what depends on no input is evaluated once and stored.

A constant may have ``GROWTH`` bytes more than what it takes the place of, all of them together ``TOTAL`` bytes, and
nothing larger than ``LARGEST`` is copied: a mask is worth storing, the broadcast of a table is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normdeploy.clean.evaluate import KNOWN, Arrays, NotEvaluated, cast, evaluate, size
from normdeploy.clean.scope import Scope, bodies
from normdeploy.clean.shapes import Dims, Shapes
from normdeploy.clean.sizes import Sizes

GROWTH = 2**22
"""Bytes by which one evaluated constant may be larger than what it replaces: a 1024 x 1024 mask in float32."""

TOTAL = 2**28
"""Bytes that all evaluated constants may have."""

LARGEST = 2**28
"""Bytes above which a weight is not copied."""

_SHARED = 32
"""Elements above which a parameter that others read too is not stored a second time, in another form."""

_SHAPE_READERS = ("Shape", "Size")


@dataclass
class Budget:
    """What evaluated constants may still take, and which they are.

    Attributes:
        left: bytes.
        made: the constants, each with the initializers of the given model that it is made of.
    """

    left: int = TOTAL
    made: dict[ir.Value, frozenset[ir.Value]] = field(default_factory=dict)

    def origins(self, node: ir.Node) -> frozenset[ir.Value]:
        """Return the initializers of the given model that ``node`` computes from."""
        found = (self.made.get(value, frozenset({value})) for value in node.inputs if value and value.is_initializer())
        return frozenset().union(*found)


def evaluate_constants(scope: Scope, shapes: Shapes, sizes: Sizes, budget: Budget) -> Counter[str]:
    """Replace every node of ``scope`` that always makes the same by what it makes; return how many, by operator."""
    done: Counter[str] = Counter()
    deciding = _deciding(scope)
    for node in list(scope.graph):
        operator = scope.operator(node)
        if node in deciding or not _may_be_evaluated(node, operator):
            continue
        array = sizes.enter(node)
        if array is None:
            try:
                array = _evaluated(scope, node, operator, shapes, budget)
            except NotEvaluated:
                continue
        budget.left -= array.nbytes
        origins = budget.origins(node)
        budget.made[_replaced(scope, node, array)] = origins
        done[operator] += 1
    return done


def _deciding(scope: Scope) -> set[ir.Node]:
    """Return the nodes of ``scope`` of which nothing but the conditions of Ifs is made.

    Once a condition is a constant, ONNX Runtime takes the branch in place of the If, and its constants for those of the
    graph: it then refuses what it runs in the branch, such as a Range from a vector of one number.
    """
    found: set[ir.Node] = set()
    made = [node.inputs[0] for node in _with_bodies(scope.graph) if scope.operator(node) == "If"]
    while made:
        value = made.pop()
        node = None if value is None else value.producer()
        if node is None or node.graph is not scope.graph:
            continue
        uses = [use for output in node.outputs for use in output.uses()]
        if all(use.node in found or (use.idx == 0 and scope.operator(use.node) == "If") for use in uses):
            found.add(node)
            made += node.inputs
    return found


def _with_bodies(graph: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes of ``graph`` that have bodies, and those in these."""
    for node in graph:
        inner = list(bodies(node))
        yield from [node] if inner else ()
        for body in inner:
            yield from _with_bodies(body)


def _may_be_evaluated(node: ir.Node, operator: str) -> bool:
    if operator not in KNOWN and operator not in _SHAPE_READERS:
        return False
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():  # an output of a graph is made by a node
        return False
    return bool(node.inputs) and not any(attribute.is_ref() for attribute in node.attributes.values())


def _evaluated(scope: Scope, node: ir.Node, operator: str, shapes: Shapes, budget: Budget) -> np.ndarray:
    first = node.inputs[0]
    if operator == "Size":
        return _size(shapes.of(scope, first))
    if operator == "CastLike":
        return _cast_like(scope, node)
    if scope.constant(first) is None:  # most nodes: none of their inputs is looked at twice
        raise NotEvaluated(operator)
    tensors = [scope.constant(value) for value in node.inputs]
    if any(tensor is None and value is not None for tensor, value in zip(tensors, node.inputs, strict=True)):
        raise NotEvaluated(operator)
    if any(tensor is not None and tensor.nbytes > LARGEST for tensor in tensors):
        raise NotEvaluated(operator)
    arrays = [None if tensor is None else tensor.numpy() for tensor in tensors]
    _require_room(node, operator, arrays, budget)
    return evaluate(operator, scope.opset, arrays, node.attributes)


def _size(shape: Dims | None) -> np.ndarray:
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        raise NotEvaluated("Size")
    return np.array(math.prod(dim for dim in shape if isinstance(dim, int)), np.int64)


def _cast_like(scope: Scope, node: ir.Node) -> np.ndarray:
    """Return the constant in the dtype of the other input, whatever that holds."""
    tensor, like = scope.constant(node.inputs[0]), node.inputs[1]
    dtype = None if like is None else (like.dtype or _dtype(scope.constant(like)))
    if tensor is None or dtype is None or tensor.nbytes > LARGEST:
        raise NotEvaluated("CastLike")
    return cast(tensor.numpy(), dtype)


def _dtype(tensor: ir.TensorProtocol | None) -> ir.DataType | None:
    return None if tensor is None else tensor.dtype


def _require_room(node: ir.Node, operator: str, arrays: Arrays, budget: Budget) -> None:
    """Refuse what would make the model much larger, or store a parameter twice."""
    try:
        made = size(operator, arrays, node.attributes)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise NotEvaluated(operator) from error
    replaced = 0
    for value, array in dict(
        zip(node.inputs, arrays, strict=True)
    ).items():  # one that is given often is looked at once
        if value is None or array is None:
            continue
        if len(value.uses()) == 1:
            replaced += array.nbytes
        elif array.size > _SHARED and value not in budget.made:
            raise NotEvaluated(operator)
    nbytes = made * max(_itemsize(node), *(array.itemsize for array in arrays if array is not None))
    if nbytes - replaced > GROWTH or nbytes > budget.left:
        raise NotEvaluated(operator)


def _itemsize(node: ir.Node) -> int:
    """Return the bytes of an element of a Cast's result; 1 for what is no larger than the inputs'."""
    to = node.attributes.get("to")
    return 1 if to is None else math.ceil(ir.DataType(to.as_int()).itemsize)


def _replaced(scope: Scope, node: ir.Node, array: np.ndarray) -> ir.Value:
    """Let the main graph hold the constant as an initializer, any other graph as a Constant."""
    old, tensor = node.outputs[0], ir.Tensor(array, name=node.outputs[0].name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    if scope.is_main and scope.ir_version >= 4 and isinstance(scope.graph, ir.Graph):
        new = ir.Value(name=old.name, shape=shape, type=kind, const_value=tensor)
        old.replace_all_uses_with(new)
        scope.graph.remove(node, safe=True)
        scope.graph.register_initializer(new)
        return new
    attributes = [ir.AttrTensor("value", tensor)]
    made = ir.Node("", "Constant", [], attributes, name=node.name, metadata_props=dict(node.metadata_props))
    new = made.outputs[0]
    new.name, new.shape, new.type = old.name, shape, kind
    scope.graph.insert_before(node, made)
    old.replace_all_uses_with(new)
    scope.graph.remove(node, safe=True)
    return new


def keep_parameter_names(graph: ir.Graph, budget: Budget) -> None:
    """Let a constant that was made of one initializer, which is gone, take over its name."""
    for value, origins in budget.made.items():
        if len(origins) != 1 or value.graph is not graph or not value.is_initializer():
            continue
        (origin,) = origins
        if str(origin.name) not in graph.initializers and not origin.uses():
            value.name = origin.name
