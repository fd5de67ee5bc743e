"""Axes that a probe need not have at their full length: long ones that an operator hands on as they are, and on which
no map depends.

A Transpose of ``[8, 3136, 96]`` by a map over the channels is proven by ``[8, 2, 96]`` as well, in a thousandth of the
time. Short axes stay, so that what is probed is the operator as it stands wherever that costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators.sizes import Known, Maps, Probe, by_scale

LONG = 32
"""The longest axis that is always probed as it is."""


def shortened(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """Return the length that is pinned for a long axis."""
    del view, node
    return pinned.get(axis - rank) if _is_long(dim) else None


# -- Transpose -------------------------------------------------------------------------------------


def by_permutation(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return a length for each loose axis of the data of a Transpose."""
    del known
    shape = view.shape(node.inputs[0]) or ()
    perm = view.attr(node, "perm") or list(reversed(range(rank)))
    varied = _varied(maps, node.inputs[0]) | {perm[axis] for axis in _varied(maps, node.outputs[0])}
    return _lengths(shape, [axis for axis in range(len(shape)) if axis not in varied])


# -- Reshape ---------------------------------------------------------------------------------------


def by_reshape(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return a length for each axis of the data that a Reshape to a constant shape leaves by itself."""
    del rank, known
    return _lengths(view.shape(node.inputs[0]) or (), list(_kept(view, node, maps)))


def target_of_reshape(probe: Probe, target: np.ndarray) -> np.ndarray:
    """Return the constant ``target`` with the lengths that the probe has of the axes that stay."""
    new, before = target.copy(), probe.view.shape(probe.node.inputs[0]) or ()
    for axis, place in _kept(probe.view, probe.node, probe.maps).items():
        if new[place] == before[axis]:  # else it is copied, or what is left over
            new[place] = probe.shapes[0][axis]
    return new


def _kept(view: View, node: ir.Node, maps: Maps) -> dict[int, int]:
    """Return the loose axes of the data, each with where the result has it: equal sizes stand around it on one side."""
    before, after, target = view.shape(node.inputs[0]), view.shape(node.outputs[0]), view.array(node.inputs[1])
    if before is None or after is None or target is None or target.size != len(after):
        return {}
    behind = range(1, _shared(before[::-1], after[::-1]) + 1)
    pairs = {len(before) - axis: len(after) - axis for axis in behind}
    pairs |= {axis: axis for axis in range(_shared(before, after))}
    varied = _varied(maps, node.inputs[0]), _varied(maps, node.outputs[0])
    return {
        axis: place
        for axis, place in pairs.items()
        if _is_long(before[axis])
        and axis not in varied[0]
        and place not in varied[1]
        and (target[place] in (before[axis], -1) or (target[place] == 0 and place == axis))  # 0 copies the one in place
    }


def _shared(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> int:
    """Return how many sizes are the same from the first on, and known."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1] is not None, zip(before, after, strict=False))
    return sum(1 for _ in same)


# -- norms over trailing axes ----------------------------------------------------------------------


def by_rows(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """Return what the scale spans, and a length for each loose axis in front of those that are normalized over."""
    pinned = by_scale(view, node, rank, maps, known)
    shape = view.shape(node.inputs[0]) or ()
    varied = _varied(maps, node.inputs[0]) | _varied(maps, node.outputs[0])
    rows = range(view.attr(node, "axis", -1) % rank if len(shape) == rank else 0)
    return _lengths(shape, [axis for axis in rows if axis not in varied]) | pinned


# -- what they share -------------------------------------------------------------------------------


def _varied(maps: Maps, value: ir.Value | None) -> set[int]:
    m = maps.get(value) if value is not None else None
    return set() if m is None else set(m.axes)


def _is_long(dim: Dim) -> bool:
    return isinstance(dim, int) and dim > LONG


def _lengths(shape: tuple[Dim, ...], loose: list[int]) -> dict[int, int]:
    """Return a short length that no other axis has for each long axis of ``loose``, by axis counted from the back."""
    fresh: Iterator[int] = (size for size in itertools.count(2) if size not in shape)
    return {axis - len(shape): next(fresh) for axis in loose if _is_long(shape[axis])}
