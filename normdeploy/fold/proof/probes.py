"""How large the probes of the proof are: as small as the operator allows, never smaller than what pins them.

An axis is pinned by a map that varies over it, by a constant that spans it, by a kernel that must fit.
What nothing pins gets a small size of its own, at least 2, different from its neighbours', so that a rule
that takes one axis for another cannot pass by accident.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators.sizes import Known, Maps, by_maps
from normdeploy.fold.operators.table import states


def input_shapes(view: View, node: ir.Node, maps: Maps, known: Known) -> list[tuple[int, ...]]:
    """Return a shape to probe each input of ``node`` with; empty for absent and constant inputs."""
    told = states(node).probing.shapes
    around = [maps[value] for value in (*node.inputs, *node.outputs) if value is not None and value in maps]
    if told is not None and (shapes := told(view, node, around, known)) is not None:
        return shapes
    names: dict[str, int] = {}
    data = [value if value is not None and not known(value) else None for value in node.inputs]
    pinned = _pinned(view, node, maps, known)
    static = {dim for value in data if value for dim in view.shape(value) or () if isinstance(dim, int)}
    fresh = _fresh_sizes(static)
    return [() if value is None else _shape(view, node, value, maps, pinned, names, fresh) for value in data]


def symbol_sizes(view: View, node: ir.Node, maps: Maps, known: Known) -> dict[str, int]:
    """Return what each named dimension of the data inputs of ``node`` stands for in :func:`input_shapes`."""
    found: dict[str, int] = {}
    for value, shape in zip(node.inputs, input_shapes(view, node, maps, known), strict=True):
        if value is not None and shape:
            dims = view.shape(value) or ()
            found |= {dim: size for dim, size in zip(dims, shape, strict=True) if isinstance(dim, str)}
    return found


def _shape(
    view: View,
    node: ir.Node,
    value: ir.Value,
    maps: Maps,
    pinned: Mapping[int, int],
    names: dict[str, int],
    fresh: Iterator[int],
) -> tuple[int, ...]:
    dims: tuple[Dim, ...] = view.shape(value) or (None,) * _rank(view, node, value, maps)
    rank = len(dims)
    sizes = []
    for axis, dim in enumerate(dims):
        size = _fixed(view, node, axis, rank, dim, pinned)
        if size is None:
            size = (
                _varied(maps.get(value), axis, rank)
                or (names.get(dim) if isinstance(dim, str) else None)
                or next(fresh)
            )
            if isinstance(dim, str):
                names[dim] = size
        sizes.append(size)
    if (fit := states(node).probing.fit) is not None:
        fit(view, node, dims, sizes, names)
    return tuple(sizes)


def _varied(m: AffineMap | None, axis: int, rank: int) -> int | None:
    """Return the size over which the map of the value itself varies, where inference knows none."""
    return m.size(axis) if m is not None and m.rank == rank and axis in m.axes else None


def _fixed(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """Return the size that operator, maps and constants leave for ``axis``; None where any will do."""
    size = states(node).probing.size
    told = size(view, node, axis, rank, dim, pinned) if size is not None else None
    if told is not None:
        return told
    if dim is None or isinstance(dim, str):
        return pinned.get(axis - rank)
    return dim


def _pinned(view: View, node: ir.Node, maps: Maps, known: Known) -> dict[int, int]:
    """Return sizes that maps and constants ask for, by axis counted from the back."""
    data = next((value for value in node.inputs if value is not None and not known(value)), None)
    if data is None:
        return {}
    probing = states(node).probing
    sizes = by_maps(node, maps) if probing.same_axes else {}
    return sizes | (probing.pins(view, node, _rank(view, node, data, maps), maps, known) if probing.pins else {})


def _rank(view: View, node: ir.Node, value: ir.Value, maps: Maps) -> int:
    """Return the rank of a data input; where inference knows none, what the operator says of it, or else the maps
    around: its own, those behind, and at last those of other inputs, which may have fewer axes.
    """
    rank, told = view.rank(value), states(node).probing.rank
    if rank is None and told is not None:
        rank = told(view, node, value)
    if rank is None:
        around = (value, *node.outputs, *node.inputs)
        rank = next((maps[v].rank for v in around if v is not None and v in maps), 2)
    return rank


def _fresh_sizes(taken: set[int]) -> Iterator[int]:
    return (size for size in itertools.count(2) if size not in taken)


_ROW = 21
"""The binary logarithm of the most normal numbers that are kept."""


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return standard normal numbers: a piece of one long row, from a random place on.

    The same few plans probe many operators with large data, and drawing it took a tenth of a fold.
    """
    count = math.prod(shape)
    bits = max(16, (2 * count).bit_length())
    if bits > _ROW:
        return random.standard_normal(shape)
    row = _row(bits)
    begin = random.integers(0, row.size - count + 1)
    return row[begin : begin + count].reshape(shape).copy()


@lru_cache
def _row(bits: int) -> Array:
    return np.random.default_rng(bits).standard_normal(1 << bits)
