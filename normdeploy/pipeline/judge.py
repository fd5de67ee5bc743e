"""Parity as a verb uses it: measured, judged, and on failure followed to the module where it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import nn

from normdeploy.errors import MissingKernelError, NormdeployError, VerdictError
from normdeploy.parity.bisect import first_divergent_module
from normdeploy.parity.compare import RuntimeFailureError, Unfolded, measure
from normdeploy.parity.feeds import Feed
from normdeploy.parity.nodes import MOST_MEMORY, OVERFLOWS, named_in, stuck_at, worst_node
from normdeploy.parity.taps import observe, taps_of
from normdeploy.parity.verdict import NOT_RUN, SIXTEEN, Criteria, Measurement, Verdict, judge
from normdeploy.precision import Precision
from normdeploy.report import view
from normdeploy.report.schema import Report
from normdeploy.runtime.isolated import IsolatedRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec

_DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What eager runs in; None leaves the module as it is."""


class ParityError(VerdictError):
    """The deployed model is not the eager one; ``report`` has the evidence, ``folder`` is where it was left."""

    def __init__(self, verdict: Verdict, report: Report, folder: Path | None = None) -> None:
        self.report, self.folder = report, folder
        super().__init__(f"{summary(verdict)}; {_left(folder)}", where=begins_in(verdict), fix=_advice(verdict))


class NotRunError(MissingKernelError):
    """The graph is the eager module, and nothing here runs it; ``report`` and ``folder`` as of ParityError."""

    def __init__(self, verdict: Verdict, report: Report, folder: Path | None) -> None:
        self.report, self.folder = report, folder
        narrow = [fix for dtype, fix in _INSTEAD.items() if dtype in report.precision]
        fix = next(iter(narrow), "deploy in float32, or use another runtime")
        super().__init__(f"{NOT_RUN}: {verdict.not_run}; {_left(folder)}", fix=fix)


_INSTEAD = {
    "bfloat16": "give --precision fp32, and build the engine of that bundle: normdeploy build BUNDLE --precision bf16",
    "float64": "let the factory return the module in float32, as module.float() is, and give its inputs as @f32",
}
"""What works where a kernel is missing, by a type that weights have."""


def _left(folder: Path | None) -> str:
    return "nothing was written" if folder is None else f"no bundle was written; the report is in {folder}"


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
    single: ir.Model | None = None,
    exported: Callable[[], ir.Model] | None = None,
    unfolded: Callable[[], AbstractContextManager[Unfolded]] | None = None,
    follow: bool = True,
    max_memory: int = MOST_MEMORY,
    placement: Placement = CPU,
) -> Verdict:
    """Return the verdict on ``deployed``, which runs ``model``; a failed one names where it begins.

    A model that computes in 16 bits is judged by what eager loses in them. Where ``model`` is None, a plan's graph
    being gone, the artefact is compared with the module itself, and no module can be named. ``options`` are those of
    its session in ONNX Runtime, whose provider then tells the node; of another runtime none is named. ``single`` is the
    float32 graph that ``model`` was rounded from, ``exported`` makes the one before the fold, where each norm still
    stands for itself, ``unfolded`` runs it in the same runtime, ``follow`` a failure to its module. Eager runs where
    ``placement`` says. Where ``deployed`` lacks a kernel, the graph is judged alone.
    """
    criteria, dtype = criteria or Criteria(), _DTYPES[precision]
    measured_by = partial(
        measure, module, specs, feeds=feeds, dtype=dtype, graph=model, single=single, criteria=criteria,
        placement=placement,
    )  # fmt: skip
    not_run = ""
    try:
        measured = measured_by(deployed, unfolded=unfolded)
    except RuntimeFailureError as error:
        raise _with_module(error, module, specs, model) from error
    except MissingKernelError as error:
        measured, not_run = measured_by(None), error.what
        if not measured.measurements:
            raise
    notes = measured.notes if dtype is None else (*measured.notes, f"judged by what eager loses in {precision}")
    verdict = judge(measured.measurements, criteria, measured.reference, notes, measured.misrounded, not_run)
    if model is None or not follow:
        return verdict
    graphs = _Graphs(model, single, exported, options, _placement(deployed))
    return _followed(verdict, module, specs, graphs, feeds, dtype, max_memory)


def verdict_on_plugins(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    model: ir.Model,
    feeds: Sequence[Feed],
    criteria: Criteria | None = None,
    *,
    precision: Precision = "fp32",
    single: ir.Model | None = None,
) -> Verdict | None:
    """Return the verdict on a graph of plugins, in float64 against the module; None where it cannot be run so.

    No runtime here runs it. Where it computes in 16 bits, ``single`` is the float32 graph with the same plugins: that
    one is judged as in float32, and the rounding constant by constant. What fails names its module, as for any graph.
    """
    criteria, dtype = criteria or Criteria(), _DTYPES[precision]
    measured = measure(module, specs, None, feeds, dtype=dtype, graph=model, single=single, criteria=criteria)
    if not measured.measurements:
        return None
    verdict = judge(measured.measurements, criteria, measured.reference, measured.notes, measured.misrounded)
    if verdict.passed:
        return verdict
    return _followed(verdict, module, specs, _Graphs(model, single), feeds, dtype, MOST_MEMORY)


class _Graphs(NamedTuple):
    """The deployed graph, the float32 one that it was rounded from, and what makes the one before the fold.

    ``options`` and ``placement`` are those of its session in ONNX Runtime; no placement where that does not run it.
    """

    deployed: ir.Model
    single: ir.Model | None = None
    exported: Callable[[], ir.Model] | None = None
    options: Mapping[str, str] | None = None
    placement: Placement | None = None


def _placement(deployed: Runner) -> Placement | None:
    return deployed.placement if isinstance(deployed, OnnxRuntimeRunner | IsolatedRunner) else None


def _followed(
    verdict: Verdict,
    module: nn.Module,
    specs: Sequence[TensorSpec],
    graphs: _Graphs,
    feeds: Sequence[Feed],
    dtype: torch.dtype | None,
    max_memory: int,
) -> Verdict:
    """Return ``verdict`` with the module where the graph goes wrong, and the node that the runtime computes worst."""
    by_name = {each.name: each for feed in feeds for each in (feed, feed.instead) if each is not None}
    failures = verdict.failures()
    first = node = None
    if failures:
        failed = failures[0].measurement
        first = _first_module(module, specs, graphs, failed, by_name[failed.feed], verdict.criteria, dtype)
    if verdict.misrounded and first is None:
        first = verdict.misrounded[0].partition(": ")[0]
    runtime = next((each for each in verdict.of("runtime") if each.excused or not each.passed), None)
    ran = graphs.placement
    if runtime is not None and ran is not None and view.part_passed(verdict, "graph") is not False:
        feed = by_name[runtime.measurement.feed]
        try:
            worst = worst_node(graphs.deployed, feed, graphs.options, max_memory=max_memory, placement=ran)
        except NormdeployError:  # it tells what it can, and its failure must not hide the verdict
            worst = None
        node = None if worst is None else str(worst)
        first = first or (worst.module if failures and worst is not None else None)
    return replace(verdict, first_divergent=first, first_node=node)


def _first_module(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    graphs: _Graphs,
    failed: Measurement,
    feed: Feed,
    criteria: Criteria,
    dtype: torch.dtype | None,
) -> str | None:
    """Return the module where what ``failed`` begins; a norm that was folded can only be named before that."""
    graph = graphs.deployed
    narrow = (failed.computes or failed.dtype) in SIXTEEN
    if graphs.single is not None and failed.part == "graph" and not narrow:  # before the rounding
        graph, dtype = graphs.single, torch.float32
    if failed.part == "graph" and graphs.exported is not None:
        with suppress(NormdeployError):  # it tells what it can, and its failure must not hide the verdict
            if first := first_divergent_module(module, specs, graphs.exported(), feed, criteria, dtype=dtype):
                return first
    first = first_divergent_module(module, specs, graph, feed, criteria, dtype=dtype, options=graphs.options)
    if first is None and not failed.deployed.finite:
        return _of_another_shape(module, specs, graph, feed) or None
    return first


def _of_another_shape(module: nn.Module, specs: Sequence[TensorSpec], model: ir.Model, feed: Feed) -> str:
    """Return the first module whose value has another shape in ``model``, or which that cannot run; else empty."""
    observed = observe(module, specs, feed, None)
    once = [name for name, calls in observed.calls().items() if len(calls) == 1]  # of the others the order is not known
    return stuck_at(model, feed, {name: observed.eager[name].shape for name in once}, taps_of(model))


def _with_module(
    error: RuntimeFailureError, module: nn.Module, specs: Sequence[TensorSpec], model: ir.Model | None
) -> RuntimeFailureError:
    """Return ``error`` with the module that it happens in, where that can be told."""
    if model is None:
        return error
    named = _of_another_shape(module, specs, model, error.feed) or named_in(str(error), model)
    if not named:
        return error
    fix = "replace that module, or fix the sizes it depends on in --input"
    return RuntimeFailureError(error.what, where=f"module {named}; {error.where}", fix=fix, feed=error.feed)


def summary(verdict: Verdict) -> str:
    """Return one sentence on a verdict that failed."""
    failures = verdict.failures()
    if not failures and verdict.blind:
        return f"parity cannot be judged: {view.nothing_compared(verdict)}"
    if not failures:
        return f"parity failed by the rounding to 16 bits: {'; '.join(verdict.misrounded)}"
    first = failures[0].measurement
    whose = {"graph": "the graph", "rounding": "the graph, in 16 bits", "runtime": "the runtime"}[first.part]
    graph = sum(failure.measurement.part != "runtime" for failure in failures)
    parts = f"{graph} of the graph, {len(failures) - graph} of the runtime" if graph else "all of the runtime"
    needed = view.sig(verdict.smallest_k)
    return (
        f"parity failed by {whose}: {len(failures)} of {len(verdict.judgements)} comparisons leave the bound "
        f"({parts}), "
        f"{first.output!r} on feed {first.feed!r} first; the smallest k that would pass is {needed}"
    ) + (f"; {noise}" if (noise := view.only_noise(verdict)) else "")


def _advice(verdict: Verdict) -> str:
    if verdict.blind:
        return "look for NaN and infinity in the weights, which loading tells by name, and in the inputs' ranges"
    if verdict.noise:
        return f"leave {' and '.join(verdict.noise)} out of what forward returns: nothing can be held to rounding"
    if f" {OVERFLOWS} " in (verdict.first_node or ""):
        return "deploy in bf16 or fp32, or scale what goes in"
    return "look at that module first; --k and --floor-eps set the bound, --keep leaves norms as they are"


def begins_in(verdict: Verdict) -> str:
    """Return where a failed verdict begins, by module and node; empty where neither can be named."""
    module = "" if verdict.first_divergent is None else f"module {verdict.first_divergent}"
    return ", ".join(part for part in (module, verdict.first_node or "") if part)
