"""The parts of a norm, each in all the ways of being written: powers, epsilon, means, squares, differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm.values import bare, count, first, made_by, same, scalar, second
from normdeploy.graph import operator

_KEEPS_ORDER = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand"})
_MEANS = ("ReduceMean", "GlobalAveragePool")


@dataclass(frozen=True)
class Mean:
    """A mean of ``inner`` over ``axes``, times ``factor``.

    ``fits`` tells if it lines up with what it was taken of; None where sizes that are not known leave that open.
    """

    inner: ir.Value
    axes: tuple[int, ...]
    factor: Fraction
    fits: bool | None
    squares: bool


@dataclass(frozen=True)
class Spread:
    """A mean of squares: of ``of`` itself, or of its deviation from its mean over the same axes."""

    of: ir.Value
    axes: tuple[int, ...]
    centred: bool


def power(view: View, value: ir.Value, exponent: float) -> tuple[ir.Value, float]:
    """Return ``value ** exponent`` as a power of what lies behind roots, reciprocals and powers."""
    value = bare(view, value)
    if (node := made_by(value, "Sqrt")) is not None:
        return power(view, first(node), exponent / 2)
    if (node := made_by(value, "Reciprocal")) is not None:
        return power(view, first(node), -exponent)
    if (node := made_by(value, "Div")) is not None and scalar(view, node.inputs[0]) == 1:
        return power(view, second(node), -exponent)
    if (node := made_by(value, "Pow")) is not None and (by := scalar(view, node.inputs[1])) is not None:
        return power(view, first(node), exponent * by)
    return value, exponent


def split_epsilon(view: View, value: ir.Value) -> tuple[ir.Value, float]:
    """Return what a constant is added to, and that constant (0 where there is none)."""
    if (node := made_by(bare(view, value), "Add")) is not None:
        for constant, other in ((node.inputs[1], first(node)), (node.inputs[0], second(node))):
            if (epsilon := scalar(view, constant)) is not None:
                return other, epsilon
    return value, 0.0


def is_epsilon(view: View, node: ir.Node) -> bool:
    """Return True if ``node`` adds the epsilon of a norm that is spelled out: to a mean of squares, before its root."""
    inner, epsilon = split_epsilon(view, node.outputs[0])
    if epsilon == 0 or not any(operator(use.node) in ("Sqrt", "Pow") for use in node.outputs[0].uses()):
        return False
    with suppress(Refused):  # what is not known of a value tells nothing
        return spread(view, inner, None) is not None
    return False


def is_deviation_plus_epsilon(view: View, value: ir.Value) -> bool:
    """Return True if ``value`` is the root of a mean of squares, plus a constant."""
    inner, epsilon = split_epsilon(view, value)
    base, exponent = power(view, inner, 1.0)
    return epsilon != 0 and exponent == 0.5 and spread(view, base, None) is not None


def spread(view: View, value: ir.Value, node: ir.Node | None) -> Spread | None:
    """Return the mean of squares that ``value`` is. With ``node``, one that is spoiled is refused in its name."""
    value = _not_negative(view, value)
    if (moments := _moments(view, value)) is not None:
        return moments
    taken = mean(view, value)
    of = None if taken is None else taken.inner if taken.squares else _square(view, taken.inner)
    if taken is None or of is None:
        return None
    if node is not None:
        _require_plain(view, taken, node)
    if (own := centred(view, of, node)) is not None and own[1] == taken.axes:
        return Spread(*own, centred=True)
    return Spread(of, taken.axes, centred=False)


def _require_plain(view: View, taken: Mean, node: ir.Node) -> None:
    if taken.factor != 1:
        n = count(view, taken.inner, taken.axes)
        if n and n > 1 and math.isclose(taken.factor, n / (n - 1), rel_tol=1e-6):
            raise Refused("NF310", "its variance is unbiased (it divides by N - 1)", node)
        raise Refused("NF310", f"its variance is scaled by {float(taken.factor):.9g}", node)
    if not taken.fits:
        raise _misplaced("its variance", taken, node)


def _misplaced(what: str, taken: Mean, node: ir.Node) -> Refused:
    if taken.fits is None:
        return Refused("NF009", f"which axes {what} has depends on sizes that are not known", node)
    return Refused("NF312", f"{what} is broadcast along another axis than it was taken over", node)


def _moments(view: View, value: ir.Value) -> Spread | None:
    """Return the mean and its square's of E[x²] - E[x]²."""
    if (node := made_by(value, "Sub")) is None:
        return None
    squares = mean(view, first(node))
    of = None if squares is None else squares.inner if squares.squares else _square(view, squares.inner)
    root = _square(view, second(node))
    taken = None if root is None else mean(view, root)
    if squares is None or of is None or taken is None or not same(view, of, taken.inner):
        return None
    plain = squares.factor == taken.factor == 1 and squares.fits and taken.fits
    return Spread(of, taken.axes, centred=True) if plain and squares.axes == taken.axes else None


def centred(view: View, value: ir.Value, node: ir.Node | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """Return ``x`` and the axes of the mean where ``value`` is ``x - mean(x)``."""
    for x, negative in _differences(bare(view, value)):
        taken = mean(view, negative)
        if taken is None or taken.squares or not same(view, x, taken.inner) or taken.factor != 1:
            continue
        if not taken.fits:
            if node is not None:
                raise _misplaced("its mean", taken, node)
            continue
        return x, taken.axes
    return None


def _differences(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    if (node := made_by(value, "Sub")) is not None:
        yield first(node), second(node)
    if (node := made_by(value, "Add")) is not None:
        for x, other in ((first(node), second(node)), (second(node), first(node))):
            if (negative := made_by(other, "Neg")) is not None:
                yield x, first(negative)


def mean(view: View, value: ir.Value) -> Mean | None:
    """Return ReduceMean or what pools all cells, or ReduceSum and a division by the count, with whatever puts its axes
    back.
    """
    end, factor, moved = value, Fraction(1), False
    while (step := _behindmean(view, value)) is not None:
        value, by, moves = step
        factor, moved = factor * by, moved or moves
    node = made_by(value, *_MEANS, "ReduceSum", "ReduceSumSquare")
    if node is None:
        return None
    inner = first(node)
    axes = _axes(view, node)
    if not axes:
        return None
    if operator(node) not in _MEANS:
        n = count(view, inner, axes)
        if n is None:
            return None
        factor *= n
    fits = _lines_up(view, end, inner, axes) if moved or not view.attr(node, "keepdims", 1) else True
    return Mean(inner, axes, factor, fits, squares=operator(node) == "ReduceSumSquare")


def _behindmean(view: View, value: ir.Value) -> tuple[ir.Value, Fraction, bool] | None:
    """Return one step from a mean towards its reduction: what was there before, times which factor, and were axes
    moved.
    """
    if (node := made_by(value, *_KEEPS_ORDER)) is not None:
        return first(node), Fraction(1), operator(node) not in ("Cast", "Identity")
    if (node := made_by(value, "Div")) is not None and (by := scalar(view, node.inputs[1])):
        return first(node), 1 / Fraction(by), False
    if (node := made_by(value, "Mul")) is not None:
        for constant, other in ((node.inputs[1], first(node)), (node.inputs[0], second(node))):
            if by := scalar(view, constant):
                return other, Fraction(by), False
    return None


def _axes(view: View, node: ir.Node) -> tuple[int, ...]:
    rank = view.require_rank(first(node), node)
    if operator(node) == "GlobalAveragePool":
        return tuple(range(2, rank))
    axes = view.parameter(node, "axes", 1)
    if not axes:
        return () if view.attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in axes))


def _lines_up(view: View, end: ir.Value, inner: ir.Value, axes: tuple[int, ...]) -> bool | None:
    """Return if ``end`` broadcasts against ``inner`` with 1 at exactly the reduced axes; None where it is not known."""
    whole, reduced = view.shape(inner), view.shape(end)
    if whole is None or reduced is None:
        return None
    if len(reduced) > len(whole):
        return False
    padded = (1,) * (len(whole) - len(reduced)) + reduced
    wanted = tuple(1 if i in axes else dim for i, dim in enumerate(whole))
    if None not in padded and padded == wanted:
        return True
    differs = any(isinstance(n, int) and isinstance(m, int) and n != m for n, m in zip(padded, wanted, strict=True))
    return False if differs else None


def _square(view: View, value: ir.Value) -> ir.Value | None:
    value = bare(view, value)
    if (node := made_by(value, "Pow")) is not None:
        return first(node) if scalar(view, node.inputs[1]) == 2 else None
    if (node := made_by(value, "Mul")) is not None and same(view, first(node), second(node)):
        return first(node)
    return None


def _not_negative(view: View, value: ir.Value) -> ir.Value:
    """Return what a clamp at 0 guards: a variance is not negative but for rounding."""
    value = bare(view, value)
    if (node := made_by(value, "Relu")) is not None:
        return bare(view, first(node))
    if (node := made_by(value, "Max", "Clip")) is not None and len(node.inputs) == 2:
        if scalar(view, node.inputs[1]) == 0:
            return bare(view, first(node))
        if operator(node) == "Max" and scalar(view, node.inputs[0]) == 0:
            return bare(view, second(node))
    return value
