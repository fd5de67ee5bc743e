"""The record of a fold: what became of each map and norm, and why. Nothing else writes entries of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.ledger import KEPT, Entry, Ledger, Note
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan
from normdeploy.graph import label, operator

NOT_LINEAR = Refused("NF302", "it divides by statistics of its own input, which is not linear")
"""What is said of a norm of which there is nothing else to say."""
NOT_CONSTANT = Refused("NF101", "its statistics are not constant")
AS_ASKED = Refused(KEPT, "kept, as asked")


@dataclass
class Record:
    """What became of every node of the given model.

    Of the maps that stay, by their nodes in the given model: ``joined`` says for a map which other took it in,
    ``biases`` how many Adds of the given model stand in one. ``given`` says of a node in whose place it stands.
    """

    entries: dict[ir.Node, Entry] = field(default_factory=dict)
    joined: dict[ir.Node, ir.Node] = field(default_factory=dict)
    given: dict[ir.Node, ir.Node] = field(default_factory=dict)
    biases: dict[ir.Node, int] = field(default_factory=dict)
    notes: dict[Note, None] = field(default_factory=dict)
    dropped: dict[Note, None] = field(default_factory=dict)

    def note(self, code: str, texts: Iterable[str]) -> None:
        """Add notes of one kind, each once."""
        self.notes |= dict.fromkeys(Note(code, text) for text in texts)

    def drop(self, source: ir.Node, refusal: Refused) -> None:
        """Note a proof that failed."""
        self.dropped[Note(refusal.codes[0], f"{label(source)}: {refusal.reason}")] = None

    # -- maps ----------------------------------------------------------------------------------

    def leave(self, node: ir.Node, refusals: Sequence[Refused]) -> None:
        """Enter that ``node`` is left, where nothing is said of it yet."""
        self.entries.setdefault(self._given(node), replace(blank(self._given(node)), **_why(refusals)))

    def go_with_weights(self, node: ir.Node) -> None:
        """Enter that ``node``, a map of constants, is part of the weights that it was computed for."""
        self.entries[self._given(node)] = replace(blank(self._given(node)), outcome="folded")

    def forget(self, node: ir.Node) -> None:
        """Take back what was said of ``node``: it is looked at anew."""
        self.entries.pop(node, None)

    def begin(
        self, plan: Plan, maps: dict[ir.Node, AffineMap], residual: float | None, refusals: list[Refused]
    ) -> None:
        """Enter what ``plan`` does to each of its maps; before it is carried out, while they are there to be asked."""
        entries = {node: self.entry(plan, node, residual, refusals) for node in plan.remainders}
        if self._leaves_only_biases(plan, maps):
            entries = {node: replace(entry, outcome="folded", **_why(())) for node, entry in entries.items()}
        stays = [node for node, rest in plan.remainders.items() if rest is not None]
        for node, entry in entries.items():
            if node not in stays or node is plan.source:
                self.entries[self._given(node)] = entry
            for end in stays:
                if node is not end:
                    self.joined[self._given(node)] = self._given(end)

    def succeed(self, node: ir.Node, new: ir.Node) -> None:
        """Note that ``new`` stands in the place of ``node`` from now on."""
        self.given[new] = self._given(node)

    def merge(self, total: ir.Node, into: ir.Node, maps: Iterable[ir.Node], residual: float | None) -> None:
        """Enter that ``maps``, branches of the sum ``total``, went into the convolution ``into``."""
        for node in map(self._given, maps):
            entry = replace(blank(node), outcome="folded", into=(label(into),), through=(operator(total),))
            self.entries[node] = replace(entry, residual=residual)

    def entry(self, plan: Plan, node: ir.Node, residual: float | None, refusals: list[Refused]) -> Entry:
        """Return what becomes of ``node`` by ``plan``."""
        left = plan.remainders.get(plan.source)
        ulps = max((edit.ulps() for edit in plan.edits.values() if edit.original is not None), default=None)
        ends = (end for end, rest in plan.remainders.items() if rest is not None and end is not plan.source)
        stays = [label(self._given(end)) for end in ends]
        why = _why(refusals if left is not None else ())
        reason = f"its shift stays as one Add: {why['reason']}" if why["reason"] else ""
        return replace(
            blank(self._given(node)),
            outcome="reduced" if left is not None else "composed" if stays else "folded",
            into=tuple(dict.fromkeys([*map(label, plan.into), *stays])),
            through=tuple(dict.fromkeys(operator(step) for step in plan.through)),
            ulps=ulps,
            residual=residual,
            reason=reason,
            fix=why["fix"],
            codes=why["codes"],
        )

    def _leaves_only_biases(self, plan: Plan, maps: dict[ir.Node, AffineMap]) -> bool:
        """Return True if no more stays than the Adds that the given model had here: biases of products, with other
        numbers.
        """
        stays = {node: rest for node, rest in plan.remainders.items() if rest is not None}
        adds = sum(
            1 if node in maps and maps[node].scales_nothing else self.biases.get(self._given(node), 0)
            for node in plan.remainders
        )
        each = adds if len(stays) == 1 else int(adds >= len(stays))
        self.biases |= {self._given(node): each for node in stays}
        return len(stays) <= adds and all(rest.scales_nothing for rest in stays.values())

    def _given(self, node: ir.Node) -> ir.Node:
        """Return the node of the given model that ``node`` is, or in whose place it stands."""
        return self.given.get(node, node)

    # -- norms ---------------------------------------------------------------------------------

    def leave_norm(self, node: ir.Node, *refusals: Refused) -> None:
        """Enter why a norm stays, behind what was said of it before."""
        self._add(node, replace(blank(node), **_why(refusals)))

    def reduce_norm(self, node: ir.Node, became: str, residual: float | None) -> None:
        """Enter what a norm became, behind what was said of it before."""
        self._add(node, replace(blank(node), outcome="reduced", reason=became, residual=residual))

    def take_tail_off(self, node: ir.Node, entry: Entry) -> None:
        """Enter that a norm lost its scale and bias, as the ``entry`` of the plan for it says."""
        self._add(node, replace(entry, outcome="reduced", reason="its scale and bias are gone", codes=()))

    def _add(self, node: ir.Node, entry: Entry) -> None:
        """Enter what became of a norm, behind what was said of it before: one that was reduced stays so."""
        before = self.entries.get(node)
        if before is not None:
            said = [e for e in (before, entry) if e.reason and e.reason != NOT_LINEAR.reason] or [before]
            proofs = [e.residual for e in (before, entry) if e.residual is not None]
            entry = replace(
                before,
                outcome="reduced" if "reduced" in (before.outcome, entry.outcome) else entry.outcome,
                into=tuple(dict.fromkeys(before.into + entry.into)),
                through=tuple(dict.fromkeys(before.through + entry.through)),
                ulps=before.ulps if entry.ulps is None else entry.ulps,
                residual=max(proofs, default=None),
                reason="; ".join(each.reason for each in said),
                fix=entry.fix or before.fix,
                codes=tuple(dict.fromkeys(code for each in said for code in each.codes)),
            )
        self.entries[node] = entry

    def unite(self, node: ir.Node, twin: ir.Node) -> None:
        """Enter that the norm ``node`` became one with ``twin``."""
        self.entries[node] = replace(self.entries[node], outcome="composed", into=(label(twin),))

    def recognised(self, node: ir.Node, end: ir.Node, kind: str, operators: int, residual: float | None) -> None:
        """Enter that so many ``operators``, up to ``end``, became the one norm ``node``."""
        reason = f"its {operators} operators are one {kind}"
        entry = Entry(label(end), str(end.name), kind, True, "reduced", residual=residual, reason=reason)
        self.entries[node] = entry

    def not_recognised(self, end: ir.Node, kind: str, refusal: Refused) -> None:
        """Enter why what ends in ``end`` and looks like a norm is none."""
        self.entries[end] = Entry(label(end), str(end.name), kind, True, "left", **_why([refusal]))

    # -- the ledger ----------------------------------------------------------------------------

    def ledger(self, seconds: float, proof_seconds: float) -> Ledger:
        """Return all entries, maps that joined others resolved to where those went."""
        entries = tuple(self._resolved(node, entry) for node, entry in self.entries.items())
        return Ledger(entries, tuple(self.notes), seconds, proof_seconds, tuple(self.dropped))

    def _resolved(self, node: ir.Node, entry: Entry) -> Entry:
        seen = {node}
        while entry.outcome == "composed" and (end := self.joined.get(node)) is not None and end not in seen:
            seen.add(end)
            node = end
            final = self.entries.get(end)
            if final is not None and final.outcome == "folded":
                return replace(entry, outcome="folded", into=final.into, through=entry.through + final.through)
        return entry


def blank(node: ir.Node) -> Entry:
    """Return an entry that says nothing of ``node`` yet."""
    return Entry(label(node), str(node.name), operator(node), states(node).norm, "left")


class _Why(TypedDict):
    """What an entry says of refusals."""

    reason: str
    fix: str
    codes: tuple[str, ...]


def _why(refusals: Iterable[Refused]) -> _Why:
    """Return all reasons, all that would help, and all codes, each once."""
    refusals = list(refusals)
    reasons = dict.fromkeys(refusal.reason for refusal in refusals)
    fixes = dict.fromkeys(refusal.fix for refusal in refusals if refusal.fix)
    codes = dict.fromkeys(code for refusal in refusals for code in refusal.codes)
    return {"reason": "; ".join(reasons), "fix": "; ".join(fixes), "codes": tuple(codes)}
