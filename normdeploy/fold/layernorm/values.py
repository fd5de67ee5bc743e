"""Looking at values through the ways in which exporters write the same thing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from normdeploy.fold.graph.reader import Dim, View
from normdeploy.graph import operator

_PURE = frozenset(
    {
        "Sub", "Add", "Neg", "Mul", "Div", "ReduceMean", "ReduceSum", "GlobalAveragePool", "Reshape", "Unsqueeze",
        "Squeeze",
    }
)  # fmt: skip
_DEPTH = 8
"""How many operators deep two values are compared: more than any spelling of a norm has."""


def made_by(value: ir.Value, *kinds: str) -> ir.Node | None:
    """Return the node of the default domain that makes ``value``, where it is one of ``kinds`` and has its data
    inputs.
    """
    node = value.producer()
    if node is None or operator(node) not in kinds:
        return None
    return node if node.inputs and all(item is not None for item in node.inputs[:2]) else None


def first(node: ir.Node) -> ir.Value:
    """Return the first input of a node that :func:`made_by` gave."""
    return _present(node, 0)


def second(node: ir.Node) -> ir.Value:
    """Return the second input of a node that :func:`made_by` gave."""
    return _present(node, 1)


def _present(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, "made_by() gives no node without its data"
    return value


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that alone reads ``value``, once."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def bare(view: View, value: ir.Value) -> ir.Value:
    """Return ``value`` before casts between float types."""
    while (node := made_by(value, "Cast", "Identity")) is not None and view.is_float(first(node)):
        value = first(node)
    return value


def exact(view: View, value: ir.Value) -> ir.Value:
    """Return ``value`` before casts to float types that hold all of its numbers."""
    while (node := made_by(value, "Cast", "Identity")) is not None and view.is_float(first(node)):
        if not _holds(value.dtype, first(node).dtype):
            break
        value = first(node)
    return value


def _holds(wide: ir.DataType | None, narrow: ir.DataType | None) -> bool:
    """Return True if the one type holds every number of the other."""
    return wide is narrow or (wide, narrow) in _WIDER


_WIDER = {
    (ir.DataType.FLOAT, ir.DataType.FLOAT16), (ir.DataType.FLOAT, ir.DataType.BFLOAT16),
    (ir.DataType.DOUBLE, ir.DataType.FLOAT16), (ir.DataType.DOUBLE, ir.DataType.BFLOAT16),
    (ir.DataType.DOUBLE, ir.DataType.FLOAT),
}  # fmt: skip


def scalar(view: View, value: ir.Value | None) -> float | None:
    """Return the one finite number that ``value`` always holds, or None."""
    array = view.array(value)
    number = math.nan if array is None or array.size != 1 else float(array.reshape(()))
    return number if math.isfinite(number) else None


def same(view: View, left: ir.Value, right: ir.Value, depth: int = _DEPTH) -> bool:
    """Return True if both are one value, computed once or twice, whatever wider float type they were cast to."""
    left, right = exact(view, left), exact(view, right)
    if left is right:
        return True
    one, other = view.array(left), view.array(right)
    if one is not None and other is not None:
        return bool(np.array_equal(one, other))
    return depth > 0 and _same_node(view, left.producer(), right.producer(), depth - 1)


def _same_node(view: View, one: ir.Node | None, other: ir.Node | None, depth: int) -> bool:
    if one is None or other is None or operator(one) not in _PURE:
        return False
    if (operator(one), len(one.inputs)) != (operator(other), len(other.inputs)):
        return False
    if one.attributes != other.attributes:
        return False
    pairs = zip(one.inputs, other.inputs, strict=True)
    return all(a is b or (a is not None and b is not None and same(view, a, b, depth)) for a, b in pairs)


def count(view: View, value: ir.Value, axes: tuple[int, ...]) -> int | None:
    """Return how many elements ``value`` has along ``axes``; None where a size is not fixed."""
    sizes = fixed(view, value, axes)
    return None if sizes is None else math.prod(sizes)


def fixed(view: View, value: ir.Value, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the sizes of ``value`` along ``axes``; None where one is not fixed."""
    shape: tuple[Dim, ...] = view.shape(value) or ()
    sizes = tuple(size for axis in axes if axis < len(shape) and isinstance(size := shape[axis], int))
    return sizes if len(sizes) == len(axes) else None
