"""Reducing norms, level by level: recognised before any map travels, then without affine, then without mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import get_args

import onnx_ir as ir

from normdeploy.errors import listed
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.layernorm import affine, centre, fused
from normdeploy.fold.layernorm.recognise import Recogniser
from normdeploy.fold.layernorm.region import Norm
from normdeploy.fold.layernorm.stream import Stream
from normdeploy.fold.levels import Level, Target
from normdeploy.fold.operators.norms import tail_of
from normdeploy.fold.record import AS_ASKED
from normdeploy.fold.rewrite import Writer
from normdeploy.fold.session import Session
from normdeploy.graph import label, operator


@dataclass(frozen=True)
class Reducer:
    """Reduces the norms of one fold; ``joining`` are those of the present graph that runtimes may join with a sum."""

    session: Session
    level: Level
    target: Target
    joining: list[ir.Node] = field(default_factory=list)

    def goes_to(self, level: Level) -> bool:
        """Return True if ``level`` was asked for, by itself or by one that includes it."""
        levels = get_args(Level)
        return levels.index(self.level) >= levels.index(level)

    def recognise(self, writer: Writer) -> bool:
        """Write one operator for each norm that is spelled out; maps behind it then fold into it. Return if any was.

        What the opset has no operator for is spelled as runtimes know it.
        """
        if not self.goes_to("recognise"):
            return False
        recogniser = Recogniser(writer, self.target, self.session)
        written = recogniser.run()
        self.joining.extend(recogniser.joining)
        self.session.record.note("NF415", _respelled(written))
        self.session.record.note("NF411", _group_norm_notes(written, self.target))
        if written:
            self.session.show("recognised")
        return bool(written)

    def tails(self, view: View, nodes: Iterable[ir.Node]) -> frozenset[ir.Node]:
        """Return the scales and biases by which who runs the model knows the norms that stay spelled out."""
        return fused.tails(view, nodes) if self.target in fused.RUNTIMES else frozenset()

    def reduce(self, state: GraphState, writer: Writer) -> None:
        """Reduce what is left of the norms when all maps have travelled."""
        if self.target in fused.RUNTIMES:  # not before: the sum may have become one convolution
            self.session.record.note("NF421", fused.notes(state.view, self.joining))
        self.joining.clear()
        if self.goes_to("affine"):
            self._take_tails_off(state, writer)
        if self.goes_to("centre"):
            self._centre(state, writer)

    # -- affine --------------------------------------------------------------------------------

    def _take_tails_off(self, state: GraphState, writer: Writer) -> None:
        """Take the affine tails off; what is then the same norm of the same value becomes one."""
        cores: dict[Hashable, ir.Node] = {}
        for node in state.nodes:
            if operator(node) not in affine.AFFINE_NORMS or node.graph is None:
                continue
            if self.session.is_kept(node):
                self.session.record.leave_norm(node, AS_ASKED)
                continue
            self._take_tail_off(state, writer, node)
            twin = cores.setdefault(affine.same_core(state, node) or node, node)
            if twin is not node and not any(out.is_graph_output() for out in node.outputs):
                writer.bypass(node, twin.outputs[0])
                self.session.record.unite(node, twin)

    def _take_tail_off(self, state: GraphState, writer: Writer, node: ir.Node) -> None:
        try:
            tail = tail_of(state.view, node)
        except Refused as refusal:
            self.session.record.leave_norm(node, refusal)
            return
        if tail is None:
            _drop_zero_bias(state, writer, node)
            return
        plan, residual, refusals = self.session.first_proven(affine.plans(state, node, tail), state)
        if plan is None:
            self.session.record.leave_norm(node, *refusals)
            return
        entry = self.session.record.entry(plan, node, residual, refusals)
        self.session.carry_out(plan, writer, residual, refusals)
        _drop_zero_bias(state, writer, node)
        self.session.record.take_tail_off(node, entry)

    # -- centre --------------------------------------------------------------------------------

    def _centre(self, state: GraphState, writer: Writer) -> None:
        """Make RMSNorms of LayerNorms, stream by stream; all are proven before the first is changed."""
        norms = [
            node for node in state.graph if operator(node) == "LayerNormalization" and not self.session.is_kept(node)
        ]
        ready: list[tuple[centre.Centred, float | None]] = []
        for readers, stream in centre.streams(state, norms, self.target):
            try:
                ready.append(self._proven(state, stream))
            except Refused as refusal:
                for norm in readers:
                    self.session.record.leave_norm(norm, refusal)
        for found, residual in ready:
            writer.carry_out(found.plan)
            for norm in found.norms:
                self.session.record.reduce_norm(norm, str(found), residual)
            for norm in found.others:
                self.session.record.leave_norm(norm, centre.has_bias())
            self.session.show(label(found.plan.source))

    def _proven(self, state: GraphState, stream: Stream | Refused) -> tuple[centre.Centred, float | None]:
        if isinstance(stream, Refused):
            raise stream
        found = centre.centred(state, stream, self.target, self.session.is_kept)
        try:
            return found, centre.proven(found.plan, lambda node: self.session.square(found.plan, state, node))
        except Refused as refusal:
            if refusal.is_failed_proof:  # the border of the model, not a square
                self.session.record.drop(found.plan.source, refusal)
            raise


def _drop_zero_bias(state: GraphState, writer: Writer, node: ir.Node) -> None:
    if affine.has_zero_bias(state, node):
        writer.drop_last_input(node)


def _respelled(written: Iterable[Norm]) -> list[str]:
    kinds = Counter(norm.kind for norm in written if norm.missing is not None)
    return [f"spelled as runtimes know it: {count} {kind}" for kind, count in kinds.items()]


def _group_norm_notes(written: Iterable[Norm], target: Target) -> list[str]:
    """Return what whoever runs a GroupNormalization must know of ONNX Runtime; folding for that one writes none."""
    names = [label(norm.end) for norm in written if norm.kind == "GroupNormalization"]
    if not names or target != "onnx":
        return []
    return [
        f"{listed(names, 1)}: now GroupNormalization, which ONNX Runtime on the CPU computes as E[x²] - E[x]² and so "
        "loses groups with a large mean: fold for the target onnxruntime to run it there"
    ]
