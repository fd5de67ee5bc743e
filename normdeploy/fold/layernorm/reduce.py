"""Reducing norms, level by level: recognised before any map travels, then without affine, then without mean."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import onnx_ir as ir

from normdeploy.fold.apply import Writer, remove
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.layernorm import affine, centre
from normdeploy.fold.layernorm.recognise import Recogniser
from normdeploy.fold.layernorm.stream import Stream
from normdeploy.fold.layernorm.targets import Target
from normdeploy.fold.ledger import Entry
from normdeploy.fold.operators.norms import tail_of
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan
from normdeploy.fold.search import Territory
from normdeploy.graph import label, operator

Level = Literal["off", "recognise", "affine", "centre"]
"""How far norms are reduced; each level includes the ones before."""

NOT_LINEAR = "it divides by statistics of its own input, which is not linear"
"""What is said of a norm of which there is nothing else to say."""


class Fold(Protocol):
    """What the fold lends: its search for a plan that holds, its proofs, its book."""

    validate: bool
    entries: dict[ir.Node, Entry]
    notes: list[str]
    dropped: list[str]
    proof_seconds: float

    def is_kept(self, node: ir.Node) -> bool:
        """Whether ``node`` is to be left alone."""

    def first_proven(
        self, candidates: Iterable[Plan | Refused], land: Territory
    ) -> tuple[Plan | None, float | None, list[Refused]]:
        """The first plan that holds, with the residual of its proof, and why those before it did not."""

    def square(self, plan: Plan, land: Territory, node: ir.Node) -> float | None:
        """The residual of the proof of ``plan`` at one node; None where nothing is proven."""

    def entry(self, plan: Plan, node: ir.Node, residual: float | None, refusals: list[Refused]) -> Entry:
        """What becomes of ``node`` by ``plan``."""

    def carry_out(self, plan: Plan, writer: Writer, residual: float | None, refusals: list[Refused]) -> None:
        """Change the graph as ``plan`` says."""

    def show(self, name: str) -> None:
        """Dump the graph as it is now, where that was asked for."""


@dataclass(frozen=True)
class Reducer:
    """Reduces the norms of one fold."""

    fold: Fold
    level: Level
    target: Target

    def goes_to(self, level: Level) -> bool:
        """Whether ``level`` was asked for, by itself or by one that includes it."""
        levels = get_args(Level)
        return levels.index(self.level) >= levels.index(level)

    def recognise(self, writer: Writer) -> None:
        """One operator for each norm that is spelled out; maps behind it then fold into it."""
        if not self.goes_to("recognise"):
            return
        recogniser = Recogniser(writer, self.target, self.fold.is_kept, self.fold.validate)
        found = dict(recogniser.run())
        self.fold.entries |= found
        self.fold.proof_seconds += recogniser.seconds
        self.fold.dropped.extend(recogniser.dropped)
        self.fold.notes.extend(_group_norm_notes(found.values(), self.target))
        if found:
            self.fold.show("recognised")

    def reduce(self, land: Territory, writer: Writer) -> None:
        """What is left of the norms when all maps have travelled."""
        if self.goes_to("affine"):
            self._take_tails_off(land, writer)
        if self.goes_to("centre"):
            self._centre(land, writer)

    # -- affine --------------------------------------------------------------------------------

    def _take_tails_off(self, land: Territory, writer: Writer) -> None:
        """Take the affine tails off; what is then the same norm of the same value becomes one."""
        cores: dict[Hashable, ir.Node] = {}
        for node in land.nodes:
            if operator(node) not in affine.AFFINE_NORMS or node.graph is None:
                continue
            if self.fold.is_kept(node):
                self._enter(node, "left", "kept, as asked")
                continue
            self._take_tail_off(land, writer, node)
            twin = cores.setdefault(affine.same_core(land, node) or node, node)
            if twin is not node and not any(out.is_graph_output() for out in node.outputs):
                self._unite(node, twin)

    def _take_tail_off(self, land: Territory, writer: Writer, node: ir.Node) -> None:
        try:
            tail = tail_of(land.view, node)
        except Refused as refusal:
            self._enter(node, "left", refusal.reason, fix=refusal.fix)
            return
        if tail is None:
            affine.drop_bias(land, node)
            return
        plan, residual, refusals = self.fold.first_proven(affine.plans(land, node, tail), land)
        if plan is None:
            self._enter(node, "left", "; ".join(dict.fromkeys(refusal.reason for refusal in refusals)))
            return
        entry = self.fold.entry(plan, node, residual, refusals)
        self.fold.carry_out(plan, writer, residual, refusals)
        affine.drop_bias(land, node)
        self._add(node, replace(entry, outcome="reduced", reason="its scale and bias are gone"))

    def _unite(self, node: ir.Node, twin: ir.Node) -> None:
        node.outputs[0].replace_all_uses_with(twin.outputs[0])
        remove(node)
        self.fold.entries[node] = replace(self.fold.entries[node], outcome="composed", into=(label(twin),))

    # -- centre --------------------------------------------------------------------------------

    def _centre(self, land: Territory, writer: Writer) -> None:
        """LayerNorms become RMSNorms, stream by stream; all are proven before the first is changed."""
        norms = [node for node in land.graph if operator(node) == "LayerNormalization" and not self.fold.is_kept(node)]
        ready: list[tuple[centre.Centred, float | None]] = []
        for readers, stream in centre.streams(land, norms, self.target):
            try:
                ready.append(self._proven(land, stream))
            except Refused as refusal:
                for norm in readers:
                    self._enter(norm, "left", refusal.reason, fix=refusal.fix)
        for found, residual in ready:
            writer.carry_out(found.plan)
            for norm in found.norms:
                self._enter(norm, "reduced", str(found), residual=residual)
            for norm in found.others:
                self._enter(norm, "left", centre.HAS_BIAS)
            self.fold.show(label(found.plan.source))

    def _proven(self, land: Territory, stream: Stream | Refused) -> tuple[centre.Centred, float | None]:
        if isinstance(stream, Refused):
            raise stream
        found = centre.centred(land, stream, self.target, self.fold.is_kept)
        try:
            return found, centre.proven(found.plan, lambda node: self.fold.square(found.plan, land, node))
        except Refused as refusal:
            dropped = f"{label(found.plan.source)}: {refusal.reason}"
            if "validation" in dropped and dropped not in self.fold.dropped:  # the border of the model, not a square
                self.fold.dropped.append(dropped)
            raise

    # -- the book ------------------------------------------------------------------------------

    def _enter(
        self,
        node: ir.Node,
        outcome: Literal["reduced", "left"],
        reason: str,
        *,
        fix: str = "",
        residual: float | None = None,
    ) -> None:
        self._add(node, replace(blank(node), outcome=outcome, reason=reason, fix=fix, residual=residual))

    def _add(self, node: ir.Node, entry: Entry) -> None:
        """What became of a norm, behind what was said of it before: one that was reduced stays so."""
        before = self.fold.entries.get(node)
        if before is not None:
            said = [e.reason for e in (before, entry) if e.reason and e.reason != NOT_LINEAR]
            proofs = [e.residual for e in (before, entry) if e.residual is not None]
            entry = replace(
                before,
                outcome="reduced" if "reduced" in (before.outcome, entry.outcome) else entry.outcome,
                into=tuple(dict.fromkeys(before.into + entry.into)),
                through=tuple(dict.fromkeys(before.through + entry.through)),
                ulps=before.ulps if entry.ulps is None else entry.ulps,
                residual=max(proofs, default=None),
                reason="; ".join(said) or before.reason,
                fix=entry.fix or before.fix,
            )
        self.fold.entries[node] = entry


def blank(node: ir.Node) -> Entry:
    """An entry that says nothing of ``node`` yet."""
    return Entry(label(node), str(node.name), operator(node), states(node).norm, "left")


def _group_norm_notes(entries: Iterable[Entry], target: Target) -> list[str]:
    """What whoever runs a GroupNormalization must know of ONNX Runtime; folding for that one writes none."""
    written = [entry.module for entry in entries if entry.kind == "GroupNormalization" and entry.outcome == "reduced"]
    if not written or target != "onnx":
        return []
    more = f" and {len(written) - 1} more" if len(written) > 1 else ""
    return [
        f"{written[0]}{more}: now GroupNormalization, which ONNX Runtime on the CPU computes as E[x²] - E[x]² and so "
        "loses groups with a large mean: fold for the target onnxruntime to run it there"
    ]
