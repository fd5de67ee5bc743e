"""Where maps come from: the operators that *are* an affine map, and how to write one back.

BatchNormalization at inference (Ioffe & Szegedy 2015, arXiv 1502.03167):
    y = gamma (x - mean) / sqrt(var + eps) + beta  =  s x + t,   s = gamma / sqrt(var + eps),  t = beta - s mean
Mul, Add, Sub, Div, Neg with a constant are maps too, when the constant enlarges nothing it meets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import INFER, Refused, View
from normdeploy.fold.operators import bilinear, poolers, sizes
from normdeploy.fold.operators.rows import Nature, Row, all_but, states
from normdeploy.graph import operator


def map_of(view: View, node: ir.Node) -> AffineMap | None:
    """Return the map that ``node`` is, on its data input; None where it is of no kind that is ever one.

    Raises:
        Refused: it could be one, but here it is not: the reason.
    """
    row = states(node)
    found = row.map(view, node) if row.map else None
    if found is not None:
        view.require_no_gelu(node)
        view.require_no_tail(node)
    if found is not None and not (found.scale.size and found.shift.size):
        raise Refused("NF107", "it acts on nothing: an axis of its constants is empty", node)
    if found is not None and not found.is_finite:
        raise Refused("NF105", "its scale or shift is not finite", node, "re-estimate its running statistics")
    return None if found is None else found.moved(lambda a: a)  # what is equal for all channels is one number


def data_input(view: View, node: ir.Node) -> ir.Value:
    """Return the input of a map node that the map acts on: the one that is not constant."""
    first_is_constant = len(node.inputs) == 2 and view.is_constant(node.inputs[0])
    value = node.inputs[int(first_is_constant)]
    if value is None:
        raise Refused("NF013", "its input is missing", node)
    return value


def is_bias_of_product(node: ir.Node, m: AffineMap) -> bool:
    """Return whether ``node``, the map ``m``, is the bias of the MatMul in front of it, which stays by design."""
    producers = [value.producer() for value in node.inputs if value is not None]
    return m.scales_nothing and any(maker is not None and operator(maker) == "MatMul" for maker in producers)


# -- elementwise with a constant -------------------------------------------------------------------


def _elementwise(
    build: Callable[[Array, bool], tuple[Array, Array] | None],
) -> Callable[[View, ir.Node], AffineMap | None]:
    """Return a reader for a binary operator; ``build(constant, constant_is_first)`` gives scale and shift."""

    def read(view: View, node: ir.Node) -> AffineMap | None:
        left, right = node.inputs
        if left is None or right is None or view.is_constant(left) == view.is_constant(right):
            return None
        first = view.is_constant(left)
        data, constant = (right, left) if first else (left, right)
        if not view.is_float(data):
            return None
        array = view.exact(constant)
        if array is None or not (built := build(array, first)):
            return None
        if constant not in view.unrounded:  # one that was edited keeps its shape, and that was let in before
            _require_not_enlarging(view, node, array.shape, data)
        rank = view.rank(data)
        return AffineMap.of(*built, rank if rank is not None else array.ndim)

    return read


def _require_not_enlarging(view: View, node: ir.Node, constant: tuple[int, ...], data: ir.Value) -> None:
    if view.opset < 7:
        raise Refused("NF012", "before opset 7 its broadcasting follows other rules", node)
    shape = view.shape(data)
    if shape is None:
        if all(size == 1 for size in constant) and view.rank(data) is not None:
            return
        raise Refused("NF009", "the shape it acts on is not known", node, INFER)
    aligned = shape[len(shape) - len(constant) :]
    if len(constant) > len(shape) or any(n not in (1, dim) for n, dim in zip(constant, aligned, strict=True)):
        raise Refused("NF104", "its constant may enlarge what it meets", node)


def _divide(constant: Array, first: bool) -> tuple[Array, Array] | None:
    if first:
        return None
    with np.errstate(all="ignore"):
        return 1.0 / constant, np.zeros(())


def _negate(view: View, node: ir.Node) -> AffineMap | None:
    value = node.inputs[0]
    if value is None or view.is_constant(value) or not view.is_float(value):
        return None
    return AffineMap.of(-1.0, 0.0, view.require_rank(value, node))


# -- writing a map back ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelling:
    """One operator that is a map, with its constants in input order, by name."""

    kind: str
    map: AffineMap
    constants: dict[str, Array]


def spelled(m: AffineMap, channels: int | None, *, norm: bool) -> tuple[Spelling, ...] | None:
    """Return the operators that are ``m``, one after the other; None where it cannot be written.

    A shift alone is an Add, a scale alone a Mul. Both are one BatchNormalization where a norm was before (``norm``),
    which only exists over axis 1 and has one number for each of its ``channels`` (None where they are not known), also
    where all are equal. Where none was, none appears: a Mul and an Add.
    """
    add = Spelling("Add", m.only_shift(), {"shift": _trimmed(m.shift)})
    mul = Spelling("Mul", m.without_shift(), {"scale": _trimmed(m.scale)})
    if m.scales_nothing:
        return (add,)
    if m.shifts_nothing:
        return (mul,)
    if not norm:
        return mul, add
    if m.rank < 2 or set(m.axes) - {1} or channels is None:
        return None
    size = max(m.size(1), channels)
    scale, shift = (np.broadcast_to(a.reshape(-1), (size,)).copy() for a in (m.scale, m.shift))
    parameters = {"scale": scale, "bias": shift, "mean": np.zeros(size), "var": np.ones(size)}
    return (Spelling("BatchNormalization", m, parameters),)


def _trimmed(array: Array) -> Array:
    """Return ``array`` without leading axes of size 1."""
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


# -- the rows --------------------------------------------------------------------------------------


def _negative(attributes: dict[str, Any], inputs: list[np.ndarray | None]) -> tuple[dict[str, Any], Any]:
    """Return a difference of one size and another's negative adds them up."""
    return attributes, [item if item is None or index == 0 else -item for index, item in enumerate(inputs)]


def _scaled(constant: Array, first: bool) -> tuple[Array, Array] | None:
    del first
    return constant, np.zeros(())


def _added(constant: Array, first: bool) -> tuple[Array, Array] | None:
    del first
    return np.ones(()), constant


def _taken(constant: Array, first: bool) -> tuple[Array, Array] | None:
    return (-np.ones(()), constant) if first else (np.ones(()), -constant)


ROWS = (
    Row(
        ("Mul",), bilinear.product_up, bilinear.product_down, map=_elementwise(_scaled), nature=Nature.LINEAR,
        probing=sizes.ELEMENTWISE, parameters={None: all_but()},
    ),
    Row(
        ("Div",), bilinear.product_up, bilinear.product_down, map=_elementwise(_divide), nature=Nature.LINEAR,
        probing=replace(sizes.ELEMENTWISE, draws={1: bilinear.divisor}),
    ),
    Row(("Neg",), map=_negate, probing=sizes.ELEMENTWISE),
    Row(
        ("Add",), poolers.sum_up, poolers.sum_down, map=_elementwise(_added), sums=True, nature=Nature.LINEAR,
        probing=sizes.ELEMENTWISE, parameters=poolers.SUMMED,
    ),
    Row(
        ("Sub",), poolers.sum_up, poolers.sum_down, map=_elementwise(_taken), nature=Nature.LINEAR,
        probing=sizes.ELEMENTWISE, parameters=poolers.SUMMED, absolute=_negative,
    ),
)  # fmt: skip
