"""How operators that move elements are probed: their integer inputs say where to, and sizes must fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from normdeploy.fold.graph.reader import Dim, Refused, View
from normdeploy.fold.operators import loose
from normdeploy.fold.operators.sizes import (
    Known,
    Maps,
    Probe,
    Probing,
    by_constants,
    small_or_pinned,
    trailing,
)

LARGEST_PROBE = 1 << 18
"""Elements of a table that are looked up at once; no map differs from row to row, so a table of more is sampled."""

_LONGEST = 1 << 12
"""Cells of an axis that a probe may have, for a constant bound to lie in it."""

# -- Concat ----------------------------------------------------------------------------------------


def _by_pieces(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return all inputs share the other axes: one that is 1 in any of them is 1 in those that do not tell."""
    axis = view.attr(node, "axis", 1) % rank - rank
    ones = {i - rank: 1 for value in node.inputs for i, n in enumerate(view.shape(value) or ()) if n == 1}
    return {i: n for i, n in (ones | by_constants(view, node, rank, maps, known)).items() if i != axis}


def _beside(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    if axis == view.attr(node, "axis", 1) % rank:
        return None
    return small_or_pinned(view, node, axis, rank, dim, pinned)


CONCAT = Probing(pins=_by_pieces, size=_beside, same_axes=True)


# -- Reshape, Expand -------------------------------------------------------------------------------


def _fit_reshape(view: View, node: ir.Node, dims: tuple[Dim, ...], sizes: list[int], names: dict[str, int]) -> None:
    """Let the fixed axes of the result of a Reshape fit: a symbol of the input may be a multiple (``3*B``)."""
    after = _reshaped(view, node)
    fixed = math.prod(dim for dim in after if isinstance(dim, int))
    known = math.prod(dim for dim in dims if isinstance(dim, int))
    loose = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if not loose:
        return
    kept, copied = {dim for dim in after if isinstance(dim, str)} & set(dims), _copied(view, node)
    alone = [axis for axis in loose if dims[axis] not in kept and axis not in copied]
    open_ = [dim for axis, dim in enumerate(after) if not isinstance(dim, int) and axis not in copied]
    if after and alone and all(dim in kept for dim in open_):
        sizes[alone[0]] = fixed // known  # nothing else fits
        for axis in alone[1:]:
            sizes[axis] = 1
    else:
        parts = [dim for dim in open_ if dim not in names]
        # One symbol may be taken apart: T*B into T and B. What is found on both sides is no part of another.
        sizes[(alone or loose)[0]] *= fixed // math.gcd(fixed, known) * 3 ** max(len(parts) - 1, 0)
    for axis in loose:
        if isinstance(name := dims[axis], str):
            names[name] = sizes[axis]


def _copied(view: View, node: ir.Node) -> set[int]:
    """Return the axes that a Reshape copies to the same place, whatever their size is: those of a 0 in its target."""
    target = view.array(node.inputs[1])
    if target is None or view.attr(node, "allowzero", 0):
        return set()
    return {axis for axis, size in enumerate(target.reshape(-1)) if size == 0}


def _reshaped(view: View, node: ir.Node) -> tuple[Dim, ...]:
    """Return the shape behind a Reshape, by its own word where inference knows less."""
    after = view.shape(node.outputs[0])
    target = view.array(node.inputs[1])
    if target is None or (after is not None and all(isinstance(dim, int) for dim in after)):
        return after or ()
    told = after or (None,) * target.size
    return tuple(int(size) if size > 0 else dim for size, dim in zip(target, told, strict=True))


def _numbers(probe: Probe) -> tuple[list[int], tuple[int, ...]]:
    """Return the sizes of the result that are known, -1 for the others, and those of the data."""
    sizes = probe.symbols()
    target = probe.view.require_shape(probe.node.outputs[0], probe.node)
    numbers = [sizes.get(dim, -1) if isinstance(dim, str) else -1 if dim is None else dim for dim in target]
    data, before = probe.node.inputs[0], probe.shapes[0]
    if data is not None and probe.is_known(data):
        before = tuple(int(dim or 1) for dim in probe.view.require_shape(data, probe.node))
    return numbers, before


def _target_of_reshape(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a target shape in which the sizes that nothing fixes are chosen so that the data fits."""
    del shape
    if value is not probe.node.inputs[1]:
        return None
    numbers, before = _numbers(probe)
    free = [axis for axis, number in enumerate(numbers) if number == -1]
    for axis in free[:-1]:
        rest = math.prod(before) // math.prod(n for n in numbers if n > 0)
        numbers[axis] = next((n for n in range(2, rest + 1) if rest % n == 0), 1)
    return np.array(numbers, np.int64)


def _target_of_expand(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    del shape
    if value is not probe.node.inputs[1]:
        return None
    numbers, before = _numbers(probe)
    aligned = (1,) * (len(numbers) - len(before)) + before
    numbers = [n if n > 0 else 3 if size == 1 else size for n, size in zip(numbers, aligned, strict=True)]
    return np.array(numbers, np.int64)


def _by_target(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return what an Expand leaves as it is."""
    del rank, maps, known
    target = view.array(node.inputs[1])
    return {} if target is None else trailing(target.tolist())


RESHAPE = Probing(
    pins=loose.by_reshape, size=loose.shortened, fit=_fit_reshape, integers=1, given=_target_of_reshape,
    resized={1: loose.target_of_reshape},
)  # fmt: skip
TRANSPOSE = Probing(pins=loose.by_permutation, size=loose.shortened)
EXPAND = Probing(pins=_by_target, integers=1, given=_target_of_expand)


# -- Squeeze, Slice, Split, Tile, Gather -----------------------------------------------------------


def _by_squeezed(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    return {axis % rank - rank: 1 for axis in view.parameter(node, "axes", 1) or ()}


Cut = tuple[int | None, int | None, int | None]
"""Start, end and step of a Slice along an axis; None for what is not constant."""

_BOUNDS = (1, 2, 4)
"""The inputs of a Slice that hold them."""


def _cuts(view: View, node: ir.Node) -> dict[int, Cut] | None:
    """Return the constant bounds of a Slice by axis, in the order of its axes; None where these are not constant."""
    try:
        axes = view.parameter(node, "axes", 3)
    except Refused:
        return None
    told = [_bound(view, node, name, index) for name, index in zip(("starts", "ends", "steps"), _BOUNDS, strict=True)]
    count = max(len(axes or ()), *(len(bounds or ()) for bounds in told))
    starts, ends, steps = ([None] * count if bounds is None else bounds for bounds in told)
    if len(node.inputs) <= _BOUNDS[-1] or node.inputs[_BOUNDS[-1]] is None:
        steps = [1] * count
    return dict(zip(axes or range(count), zip(starts, ends, steps, strict=True), strict=True))


def _bound(view: View, node: ir.Node, name: str, index: int) -> list[int] | None:
    try:
        found: list[int] | None = view.parameter(node, name, index)
    except Refused:
        return None
    return found


def _chosen(size: int, cut: Cut) -> tuple[int, int, int]:
    """Return bounds of an axis of ``size`` that leave cells, if any do: the first two where nothing is constant."""
    start, end, step = cut
    starts = [0, -1] if start is None else [start]
    ends = [2, size, -size - 1] if end is None else [end]
    tried = [(a, b, 1 if step is None else step) for a in starts for b in ends]
    return next((bounds for bounds in tried if _taken(size, *bounds)), tried[0])


def _taken(size: int, start: int, end: int, step: int) -> int:
    """Return how many cells of an axis a Slice takes; an end below -size is past the first one."""
    return len(range(size)[start : None if step < 0 and end < -size else end : step])


def _bounds_of_slice(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a default, where the input has one, or bounds that leave cells."""
    if value.const_value is not None and value is not probe.node.inputs[0]:
        return np.asarray(value.const_value.numpy())
    places = [place for place, index in enumerate(_BOUNDS) if probe.node.inputs[index : index + 1] == (value,)]
    cuts = _cuts(probe.view, probe.node)
    if len(places) != 1 or cuts is None:
        return None
    data = probe.node.inputs[0]
    sizes = probe.constant(data, 0).shape if data is not None and probe.is_known(data) else probe.shapes[0]
    bounds = [_chosen(sizes[axis], cut)[places[0]] for axis, cut in cuts.items()]
    return np.resize(np.array(bounds or [(0, 2, 1)[places[0]]], np.int64), shape)


def _fit_slice(view: View, node: ir.Node, dims: tuple[Dim, ...], sizes: list[int], names: dict[str, int]) -> None:
    """Enlarge each size that nothing fixes and of which the constant bounds leave no cell."""
    for axis, cut in (_cuts(view, node) or {}).items():
        if not -len(dims) <= axis < len(dims):  # it is one of the bounds that is probed
            continue
        if isinstance(dims[axis], int) or _taken(sizes[axis], *_chosen(sizes[axis], cut)):
            continue
        ends = [abs(bound) for bound in cut[:2] if bound is not None]
        enough = (end + more for end in (*ends, sum(ends)) for more in range(1, 4))
        fits = [size for size in enough if size <= _LONGEST and _taken(size, *_chosen(size, cut))]
        sizes[axis] = min(fits, default=sizes[axis])
        if isinstance(name := dims[axis], str):
            names[name] = sizes[axis]


def _parts_of_split(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return parts of one length, and what is left for the last."""
    del shape
    if len(probe.node.inputs) < 2 or value is not probe.node.inputs[1]:
        return None
    count = len(probe.node.outputs)
    size = probe.shapes[0][probe.view.attr(probe.node, "axis", 0)]
    return np.array([size // count] * (count - 1) + [size - size // count * (count - 1)], np.int64)


def _twice(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if value is probe.node.inputs[0] else np.full(shape, 2, np.int64)


def _by_indices(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return as many cells as the map of the data has, or else one more than the indices need."""
    del known
    axis, indices, data = view.attr(node, "axis", 0) % rank, view.array(node.inputs[1]), node.inputs[0]
    m = None if data is None else maps.get(data)
    if m is not None and m.rank == rank and axis in m.axes:
        return {axis - rank: m.size(axis)}
    if indices is None or not indices.size:
        return {}
    return {axis - rank: int(max(indices.max(), -indices.min() - 1)) + 2}


def _rows_of_gather(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return every row of a table, or of a large one so many over its length; of data the first, which there always
    is.
    """
    data = probe.node.inputs[0]
    if data is None or not probe.is_known(data) or not shape or value is data:
        return np.zeros(shape, np.int64)
    table = probe.constant(data, 0)
    rows = table.shape[probe.view.attr(probe.node, "axis", 0)]
    count = min(rows, max(2, LARGEST_PROBE * rows // max(1, table.size)))
    return np.linspace(0, rows - 1, count).astype(np.int64).reshape(*(1,) * (len(shape) - 1), count)


SQUEEZE = Probing(pins=_by_squeezed)
SLICE = Probing(given=_bounds_of_slice, fit=_fit_slice)
SPLIT = Probing(same_axes=True, given=_parts_of_split)
TILE = Probing(given=_twice)
GATHER = Probing(pins=_by_indices, integers=1, given=_rows_of_gather)


# -- DepthToSpace, SpaceToDepth, Resize ------------------------------------------------------------


def _cells(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    del view, node, rank, dim, pinned
    return axis + 1 if axis > 1 else None


def _fit_channels(view: View, node: ir.Node, dims: tuple[Dim, ...], sizes: list[int], names: dict[str, int]) -> None:
    """Make channels of unknown number as many as blocks have cells, or a multiple."""
    cells, channels = int(view.attr(node, "blocksize", 1)) ** 2, dims[1] if len(dims) > 1 else 0
    if not isinstance(channels, int) and sizes[1] % cells:
        sizes[1] *= cells
        if channels is not None:
            names[channels] = sizes[1]


def _blocks(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    del rank, dim, pinned
    return (axis + 1) * int(view.attr(node, "blocksize", 1)) if axis > 1 else None


def _target_of_resize(probe: Probe, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return scales (or sizes) of 2 along every axis that no map varies over."""
    del shape
    if value is probe.node.inputs[0]:
        return None
    before = probe.shapes[0]
    varied = {axis for m in probe.maps.values() if m.rank == len(before) for axis in m.axes}
    scales = np.array([1.0 if axis in varied else 2.0 for axis in range(len(before))])
    target: np.ndarray = (scales * before).astype(np.int64) if probe.is_whole(value) else scales
    return target[list(probe.view.attr(probe.node, "axes", range(len(before))))]


DEPTH_TO_SPACE = Probing(size=_cells, fit=_fit_channels)
SPACE_TO_DEPTH = Probing(size=_blocks)
RESIZE = Probing(integers=3, given=_target_of_resize)
