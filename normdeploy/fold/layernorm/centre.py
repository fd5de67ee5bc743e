"""Level ``centre``: LayerNorms become RMSNorms, by centring everything that writes into the stream they read.

    LN(x) = gamma ⊙ rms(C x) + beta,   and C x = x where every writer W was replaced by C W

``C`` is a projection over the output features of each writer, so it is an edit of its weights. It is done for
a stream as a whole or not at all: one writer that keeps its mean, or one reader that sees it, refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normdeploy.errors import listed
from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.layernorm.stream import Stream, stream_at
from normdeploy.fold.layernorm.targets import fast_operator_type
from normdeploy.fold.ledger import MEAN_IS_GONE
from normdeploy.fold.levels import Target
from normdeploy.fold.plan import Plan, Step


def has_bias() -> Refused:
    """Return the refusal of a norm that has a bias."""
    return Refused("NF326", "its bias could not go, and an RMSNorm has none")


_NAMED = 3
"""How many of its problems a stream is refused with."""


class Centring(AffineMap):
    """``C``: takes off the mean over its axis. To the proof it is a map whose scale is 1 for every feature."""

    def __call__(self, x: Array) -> Array:
        """Return ``x`` without its mean over the features."""
        (axis,) = self.axes
        centred: Array = x - x.mean(axis=axis, keepdims=True)
        return centred


@dataclass(frozen=True)
class Centred:
    """A stream that may be centred.

    Attributes:
        plan: what centres it.
        norms: the norms that become ``kind`` by it.
        others: norms that read it and stay, because they have a bias.
        kind: the operator type.
        writers: how many nodes write into it.
        copied: bytes of weights that are copied first, because others share them.
    """

    plan: Plan
    norms: tuple[ir.Node, ...]
    others: tuple[ir.Node, ...]
    kind: str
    writers: int
    copied: int

    def __str__(self) -> str:
        copied = f", after a copy of {self.copied / 2**20:.3g} MiB that others share" if self.copied else ""
        return f"{MEAN_IS_GONE}, it is {self.kind}: all {self.writers} writers of its stream are centred{copied}"


def streams(
    state: GraphState, norms: list[ir.Node], target: Target
) -> Iterator[tuple[list[ir.Node], Stream | Refused]]:
    """Return the norms that read each stream, with the stream, or the reason why they read none.

    Where the target has no RMSNorm there is no use in following any.
    """
    try:
        fast_operator_type(state.view.opset, target)
    except Refused as refusal:
        yield norms, refusal
        return
    seen: set[ir.Node] = set()
    for norm in norms:
        if norm in seen:
            continue
        try:
            stream = stream_at(state, norm)
        except Refused as refusal:
            yield [norm], refusal
            continue
        seen.update(stream.norms)
        yield [norm, *(other for other in stream.norms if other is not norm)], stream


def centred(state: GraphState, stream: Stream, target: Target, is_kept: Callable[[ir.Node], bool]) -> Centred:
    """Return the plan that centres ``stream`` and turns its norms, but for those that are kept, into RMSNorms.

    Raises:
        Refused: a writer or a reader forbids it, or no norm of it could become an RMSNorm.
    """
    if stream.problems:
        reasons = list(dict.fromkeys(problem.reason for problem in stream.problems))
        codes = [code for problem in stream.problems for code in problem.codes]
        named = listed(reasons, _NAMED, by="; ")
        raise Refused("NF320", f"its stream cannot be centred: {named}", sums_up=codes)
    asked = [norm for norm in stream.norms if not is_kept(norm)]
    norms, others = (tuple(norm for norm in asked if (len(norm.inputs) == 2) is bare) for bare in (True, False))
    if not norms:
        raise has_bias()
    kind = fast_operator_type(state.view.opset, target)
    plan = Plan(source=norms[0], committed=state.committed, kinds=dict.fromkeys(norms, kind))
    for norm in norms:  # the defaults of another operator are its own affair
        for name, default in (("axis", -1), ("epsilon", 1e-5), ("stash_type", 1)):
            plan.attributes[norm, name] = state.view.attr(norm, name, default)
    for (node, index), axis in stream.weights.items():
        edit = Step(state.view, node, plan).edit(index)
        assert edit is not None, "a stream has constant writers only"
        plan.edits[node, index] = edit.scaled(left=np.zeros(())) if axis is None else edit.without_mean(axis)
    for value, axis in stream.axes.items():
        plan.up[value] = _centring(state, value, axis, stream.size)
    return Centred(plan, norms, others, kind, len(stream.writers), _copied_bytes(plan))


def proven(plan: Plan, square: Callable[[ir.Node], float | None]) -> float | None:
    """Return the residual of the plan's proof, operator by operator, so that few weights are held in float64 at a time.

    Args:
        plan: of :func:`centred`.
        square: proves the plan at one node; None where nothing is to be proven.

    Raises:
        Refused: a weight does not fit its dtype, or a square does not commute.
    """
    for value in plan.up:  # where no operator stands on one side, no square would tell
        if value.is_graph_output() or value.producer() is None:
            raise Refused("NF404", f"validation: {value.name} is an input or output of its graph and would change")
    residuals: list[float] = []
    for node in plan.touched():
        own = [edit for (owner, _), edit in plan.edits.items() if owner is node]
        for edit in own:
            edit.require_storable()
        if (residual := square(node)) is not None:
            residuals.append(residual)
        for edit in own:
            edit.release()
    return max(residuals, default=None)


def _centring(state: GraphState, value: ir.Value, axis: int, size: int) -> Centring:
    rank = state.view.rank(value) or 0
    shape = tuple(size if i == axis else 1 for i in range(rank))
    return Centring(np.ones(shape), np.zeros((1,) * rank))


def _copied_bytes(plan: Plan) -> int:
    """Return bytes of the weights that others read too, which are copied before they are centred."""
    slots = ((node.inputs[index], edit) for (node, index), edit in plan.edits.items())
    return sum(edit.nbytes for value, edit in slots if value is not None and len(value.uses()) > 1)
