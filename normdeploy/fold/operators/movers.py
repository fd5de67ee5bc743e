"""Operators that only move elements: the axes of a map are renamed, its values kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.float64 import execute
from normdeploy.fold.graph.reader import Dim
from normdeploy.fold.operators import moved, sizes
from normdeploy.fold.operators.rows import (
    MOVES,
    Row,
    both_ways,
    unchanged,
    unchanged_down,
)  # fmt: skip
from normdeploy.fold.plan import Step

# -- Transpose, Squeeze, Unsqueeze -----------------------------------------------------------------


def transpose(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map, its axes permuted back or forth."""
    perm = step.attr("perm") or list(reversed(range(m.rank)))
    order = np.argsort(perm).tolist() if upward else perm
    return m.moved(lambda a: np.transpose(a, order))


def unsqueeze(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: an axis of size 1 goes (upward) or comes."""
    axes = tuple(step.view.parameter(step.node, "axes", 1))
    return m.moved(lambda a: np.squeeze(a, _positive(axes, a.ndim)) if upward else np.expand_dims(a, axes))


def squeeze(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: an axis of size 1 comes (upward) or goes."""
    axes = step.view.parameter(step.node, "axes", 1)
    if axes is None:
        shape = step.view.require_shape(step.data(), step.node)
        if not all(isinstance(dim, int) for dim in shape):
            raise step.refuse("NF014", "which axes it squeezes depends on a dimension that is not fixed")
        axes = [axis for axis, dim in enumerate(shape) if dim == 1]
    positive = _positive(axes, step.rank())
    return m.moved(lambda a: np.expand_dims(a, positive) if upward else np.squeeze(a, positive))


def _positive(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(axis % rank for axis in axes)


# -- Reshape, Flatten ------------------------------------------------------------------------------


def reshape(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Return the axes the map varies over must be regrouped among themselves: into the same run of elements."""
    before = step.view.require_shape(step.data(), step.node)
    after = step.view.require_shape(step.node.outputs[0], step.node)
    moved = regrouped(m, after, before) if upward else regrouped(m, before, after)
    if moved is None:
        raise step.refuse("NF017", "it mixes the axis of the map with one of unknown size")
    return moved


def regrouped(m: AffineMap, source: Sequence[Dim], target: Sequence[Dim]) -> AffineMap | None:
    """Return ``m`` on tensors of shape ``source`` as the same map on the reshaped tensors of shape ``target``.

    A run of axes ``source[a:b]`` that holds every axis of the map is sought, and a run ``target[c:d]`` of as
    many elements with as many elements behind it (or before it). None where there is none.
    """
    if not m.axes:
        return AffineMap.of(m.scale.reshape(()), m.shift.reshape(()), len(target))
    low, high = m.axes[0], m.axes[-1] + 1
    runs = [(c, d, _static(target[c:d])) for c, d in _runs(len(target))]
    for a, b in _wider_runs(low, high, len(source)):
        if (middle := _static(source[a:b])) is None:
            continue
        for c, d, elements in runs:
            if elements == middle and (_same(source[b:], target[d:]) or _same(source[:a], target[:c])):
                return m.moved(_regroup(a, b, source[a:b], c, target[c:d], len(target)))
    return _by_groups(m, source, target)


def _by_groups(m: AffineMap, source: Sequence[Dim], target: Sequence[Dim]) -> AffineMap | None:
    """Return ``m`` over channels as one over groups of them, or the other way round; what lies behind may be of any
    size.
    """
    axis = m.axes[0]
    if len(m.axes) != 1 or len(target) <= axis or not _same(source[:axis], target[:axis]):
        return None
    many, few = source[axis], target[axis]
    if not isinstance(many, int) or not isinstance(few, int) or not many or not few:
        return None
    shape = (*(1,) * axis, few, *(1,) * (len(target) - axis - 1))
    if few % many == 0:
        return m.moved(lambda a: np.repeat(a.reshape(-1), few // many).reshape(shape))
    if many % few:
        return None
    groups = m.moved(lambda a: a.reshape(few, -1))
    return None if 1 in groups.axes else groups.moved(lambda a: np.broadcast_to(a[:, :1], (few, 1)).reshape(shape))


def _regroup(a: int, b: int, run: Sequence[Dim], c: int, new: Sequence[Dim], rank: int) -> Callable[[Array], Array]:
    sizes = [int(dim) for dim in run if dim is not None]
    shape = (1,) * c + tuple(int(dim) for dim in new if dim is not None) + (1,) * (rank - c - len(new))

    def move(array: Array) -> Array:
        middle = array.reshape(array.shape[a:b])
        return np.broadcast_to(middle, sizes).reshape(shape)

    return move


def _wider_runs(low: int, high: int, rank: int) -> list[tuple[int, int]]:
    runs = [(a, b) for a in range(low + 1) for b in range(high, rank + 1)]
    return sorted(runs, key=lambda run: run[1] - run[0])


def _runs(rank: int) -> list[tuple[int, int]]:
    return sorted(((c, d) for c in range(rank) for d in range(c + 1, rank + 1)), key=lambda run: run[1] - run[0])


def _static(dims: Sequence[Dim]) -> int | None:
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _same(left: Sequence[Dim], right: Sequence[Dim]) -> bool:
    """Return True if both runs hold equally many elements, whatever their symbols stand for."""
    if None in left or None in right:
        return False
    numbers = [math.prod(dim for dim in run if isinstance(dim, int)) for run in (left, right)]
    names = [sorted(dim for dim in run if isinstance(dim, str)) for run in (left, right)]
    return numbers[0] == numbers[1] and names[0] == names[1]


# -- Expand, Tile ----------------------------------------------------------------------------------


def expand(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: broadcasting repeats: a map passes that does not vary over a repeated axis."""
    before = step.view.require_shape(step.data(), step.node)
    after = step.view.require_shape(step.node.outputs[0], step.node)
    extra = len(after) - len(before)
    for axis in m.axes:
        inner = axis - extra if upward else axis
        outer = inner + extra
        if inner < 0 or before[inner] != m.size(axis) or after[outer] != m.size(axis):
            raise step.refuse("NF015", "the map varies over an axis that is repeated here")
    return m.moved(lambda a: a.reshape(a.shape[extra:]) if upward else a.reshape((1,) * extra + a.shape))


def tile(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: tiling repeats: downward the map is tiled too; upward it must repeat itself as often."""
    if not m.axes:
        return m
    if step.view.opset < 6:
        raise step.refuse("NF012", "Tile before opset 6 takes other inputs")
    repeats = step.view.parameter(step.node, "repeats", 1)
    factors = [count if axis in m.axes else 1 for axis, count in enumerate(repeats)]
    if not upward:
        return m.moved(lambda a: np.tile(a, factors))
    if any(m.size(axis) % factor for axis, factor in enumerate(factors)):
        raise step.refuse("NF018", "the map does not repeat as the tiles do")
    sizes = tuple(slice(0, m.size(axis) // factor) for axis, factor in enumerate(factors))
    first = m.moved(lambda a: a[tuple(s if a.shape[i] > 1 else slice(None) for i, s in enumerate(sizes))])
    if not first.moved(lambda a: np.tile(a, [f if n > 1 else 1 for f, n in zip(factors, a.shape, strict=True)])).equals(
        m
    ):
        raise step.refuse("NF018", "the map does not repeat as the tiles do")
    return first


# -- the rows --------------------------------------------------------------------------------------


ROWS = (
    Row(
        ("Identity",), unchanged, unchanged_down, evaluate=execute.identity, probing=sizes.ELEMENTWISE,
        carries=True, **MOVES,
    ),
    # axes are renamed
    Row(("Reshape",), **both_ways(reshape), probing=moved.RESHAPE, carries=True, **MOVES),
    Row(("Flatten",), **both_ways(reshape), carries=True, **MOVES),
    Row(("Squeeze",), **both_ways(squeeze), evaluate=execute.squeeze, probing=moved.SQUEEZE, carries=True, **MOVES),
    Row(("Unsqueeze",), **both_ways(unsqueeze), evaluate=execute.unsqueeze, carries=True, **MOVES),
    Row(("Transpose",), **both_ways(transpose), probing=moved.TRANSPOSE, carries=True, **MOVES),
    Row(("Expand",), **both_ways(expand), probing=moved.EXPAND, carries=True, **MOVES),
    Row(("Tile",), **both_ways(tile), probing=moved.TILE, carries=True, **MOVES),
    # what reads the shape alone sees no map
    Row(("Shape", "Size"), down=lambda step, ins: [None], shape_only=True),
)  # fmt: skip
