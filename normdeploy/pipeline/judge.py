"""Parity as a verb uses it: measured, judged, and on failure followed to the module where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from torch import nn

from normdeploy.errors import VerdictError
from normdeploy.parity.bisect import first_divergent_module
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Criteria, Verdict, judge
from normdeploy.report.schema import Report
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec


class ParityError(VerdictError):
    """The deployed model is not the eager one; ``report`` has the evidence, and nothing was written."""

    def __init__(self, verdict: Verdict, report: Report) -> None:
        self.report = report
        super().__init__(
            f"{summary(verdict)}; nothing was written",
            where=begins_in(verdict),
            fix="look at that module first; --k and --floor-eps set the bound, --keep leaves norms as they are",
        )


def verdict_on(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    deployed: Runner,
    model: ir.Model,
    feeds: Sequence[Feed],
    criteria: Criteria | None = None,
) -> Verdict:
    """The verdict on ``deployed``, which runs ``model``; a failed one names the first module that leaves the bound."""
    criteria = criteria or Criteria()
    measured = measure(module, specs, deployed, feeds)
    verdict = judge(measured.measurements, criteria, measured.reference, measured.notes)
    if verdict.passed:
        return verdict
    failed = verdict.failures()[0].measurement.feed
    feed = next(feed for feed in feeds if feed.name == failed)
    return replace(verdict, first_divergent=first_divergent_module(module, specs, model, feed, criteria))


def summary(verdict: Verdict) -> str:
    """One sentence on a verdict that failed."""
    failures = verdict.failures()
    first = failures[0].measurement
    return (
        f"parity failed: {len(failures)} of {len(verdict.judgements)} comparisons leave the bound, "
        f"{first.output!r} on feed {first.feed!r} first; the smallest k that would pass is {verdict.smallest_k:.3g}"
    )


def begins_in(verdict: Verdict) -> str:
    """Where a failed verdict begins, by module name; empty where no module can be named."""
    return "" if verdict.first_divergent is None else f"module {verdict.first_divergent}"
