"""What a row of the operator table states, and what many rules share.

A row is all that the fold knows of an operator; nothing of it stands anywhere else. Where a row says nothing, the
operator is opaque: no map passes it, and no plan that touches it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import VARIED, Channels
from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators.sizes import Probing
from normdeploy.fold.plan import Step
from normdeploy.graph import operator

Maps = Sequence[AffineMap | None]
"""A map an input or output; None where the value keeps its meaning."""

Up = Callable[[Step, Maps], dict[int, AffineMap]]
"""Maps wanted on the outputs → maps wanted on the inputs, by index (empty: the operator absorbed them)."""

Down = Callable[[Step, Maps], list[AffineMap | None]]
"""Maps still due on the inputs → maps still due on the outputs (None: the operator absorbed it)."""

Evaluate = Callable[..., Array | Sequence[np.ndarray]]
"""(attributes by name, input 0, input 1, ...; None for one that is absent) → the output, or all of them, in float64."""

Absolute = Callable[[dict[str, Any], list[np.ndarray | None]], tuple[dict[str, Any], list[np.ndarray | None]]]
"""Attributes and inputs, these by their sizes → with them the operator adds up and takes nothing from anything."""


OPAQUE = ("NF001", "no affine map passes this operator")
"""The code and the reason of a refusal where nothing more is known."""


@dataclass(frozen=True)
class Feature:
    """An input of an operator that writes features: which, along which axis, and whether it is only added to them."""

    index: int
    axis: int
    added: bool = False


Written = Iterator[Feature]
"""All inputs that must be centred for the features that an operator writes to have no mean."""


Parameters = Mapping[int | None, Callable[[Step], Channels]]
"""Inputs that may be weights or biases, by index (None: any other), with what tells their output channels apart."""

_PLAIN = Probing()


class Nature(Enum):
    """What the proof may conclude from a finite number of probes, and how it measures an error."""

    LINEAR = "linear"
    """Affine in its data: errors are measured against what was added up."""
    HOMOGENEOUS = "positively homogeneous"
    """``f(s x) = s f(x)`` for ``s > 0``, with a kink at 0: only such maps may be around it."""
    MONOTONE = "monotone"
    """It selects by order: no negative scale may be around it."""
    OTHER = "other"
    """It is probed at random values, at exact zeros and around the breakpoint of the map."""


class Magnitude(Enum):
    """How large what an operator makes is, beside what it reads: of that float16 has a largest."""

    KEPT = "kept"
    """Each element that it makes is one that it reads, or 0: what is too large shows, or is not asked for."""
    BOUNDED = "bounded"
    """It makes nothing larger than the largest that it reads, but for what an interpolation overshoots."""
    FREE = "free"


class Shift(Enum):
    """What becomes of a shift that comes up to an operator, as a sum asks that looks for a branch to send it to."""

    TAKEN = "taken"
    """It has a bias."""
    PASSED = "passed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Row:
    """All that is known of an operator.

    Attributes:
        names: full names of the operators that it holds for, see :func:`normdeploy.graph.operator`.
        up, down: how maps pass it.
        why: the code and the reason where a direction is missing.
        since, until: the first and the last opset of its domain at which the row holds; None: to this day.
        nature: linear, positively homogeneous or monotone in its data.
        heavy: its arithmetic dominates: no plan may add one.
        norm: the ledger calls it a norm.
        map: reads the affine map that a node is, on the one input that is not constant; None where it is none.
        magnitude: how large what it makes is.
        shift: whether a shift that comes up to it is taken, passed or stopped.
        parameters: its weights and biases by input, each with the axes of it that tell output channels apart.
        evaluate: runs it in float64, by formula; None: ``onnx.reference`` does.
        absolute: how it runs on absolute values, to measure what it added up; by default on all of its inputs.
        any_dtype: inputs that ``evaluate`` takes in any float dtype: a large weight is not converted as a whole.
        probing: how large its probes are, which sizes are pinned, and what its integer inputs hold.
        centre: where it writes features: the weights to centre, and over which axis.
        carries: the features of a residual stream pass it as a map over them does.
        shape_only: it reads the shape of its input alone, so all values of one shape are the same to it.
        sums: it adds its inputs up, so that parallel convolutions may be merged in its place.
        merges: it is a convolution, into which parallel ones may be merged.
        spare_outputs: outputs behind the first are what it computes anyway; one that nothing reads means nothing.
    """

    names: tuple[str, ...]
    up: Up | None = None
    down: Down | None = None
    why: tuple[str, str] = OPAQUE
    since: int = 1
    until: int | None = None
    nature: Nature = Nature.OTHER
    heavy: bool = False
    norm: bool = False
    map: Callable[..., AffineMap | None] | None = None
    magnitude: Magnitude = Magnitude.FREE
    shift: Shift = Shift.PASSED
    parameters: Parameters = field(default_factory=dict)
    evaluate: Evaluate | None = None
    absolute: Absolute | None = None
    any_dtype: tuple[int, ...] = ()
    probing: Probing = _PLAIN
    centre: Callable[[Step, int], Written] | None = None
    carries: bool = False
    shape_only: bool = False
    sums: bool = False
    merges: bool = False
    spare_outputs: bool = False


def along(*axes: int) -> Callable[[Step], Channels]:
    """Return what a row says of a parameter whose output channels stand along ``axes``; of none: it is one channel."""
    channels = Channels(axes)
    return lambda step: channels


def all_but(*axes: int) -> Callable[[Step], Channels]:
    """Do as :func:`along` for all other axes; of none: each element is a channel."""
    channels = Channels(axes, others=True)
    return lambda step: channels


TABLE: dict[str, Row] = {}
"""Every row by the full name of its operator; :mod:`.table` fills it."""


def row_of(view: View, node: ir.Node) -> Row | None:
    """Return the row of the operator that ``node`` calls, where it holds at the opset in force.

    Raises:
        Refused: an attribute is a parameter of the function that the node stands in, so it is not known; or the node
            is part of a GELU.
    """
    view.require_no_gelu(node)
    row = TABLE.get(operator(node))
    if row is None or view.opset < row.since or (row.until is not None and view.opset > row.until):
        return None
    view.require_known_attributes(node)
    return row


def states(node: ir.Node) -> Row:
    """Return what the table states of ``node`` whatever its opset is; nothing of an operator that has no row."""
    return TABLE.get(operator(node), _NOTHING)


_NOTHING = Row(())


def only_first(step: Step, maps: Maps) -> AffineMap:
    """Return the map on the first value, when it is on no other."""
    first, *others = maps
    if first is None or any(m is not None for m in others):
        raise step.refuse("NF011", "the map is on another input or output than the data")
    return first


def vector(step: Step, m: AffineMap, axis: int) -> tuple[Array, Array]:
    """Return scale and shift of ``m`` as vectors (of size 1 or that of ``axis``); it must vary over no other axis."""
    if any(other != axis for other in m.axes):
        raise step.refuse("NF015", "the map varies over other axes than the channels")
    return m.scale.reshape(-1), m.shift.reshape(-1)


def require_not_over(step: Step, m: AffineMap, axes: Sequence[int]) -> AffineMap:
    """Return ``m`` when it varies over none of ``axes``."""
    if set(m.axes) & set(axes):
        raise step.refuse("NF015", "the map varies over an axis that is mixed here")
    return m


def unchanged(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass the map as it is: the operator does the same to every element."""
    return {0: only_first(step, outs)}


def unchanged_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Do as :func:`unchanged`, downward."""
    return [only_first(step, ins), *[None] * (len(step.node.outputs) - 1)]


def both_ways(rule: Callable[[Step, AffineMap, bool], AffineMap]) -> dict[str, Any]:
    """Return ``up`` and ``down`` of an operator with one data input and output, by one ``rule(step, map, upward)``."""

    def up(step: Step, outs: Maps) -> dict[int, AffineMap]:
        return {0: rule(step, only_first(step, outs), True)}

    def down(step: Step, ins: Maps) -> list[AffineMap | None]:
        return [rule(step, only_first(step, ins), False), *[None] * (len(step.node.outputs) - 1)]

    return {"up": up, "down": down}


MOVES: dict[str, Any] = {
    "nature": Nature.LINEAR, "magnitude": Magnitude.KEPT, "parameters": {None: lambda step: VARIED},
}  # fmt: skip
"""What a row states of an operator that moves elements and computes nothing."""


def concatenated(step: Step, maps: Maps, sizes: Sequence[Dim], axis: int, rank: int) -> AffineMap:
    """Return one map for tensors laid side by side along ``axis``, from one map each."""
    full = [AffineMap.identity(rank) if m is None else m for m in maps]
    if all(m.size(axis) == 1 and m.equals(full[0]) for m in full):
        return full[0]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(full):
        raise step.refuse("NF014", "the sizes along the axis are not fixed")
    extents = [max(m.size(i) for m in full) for i in range(rank)]
    parts = [m.broadcast([*extents[:axis], size, *extents[axis + 1 :]]) for m, size in zip(full, known, strict=True)]
    scale = np.concatenate([part.scale for part in parts], axis=axis)
    return AffineMap(scale, np.concatenate([part.shift for part in parts], axis=axis)).moved(lambda a: a)
