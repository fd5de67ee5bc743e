"""Products of two activations: Mul, Div and MatMul of what is not constant, and what a scale does there.

    s (a * b) = (s a) * b = a * (s b)      s (a / b) = (s a) / b = a / (b / s)      s (A B) = (s A) B = A (s B)

Downward the scales of both factors multiply; upward one of them takes all of it: the search tries the first, and the
next one where that is refused. A shift of one factor would be multiplied by the other one, so none passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators.rows import Maps, only_first
from normdeploy.fold.operators.sizes import Known, Shape, spanned
from normdeploy.fold.plan import Step
from normdeploy.graph import operator

# -- Mul, Div --------------------------------------------------------------------------------------


def product_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Give the scale to one factor, or its reciprocal to the divisor; behind a norm that stays, to its own scale."""
    m = _only_scale(step, only_first(step, outs))
    shapes, is_tail = _shapes(step), step.node in step.view.tails
    index = step.choose(
        [i for i in (0, 1) if step.view.is_constant(step.data(i)) is is_tail and _carries(m, shapes[i])]
    )
    if operator(step.node) == "Div" and index == 1:
        _require_no_zero(step, m)
        m = AffineMap(1.0 / m.scale, m.shift)
    return {index: _cut(m, shapes[index])}


def product_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Multiply the scales of the factors, or divide by that of the divisor."""
    shapes = _shapes(step)
    rank = max(len(shape) for shape in shapes)
    first, second = (_only_scale(step, m, rank) for m in ins)
    if operator(step.node) != "Div":
        return [_of_scale(first.scale * second.scale)]
    _require_no_zero(step, second)
    return [_of_scale(first.scale / second.scale)]


def _shapes(step: Step) -> list[tuple[Dim, ...]]:
    if step.view.opset < 7:
        raise step.refuse("NF012", "before opset 7 its broadcasting follows other rules")
    return [step.view.require_shape(step.data(index), step.node) for index in (0, 1)]


def _require_no_zero(step: Step, m: AffineMap) -> None:
    if not np.all(m.scale):
        raise step.refuse("NF205", "a scale of 0 cannot divide")


def divisor(random: np.random.Generator, shapes: Sequence[Shape]) -> Array:
    """Return numbers to divide by: nothing near 0."""
    return random.choice([-1.0, 1.0], shapes[1]) * random.uniform(0.5, 2.0, shapes[1])


# -- MatMul ----------------------------------------------------------------------------------------


def matmul_up(step: Step, m: AffineMap) -> dict[int, AffineMap]:
    """Give a scale of rows to the left factor, one of columns to the right, one of whole matrices to either."""
    m = _only_scale(step, m)
    shapes = _matrices(step)
    summed = (m.rank - 1, m.rank - 2)
    index = step.choose([i for i in (0, 1) if m.size(summed[i]) == 1 and _carries(m, shapes[i], but=summed[i])])
    return {index: _cut(m, shapes[index])}


def matmul_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Multiply a scale of the rows on the left with one of the columns on the right."""
    rank = max(len(shape) for shape in _matrices(step))
    first, second = (_only_scale(step, m, rank) for m in ins)
    if first.size(rank - 1) != 1 or second.size(rank - 2) != 1:
        raise step.refuse("NF015", "the map varies over the axis that is summed over")
    return [_of_scale(first.scale * second.scale)]


def _matrices(step: Step) -> list[tuple[Dim, ...]]:
    shapes = [step.view.require_shape(step.data(index), step.node) for index in (0, 1)]
    if any(len(shape) < 2 for shape in shapes):
        raise step.refuse("NF110", "a factor is a vector")
    return shapes


def matmul_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape] | None:
    """Return small matrices to probe a product of two activations with; None where one of them is constant."""
    if any(value is None or known(value) for value in node.inputs):
        return None
    pinned = spanned(maps)
    batches = [
        tuple(1 if dim == 1 else pinned.get(axis - len(shape), 2) for axis, dim in enumerate(shape[:-2]))
        for shape in (view.shape(value) or () for value in node.inputs)
    ]
    if node.inputs[0] is node.inputs[1]:  # a square
        side = pinned.get(-2, pinned.get(-1, 5))
        return [(*batches[0], side, side)] * 2
    return [(*batches[0], pinned.get(-2, 3), 5), (*batches[1], 5, pinned.get(-1, 4))]


# -- shared ----------------------------------------------------------------------------------------


def _only_scale(step: Step, m: AffineMap | None, rank: int | None = None) -> AffineMap:
    """Return ``m``, which shifts nothing, on tensors of ``rank`` axes; the identity for None."""
    if m is None:
        return AffineMap.identity(rank or 0)
    if not m.shifts_nothing:
        raise step.refuse("NF207", "a shift does not pass a product of two activations")
    return m if rank is None else AffineMap.of(m.scale, m.shift, rank)


def _of_scale(scale: Array) -> AffineMap:
    return AffineMap(scale, np.zeros((1,) * scale.ndim)).moved(lambda a: a)


def _carries(m: AffineMap, shape: tuple[Dim, ...], but: int = -1) -> bool:
    """Return True if a factor of ``shape`` has every axis of ``m`` in full; the axis ``but`` is not looked at."""
    extra = m.rank - len(shape)
    return all(axis >= extra and shape[axis - extra] == m.size(axis) for axis in m.axes if axis != but)


def _cut(m: AffineMap, shape: tuple[Dim, ...]) -> AffineMap:
    """Return ``m`` on a factor of ``shape``, which may have fewer axes."""
    extra = m.rank - len(shape)
    return m.moved(lambda a: a.reshape(a.shape[extra:]))
