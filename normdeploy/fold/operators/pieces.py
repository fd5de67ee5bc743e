"""Operators that pick elements or lay them side by side: each part takes its part of the map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import Channels
from normdeploy.fold.graph.reader import Dim
from normdeploy.fold.operators import moved
from normdeploy.fold.operators.rows import (
    MOVES,
    Magnitude,
    Maps,
    Nature,
    Row,
    both_ways,
    concatenated,
    only_first,
)
from normdeploy.fold.plan import Step

# -- Slice, Split, Concat, Gather ------------------------------------------------------------------


def slice_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass a map: outside the slice nobody looks: there the map is the identity."""
    m = only_first(step, outs)
    shape = step.view.require_shape(step.data(), step.node)
    for axis, cut in _cuts(step, m).items():
        m = _spread(m, axis, np.arange(_size(step, shape, axis))[cut], _size(step, shape, axis))
    return {0: m}


def slice_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Pass a map, sliced as the tensor is."""
    m = only_first(step, ins)
    shape = step.view.require_shape(step.data(), step.node)
    for axis, cut in _cuts(step, m).items():
        index = np.arange(_size(step, shape, axis))[cut]
        m = _taken(m, axis, index)
    return [m]


def _cuts(step: Step, m: AffineMap) -> dict[int, slice]:
    """Return the slice of every axis that the map varies over; the other axes do not matter, constant or not."""
    rank = step.rank()
    view, node = step.view, step.node
    if view.opset < 10:
        starts, ends = step.attr("starts"), step.attr("ends")
        axes, steps = step.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        count = (view.require_shape(step.data(1), node) or (None,))[0]
        axes = view.parameter(node, "axes", 3) or (list(range(count)) if isinstance(count, int) else list(range(rank)))
        if not {axis % rank for axis in axes} & set(m.axes):
            return {}
        starts, ends = view.parameter(node, "starts", 1), view.parameter(node, "ends", 2)
        steps = view.parameter(node, "steps", 4) or [1] * len(starts)
    return {
        axis % rank: _python_slice(start, end, stride)
        for axis, start, end, stride in zip(axes, starts, ends, steps, strict=True)
        if axis % rank in m.axes
    }


def _python_slice(start: int, end: int, stride: int) -> slice:
    # With a negative step an end below -n means "past the first element", which Python spells None.
    return slice(start, None if stride < 0 and end < -(2**30) else end, stride)


def split_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Return the maps of the parts stand side by side."""
    axis = step.attr("axis", 0) % step.rank()
    return {0: concatenated(step, outs, _part_sizes(step, axis), axis, step.rank())}


def split_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Pass a map: each part takes its part of the map."""
    m = only_first(step, ins)
    axis = step.attr("axis", 0) % step.rank()
    if m.size(axis) == 1:
        return [m] * len(step.node.outputs)
    sizes = [size for size in _part_sizes(step, axis) if isinstance(size, int)]
    if len(sizes) < len(step.node.outputs):
        raise step.refuse("NF014", "the sizes along the axis are not fixed")
    return [_taken(m, axis, np.arange(a, b)) for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]


def _part_sizes(step: Step, axis: int) -> list[Dim]:
    """Return the sizes of the parts; unknown where they are an input, which a caller may override."""
    sizes = step.input(1)
    if sizes is not None and not step.view.is_constant(sizes):
        return [None] * len(step.node.outputs)
    return [step.view.require_shape(out, step.node)[axis] for out in step.node.outputs]


def concat_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass a map: each branch takes its part of the map."""
    m = only_first(step, outs)
    axis = step.attr("axis", 1) % m.rank
    if m.size(axis) == 1:
        return dict.fromkeys(range(len(step.node.inputs)), m)
    shapes = [step.view.require_shape(value, step.node) for value in step.node.inputs if value is not None]
    ends = np.cumsum([0, *(_size(step, shape, axis) for shape in shapes)])
    parts = [_taken(m, axis, np.arange(a, b)) for a, b in itertools.pairwise(ends)]
    return {index: part for index, part in enumerate(parts) if not part.is_identity}


def concat_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Pass the maps of the branches side by side; a branch without one is the identity."""
    rank = next(m.rank for m in ins if m is not None)
    axis = step.attr("axis", 1) % rank
    shapes = [step.view.require_shape(value, step.node) for value in step.node.inputs if value is not None]
    return [concatenated(step, ins, [shape[axis] for shape in shapes], axis, rank)]


def gather_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Return the axes of the indices fold back into the one they replaced."""
    m = only_first(step, outs)
    axis, width = step.attr("axis", 0) % step.rank(), step.rank(1)
    picked = tuple(range(axis, axis + width))
    if not set(m.axes) & set(picked):
        return {0: m.moved(lambda a: np.expand_dims(np.squeeze(a, picked), axis))}
    index = step.view.array(step.data(1))
    size = _size(step, step.view.require_shape(step.data(), step.node), axis)
    if index is None or width != 1:
        raise step.refuse("NF019", "the map varies over the gathered axis, and the indices are not a constant vector")
    spread = _spread(m, axis, np.asarray(index) % size, size)
    if not _taken(spread, axis, np.asarray(index) % size).equals(m):
        raise step.refuse("NF018", "one element is gathered to places with different maps")
    return {0: spread}


def gather_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Return the map is gathered with the tensor."""
    m = only_first(step, ins)
    axis, width = step.attr("axis", 0) % step.rank(), step.rank(1)
    if m.size(axis) == 1:
        return [m.moved(lambda a: a.reshape(a.shape[:axis] + (1,) * width + a.shape[axis + 1 :]))]
    index = step.view.array(step.data(1))
    if index is None:
        raise step.refuse("NF019", "the map varies over the gathered axis, and the indices are not constant")
    return [m.moved(lambda a: np.take(a, np.asarray(index) % m.size(axis), axis=axis))]


# -- DepthToSpace, SpaceToDepth --------------------------------------------------------------------


def depth_to_space(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: every output channel stands for blocksize² input channels (ONNX: DCR or CRD order)."""
    phases = step.attr("blocksize") ** 2
    crd = step.attr("mode", "DCR") == "CRD"
    return _phased(step, m, phases, spread=upward, interleaved=crd)


def space_to_depth(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Return the inverse of DepthToSpace in DCR order."""
    return _phased(step, m, step.attr("blocksize") ** 2, spread=not upward, interleaved=False)


def _phased(step: Step, m: AffineMap, phases: int, *, spread: bool, interleaved: bool) -> AffineMap:
    if set(m.axes) - {1}:
        raise step.refuse("NF015", "the map varies over other axes than the channels")
    if m.size(1) == 1:
        return m
    if spread:
        return m.moved(lambda a: np.repeat(a, phases, axis=1) if interleaved else np.tile(a, (1, phases, 1, 1)))
    few = m.size(1) // phases
    index = np.arange(few) * (phases if interleaved else 1)
    narrow = _taken(m, 1, index)
    back = (
        AffineMap.identity(4)
        if narrow.is_identity
        else _phased(step, narrow, phases, spread=True, interleaved=interleaved)
    )
    if not back.equals(m):
        raise step.refuse("NF018", "the map differs between the phases that become one channel")
    return narrow


# -- shared ----------------------------------------------------------------------------------------


def _size(step: Step, shape: Sequence[Dim], axis: int) -> int:
    size = shape[axis]
    if not isinstance(size, int):
        raise step.refuse("NF014", f"the size of axis {axis} is not fixed")
    return size


def _taken(m: AffineMap, axis: int, index: np.ndarray) -> AffineMap:
    """Return the map of the elements ``index`` along ``axis``."""
    return m.moved(lambda a: np.take(a, index, axis=axis) if a.shape[axis] > 1 else a)


def _spread(m: AffineMap, axis: int, index: np.ndarray, size: int) -> AffineMap:
    """Return the inverse of :func:`_taken`: elements that are not in ``index`` get the identity."""

    def spread(array: Array, rest: float) -> Array:
        shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
        full = np.full(shape, rest)
        np.moveaxis(full, axis, 0)[index] = np.moveaxis(
            np.broadcast_to(array, (*shape[:axis], len(index), *shape[axis + 1 :])), axis, 0
        )
        return full

    both = m.broadcast([m.size(i) for i in range(m.rank)])
    return AffineMap(spread(both.scale, 1.0), spread(both.shift, 0.0)).moved(lambda a: a)


# -- the rows --------------------------------------------------------------------------------------


def _table(step: Step) -> Channels:
    """Return a table is summed over along what is looked up: the channels of what comes out are its other axes."""
    return Channels((step.attr("axis", 0),), others=True)


ROWS = (
    # elements are picked or laid side by side
    Row(("Slice",), slice_up, slice_down, probing=moved.SLICE, carries=True, **MOVES),
    Row(("Split",), split_up, split_down, probing=moved.SPLIT, **MOVES),
    Row(("Concat",), concat_up, concat_down, probing=moved.CONCAT, **MOVES),
    Row(
        ("Gather",), gather_up, gather_down, nature=Nature.LINEAR, magnitude=Magnitude.KEPT, probing=moved.GATHER,
        carries=True, parameters={0: _table},
    ),
    Row(("DepthToSpace",), **both_ways(depth_to_space), probing=moved.DEPTH_TO_SPACE, **MOVES),
    Row(("SpaceToDepth",), **both_ways(space_to_depth), probing=moved.SPACE_TO_DEPTH, **MOVES),
)  # fmt: skip
