"""How an operator is probed: which sizes its constants pin, how large the rest is, what its integer inputs hold.

Sizes are given by axis counted from the back, where values of different rank are aligned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Dim, View

Maps = Mapping[ir.Value, AffineMap]
Known = Callable[[ir.Value], bool]

Pin = Callable[[View, ir.Node, int, Maps, Known], dict[int, int]]
"""(view, node, rank of its data, maps around it, which values are constants) → sizes by axis from the back."""

Size = Callable[[View, ir.Node, int, int, Dim, Mapping[int, int]], int | None]
"""(view, node, axis, rank, declared size, pinned sizes) → the size of that axis; None where the operator has no say."""

_ROWS = 3
"""Rows of a matrix probe, at least: enough that no channel's products cancel in all of them."""


class Probe(Protocol):
    """What is asked for an integer input that is not constant."""

    view: View
    node: ir.Node
    maps: Maps

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each input's probe."""

    def is_known(self, value: ir.Value) -> bool:
        """Return whether ``value`` is a constant."""

    def is_whole(self, value: ir.Value) -> bool:
        """Return whether ``value`` holds integers."""

    def constant(self, value: ir.Value, index: int) -> np.ndarray:
        """Return what the constant at input ``index`` held before the plan."""

    def symbols(self) -> dict[str, int]:
        """Return what each named dimension of the data stands for."""


Given = Callable[[Probe, ir.Value, tuple[int, ...]], np.ndarray | None]
"""(probe, an input that is no data, its shape) → what it holds; None where the operator does not say."""

Shape = tuple[int, ...]

Shapes = Callable[[View, ir.Node, Sequence[AffineMap], Known], list[Shape] | None]
"""(view, node, maps around it, which values are constants) → a shape to probe each input with; None: axis by axis."""

Draw = Callable[[np.random.Generator, Sequence[Shape]], np.ndarray]
"""(random numbers, the shapes of all inputs) → what an input holds that no standard normal numbers probe."""

Resized = Callable[[Probe, np.ndarray], np.ndarray]
"""(probe, a constant that says sizes) → the same for the sizes of the probe."""

Fit = Callable[[View, ir.Node, tuple[Dim, ...], list[int], dict[str, int]], None]
"""(view, node, declared shape of the data, chosen sizes, named sizes): changes the sizes so that the operator runs."""


@dataclass(frozen=True)
class Probing:
    """How an operator is probed.

    Attributes:
        pins: what its constants pin.
        size: the size of an axis where the operator has a say.
        same_axes: its output has the axes of its data, so a map on either side pins both.
        rank: the rank of one of its inputs where inference knows none.
        fit: makes the sizes of the data fit, in the end.
        integers: the first input that holds integers, where types are not known.
        given: what an integer input holds that is not constant.
        shapes: all shapes at once, for an operator whose inputs are no axes of each other.
        draws: inputs that no standard normal numbers probe, by index.
        resized: constants that say sizes, by index, each with what makes of it what the sizes of the probe ask for.
    """

    pins: Pin | None = None
    size: Size | None = None
    same_axes: bool = False
    rank: Callable[[View, ir.Node, ir.Value], int | None] | None = None
    fit: Fit | None = None
    integers: int | None = None
    given: Given | None = None
    shapes: Shapes | None = None
    draws: Mapping[int, Draw] = field(default_factory=dict)
    resized: Mapping[int, Resized] = field(default_factory=dict)


# -- pins ------------------------------------------------------------------------------------------


def by_maps(node: ir.Node, maps: Maps) -> dict[int, int]:
    """Return what the maps on all sides vary over."""
    around = [maps[value] for value in (*node.inputs, *node.outputs) if value is not None and value in maps]
    return spanned(around)


def spanned(maps: Sequence[AffineMap]) -> dict[int, int]:
    """Return what ``maps`` vary over, by axis counted from the back."""
    return {axis - m.rank: m.size(axis) for m in maps for axis in m.axes}


def by_constants(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return what the constants of an elementwise operator span."""
    del rank, maps
    sizes: dict[int, int] = {}
    for value in node.inputs:
        if value is not None and known(value):
            sizes |= trailing(view.shape(value))
    return sizes


def by_channels(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return the channels, of which input 1 has one number each."""
    del maps, known
    channels = view.shape(node.inputs[1])
    return {1 - rank: int((channels or (1,))[0] or 1)}


def by_scale(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return the trailing axes that input 1 spans."""
    del rank, maps, known
    return trailing(view.shape(node.inputs[1]))


def fixed(view: View, value: ir.Value | None, otherwise: int = 2) -> Shape:
    """Return the shape of ``value`` with ``otherwise`` for what is not fixed, to probe it with."""
    shape = view.shape(value) or ()
    if (tensor := view.constant(value)) is not None:  # inference may know less of it
        shape = tuple(tensor.shape.numpy())
    return tuple(dim if isinstance(dim, int) else otherwise for dim in shape)


def trailing(shape: Sequence[Dim] | None) -> dict[int, int]:
    """Return the axes of ``shape`` that are longer than 1."""
    sizes = list(shape or ())
    return {i - len(sizes): n for i, n in enumerate(sizes) if isinstance(n, int) and n > 1}


# -- sizes -----------------------------------------------------------------------------------------


def small_or_pinned(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """Return 1 where the axis is 1, what pins it, or else a size of its own: an elementwise operator minds no size."""
    del view, node
    return 1 if dim == 1 else pinned.get(axis - rank) or _small(axis - rank, pinned)


def whole_plane(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """Return small sizes for all but the channels: the operator sees every cell of a channel at once."""
    del view, node, dim
    return None if axis == 1 else pinned.get(axis - rank, axis + 2)


def matrix(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """Return small sizes for what is neither summed over nor varied over."""
    del view, node
    if axis - rank in pinned:
        return None
    return max(_ROWS, 2 + axis) if axis >= rank - 2 else (1 if dim == 1 else 2 + axis)


def _small(behind: int, pinned: Mapping[int, int]) -> int:
    """Return a size that nothing has, the same wherever values are aligned at their last axes."""
    sizes = (size for size in itertools.count(2) if size not in pinned.values())
    return next(itertools.islice(sizes, -behind - 1, None))


ELEMENTWISE = Probing(pins=by_constants, size=small_or_pinned, same_axes=True)
"""The same to every element, whatever it is."""
