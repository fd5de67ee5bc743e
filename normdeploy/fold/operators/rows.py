"""What a row of the operator table is, and what many rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.plan import Step
from normdeploy.fold.view import Dim, View

Maps = Sequence[AffineMap | None]
"""A map an input or output; None where the value keeps its meaning."""

Up = Callable[[Step, Maps], dict[int, AffineMap]]
"""Maps wanted on the outputs → maps wanted on the inputs, by index (empty: the operator absorbed them)."""

Down = Callable[[Step, Maps], list[AffineMap | None]]
"""Maps still due on the inputs → maps still due on the outputs (None: the operator absorbed it)."""


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """How maps pass one operator, and how that is proven.

    Attributes:
        up: the rule upward; None where nothing passes.
        down: the rule downward; None where nothing passes.
        why: the reason where a direction is missing.
        heavy: whether its arithmetic dominates.
        evaluate: its outputs in float64, from attributes and inputs; None where :mod:`normdeploy.fold.execute` has it.
        shapes: a shape to probe each input with; None where :mod:`normdeploy.fold.shrink` finds them axis by axis.
        draws: inputs that no standard normal numbers probe, by index: made from a generator and the shapes of all.
        linear: whether it adds up products of its inputs, so that an error is measured by what was added up.
    """

    up: Up | None = None
    down: Down | None = None
    why: str = "no affine map passes this operator"
    heavy: bool = False
    evaluate: Callable[..., Sequence[Array]] | None = None
    shapes: Callable[[View, ir.Node], list[Shape]] | None = None
    draws: Mapping[int, Callable[[np.random.Generator, Sequence[Shape]], np.ndarray]] = field(default_factory=dict)
    linear: bool = False


TAKES_SHIFT = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators with a bias."""


def only_first(step: Step, maps: Maps) -> AffineMap:
    """The map on the first value, when it is on no other."""
    first, *others = maps
    if first is None or any(m is not None for m in others):
        raise step.refuse("the map is on another input or output than the data")
    return first


def vector(step: Step, m: AffineMap, axis: int) -> tuple[Array, Array]:
    """Scale and shift of ``m`` as vectors (of length 1 or the axis's size) when it varies over ``axis`` alone."""
    if any(other != axis for other in m.axes):
        raise step.refuse("the map varies over other axes than the channels")
    return m.scale.reshape(-1), m.shift.reshape(-1)


def need_not_over(step: Step, m: AffineMap, axes: Sequence[int]) -> AffineMap:
    """``m`` when it varies over none of ``axes``."""
    if set(m.axes) & set(axes):
        raise step.refuse("the map varies over an axis that is mixed here")
    return m


def unchanged(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """The operator does the same to every element: the map passes as it is."""
    return {0: only_first(step, outs)}


def unchanged_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """As :func:`unchanged`, downward."""
    return [only_first(step, ins), *[None] * (len(step.node.outputs) - 1)]


def both_ways(rule: Callable[[Step, AffineMap, bool], AffineMap]) -> Row:
    """A row from one rule for an operator with one data input and output: ``rule(step, map, upward)``."""
    return Row(
        up=lambda step, outs: {0: rule(step, only_first(step, outs), True)},
        down=lambda step, ins: [
            rule(step, only_first(step, ins), False),
            *[None] * (len(step.node.outputs) - 1),
        ],
    )


def concatenated(step: Step, maps: Maps, sizes: Sequence[Dim], axis: int, rank: int) -> AffineMap:
    """One map for tensors laid side by side along ``axis``, from one map each."""
    full = [AffineMap.identity(rank) if m is None else m for m in maps]
    if all(m.size(axis) == 1 and m.equals(full[0]) for m in full):
        return full[0]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(full):
        raise step.refuse("the sizes along the axis are not fixed")
    extents = [max(m.size(i) for m in full) for i in range(rank)]
    parts = [m.broadcast([*extents[:axis], size, *extents[axis + 1 :]]) for m, size in zip(full, known, strict=True)]
    scale = np.concatenate([part.scale for part in parts], axis=axis)
    return AffineMap(scale, np.concatenate([part.shift for part in parts], axis=axis)).moved(lambda a: a)


def sizes(view: View, value: ir.Value | None, otherwise: int = 2) -> Shape:
    """Return the shape of ``value`` with ``otherwise`` for what is not fixed, to probe it with."""
    return tuple(dim if isinstance(dim, int) else otherwise for dim in view.shape(value) or ())
