"""One fold: what was asked for, what is proven of it, and how a plan that holds is carried out and recorded."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.disk import disk_errors
from normdeploy.errors import InputError
from normdeploy.fold import merge
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.plan import Plan
from normdeploy.fold.proof import commute
from normdeploy.fold.ranges import growth
from normdeploy.fold.record import Record
from normdeploy.fold.rewrite import Writer
from normdeploy.fold.weights import require_narrow, require_storable
from normdeploy.graph import label

_LARGE = 2**30
"""Bytes of weights above which a dumped graph has them beside it."""


@dataclass
class Session:
    """What all graphs of one fold share.

    Attributes:
        model: the model that is changed.
        keep: patterns of names of norms to leave alone.
        validate: prove each plan before it is carried out.
        dump: a folder for the graph of each step.
        record: what became of everything.
        narrow: the 16-bit type that float32 tensors will be converted to; None where they stay.
        grown: how many times larger values have become, see :mod:`normdeploy.fold.ranges`.
        proof_seconds: how long the proofs took.
        steps: how many graphs were dumped.
    """

    model: ir.Model
    keep: tuple[str, ...]
    validate: bool
    dump: Path | None
    record: Record = field(default_factory=Record)
    narrow: ir.DataType | None = None
    grown: dict[ir.Value, float] = field(default_factory=dict)
    proof_seconds: float = 0.0
    steps: int = 0

    def is_kept(self, node: ir.Node) -> bool:
        """Return whether a pattern names ``node``."""
        return any(fnmatch.fnmatchcase(label(node), pattern) for pattern in self.keep)

    # -- proofs --------------------------------------------------------------------------------

    def first_proven(
        self, candidates: Iterable[Plan | Refused], state: GraphState
    ) -> tuple[Plan | None, float | None, list[Refused]]:
        """Return the first plan that holds, with the residual of its proof, and why those before it did not."""
        refusals: list[Refused] = []
        for candidate in candidates:
            try:
                if isinstance(candidate, Refused):
                    raise candidate
                return candidate, self._proven(candidate, state), refusals
            except Refused as refusal:
                refusals.append(refusal.with_traceback(None))  # whose frames hold the weights of the plan
        return None, None, refusals

    def _proven(self, plan: Plan, state: GraphState) -> float | None:
        """Return the residual of the plan's proof; a refusal where rounding or the proof fails."""
        plan.growth = growth(plan, state, self.grown, self.narrow)
        notes = require_storable(plan, state.view, proven=self.validate, narrow=self.narrow)
        residual = None
        if self.validate:
            with self.proving(plan.source):
                residual = commute.residual(plan, state.view, state.committed)
        self.record.note("NF410", notes)
        return residual

    def square(self, plan: Plan, state: GraphState, node: ir.Node) -> float | None:
        """Return the residual of the proof of ``plan`` at one node, None where none is asked for; it may be refused."""
        if not self.validate:
            return None
        with self.proving(plan.source):
            return commute.square(plan, state.view, state.committed, node)

    def merger(self, state: GraphState, found: merge.Merger) -> float | None:
        """Return the residual of the proof of a merger; a refusal where rounding or the proof fails."""
        for edit in (found.weight, found.bias):
            if edit is not None and self.narrow is not None:
                require_narrow(edit, self.narrow)
        if not self.validate:
            return None
        with self.proving(found.total):
            return merge.residual(state, found)

    @contextmanager
    def proving(self, source: ir.Node) -> Iterator[None]:
        """Take the time of a proof, and note one that fails."""
        begin = time.perf_counter()
        try:
            yield
        except Refused as refusal:
            if refusal.is_failed_proof:
                self.record.drop(source, refusal)
            raise
        finally:
            self.proof_seconds += time.perf_counter() - begin

    # -- steps ---------------------------------------------------------------------------------

    def carry_out(self, plan: Plan, writer: Writer, residual: float | None, refusals: list[Refused]) -> None:
        """Change the graph as ``plan`` says, and record what became of every map it took."""
        self.record.begin(plan, writer.state.maps, residual, refusals)
        writer.carry_out(plan)
        self.grown |= plan.growth
        for node, rest in plan.remainders.items():
            if rest is not None:
                self._succeeded(plan, node, writer.state)
        self.show(label(plan.source))

    def _succeeded(self, plan: Plan, node: ir.Node, state: GraphState) -> None:
        """Record what stands in the place of ``node``; of a Mul and an Add the first stands for what joined it."""
        new = state.successors[node]
        self.record.succeed(node, new)
        if (first := state.partners.get(new)) is not None:
            self.record.succeed(plan.source, first)

    def show(self, name: str) -> None:
        """Dump the graph as it is now, where that was asked for."""
        if self.dump is None:
            return
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        name = f"{self.steps:03d}-{safe}.onnx"
        weights = (value.const_value for value in self.model.graph.initializers.values())
        size = sum(weight.nbytes for weight in weights if weight is not None)
        if (self.dump / name).exists():
            what = "another fold writes to the folder for the graphs: their steps would mix"
            raise InputError(what, where=str(self.dump / name), fix="choose another --dump")
        with disk_errors(self.dump / name, "the graph of a step"):
            onnxfile.save(self.model, self.dump / name, external_data=f"{name}.data" if size > _LARGE else None)
        self.steps += 1
