"""A bundle judged once more where it runs now, without the module: its graph in float64 is what it should compute.

The graph was proven when it was exported, and a bundle's sha256s say that it is still the same. So another machine, GPU
or provider needs neither the checkpoint nor its code: eager's errors, which say what is allowed, are in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.errors import InputError, NormdeployError
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import errors, is_float
from normdeploy.parity.nodes import worst_node
from normdeploy.parity.verdict import Criteria, Judgement, Measurement, Verdict, judge
from normdeploy.pipeline.engines import read_graph
from normdeploy.pipeline.source import feeds_for
from normdeploy.report.schema import Report
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.runtime.placement import CPU, Placement


@dataclass(frozen=True)
class Case:
    """One output on one feed, in one part of the verdict: what one test is about."""

    part: str
    feed: str
    output: str

    @classmethod
    def of(cls, judgement: Judgement) -> Case:
        """Return the case of a judgement."""
        measured = judgement.measurement
        return cls(measured.part, measured.feed, measured.output)


def cases(report: Report, feeds: Sequence[str]) -> list[Case]:
    """Return what can be judged of a bundle: what its report says of the graph, and the runtime on ``feeds``."""
    if report.parity is None:
        raise InputError("the report holds no parity", where=report.factory, fix="export the bundle again")
    found = [Case.of(judgement) for judgement in report.parity.judgements]
    return list(dict.fromkeys(case for case in found if case.part != "runtime" or case.feed in feeds))


class Again:
    """A bundle that runs here, judged feed by feed.

    Raises what :func:`normdeploy.load_bundle` raises.
    """

    def __init__(self, folder: Path, placement: Placement = CPU, criteria: Criteria | None = None) -> None:
        self.bundle: Bundle = load_bundle(folder, isolated=True, **placement.as_json())
        saved = self.bundle.report.parity
        if saved is None:
            raise InputError("the report holds no parity", where=str(folder), fix="export the bundle again")
        self.saved: Verdict = saved
        self._criteria, self._options = criteria or saved.criteria, self.bundle.manifest.session_options
        self._placement = placement
        self._graph: ir.Model = read_graph(self.bundle.model_path)
        self._exact = Float64Runner(self._graph)
        self._feeds = {feed.name: feed for feed in self.feeds(self.bundle)}
        self._measured: dict[str, list[Measurement]] = {}

    @staticmethod
    def feeds(bundle: Bundle) -> list[Feed]:
        """Return the feeds of the export that can be drawn again: those that need neither data nor the module."""
        drawn = feeds_for(bundle.specs, None, 0)
        return [each for feed in drawn for each in (feed, feed.instead) if each is not None]

    def verdict(self, case: Case) -> Verdict:
        """Return the verdict on one case, with the node to blame where the runtime fails it."""
        if case.part != "runtime":
            return self._judged([each.measurement for each in self.saved.judgements], case)
        verdict = self._judged(self._on(case.feed), case)
        return verdict if verdict.passed else replace(verdict, first_node=self._blamed(case.feed))

    def _judged(self, measured: Sequence[Measurement], case: Case) -> Verdict:
        wanted = (case.part, case.feed, case.output)
        chosen = [each for each in measured if (each.part, each.feed, each.output) == wanted]
        misrounded = self.saved.misrounded if case.part == "rounding" else ()
        verdict = judge(chosen, self._criteria, self.saved.reference, self.saved.notes, misrounded)
        return replace(verdict, first_divergent=self.saved.first_divergent)

    def _on(self, name: str) -> list[Measurement]:
        if name not in self._measured:
            feed = self._feeds[name].arrays
            actual, meant = self.bundle.runner(feed), self._exact(feed)
            saved = [each.measurement for each in self.saved.of("runtime") if each.measurement.feed == name]
            self._measured[name] = [_again(each, actual[each.output], meant[each.output]) for each in saved]
        return self._measured[name]

    def _blamed(self, name: str) -> str | None:
        try:
            worst = worst_node(self._graph, self._feeds[name], self._options, placement=self._placement)
        except NormdeployError:  # it tells what it can
            return None
        return None if worst is None else str(worst)


def _again(saved: Measurement, actual: np.ndarray, meant: np.ndarray) -> Measurement:
    """Return a saved measurement with the errors of today."""
    if actual.shape != meant.shape:
        what = f"{saved.output} has the shape {list(actual.shape)}, {list(meant.shape)} in float64"
        raise InputError(what, where=saved.feed, fix="export the bundle again")
    wanted = meant if is_float(saved.dtype) else meant.astype(actual.dtype)
    reference = "float64" if saved.eager.rms or saved.reference == "float64" else saved.reference
    return replace(saved, deployed=errors(actual, wanted, saved.dtype), reference=reference)
