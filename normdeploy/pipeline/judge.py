"""Parity as a verb uses it: measured, judged, and on failure followed to the module where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir
import torch
from torch import nn

from normdeploy.errors import VerdictError
from normdeploy.parity.bisect import first_divergent_module
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Criteria, Verdict, judge
from normdeploy.precision import Precision
from normdeploy.report.schema import Report
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec

_DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What eager runs in; None leaves the module as it is."""


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
    model: ir.Model | None,
    feeds: Sequence[Feed],
    criteria: Criteria | None = None,
    *,
    precision: Precision = "fp32",
    options: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on ``deployed``, which runs ``model``; a failed one names the first module that leaves the bound.

    A model that computes in 16 bits is judged by what eager loses in them. Where ``model`` is None, a plan's graph
    being gone, no module can be named. ``options`` are those of its session.
    """
    criteria, dtype = criteria or Criteria(), _DTYPES[precision]
    measured = measure(module, specs, deployed, feeds, dtype=dtype)
    notes = measured.notes if dtype is None else (*measured.notes, f"judged by what eager loses in {precision}")
    verdict = judge(measured.measurements, criteria, measured.reference, notes)
    if verdict.passed or model is None:
        return verdict
    failed = verdict.failures()[0].measurement.feed
    feed = next(feed for feed in feeds if feed.name == failed)
    first = first_divergent_module(module, specs, model, feed, criteria, dtype=dtype, options=options)
    return replace(verdict, first_divergent=first)


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
