"""``verify`` and ``bench``: a deployed model again, beside the eager one it came from."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from torch import nn

from normdeploy.bench.stats import Comparison, Latency, latency
from normdeploy.bench.timers import interleave, timed
from normdeploy.bundle import Bundle
from normdeploy.checkpoint import Checkpoint
from normdeploy.errors import InputError
from normdeploy.export import OPSETS, to_graph
from normdeploy.parity.compare import Unfolded
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Criteria, Verdict
from normdeploy.pipeline.artefact import Artefact, open_artefact
from normdeploy.pipeline.judge import verdict_on
from normdeploy.pipeline.session import in_onnxruntime
from normdeploy.pipeline.source import (
    Data,
    Progress,
    Source,
    Stages,
    app_dir_of,
    feeds_for,
    load_beside,
    trusted,
    usual_threads,
)
from normdeploy.precision import to_precision
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.runner import Runner

_WARM_UP = 10  # calls


def verify(
    artefact: str | Path,
    model: str,
    inputs: Sequence[str] = (),
    *,
    output_names: Sequence[str] = (),
    data: Data = None,
    seed: int = 0,
    criteria: Criteria | None = None,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Verdict:
    """The parity verdict on ``artefact``, a bundle, an ONNX file or a plan, against the module that ``model`` names.

    A bundle's sha256s and golden outputs are checked first, and its input specs hold; an ONNX file, and a plan outside
    a bundle, need ``inputs``. What computes in 16 bits is judged by what eager loses in them. Raises what
    :func:`normdeploy.load_bundle` and :func:`normdeploy.export` raise, and UnavailableError for a plan where there is
    no GPU; a failed verdict is returned.
    """
    stages = Stages(progress)
    with stages("load"):
        opened = open_artefact(Path(artefact), inputs, output_names, trust=trusted(source))
        checkpoint = load_beside(opened.specs, model, source)
        feeds = feeds_for(opened.specs, data, seed, app_dir_of(source), checkpoint.module)
    with stages("parity"):
        verdict = verdict_on(
            checkpoint.module, opened.specs, opened.runner, opened.graph, feeds, criteria,
            precision=opened.precision, options=opened.options,
            unfolded=lambda: _unfolded(checkpoint.module, opened),
        )  # fmt: skip
    return replace(
        verdict, notes=(*opened.notes, *checkpoint.notes, *_other_weights(opened.bundle, checkpoint), *verdict.notes)
    )


@contextmanager
def _unfolded(module: nn.Module, opened: Artefact) -> Iterator[Unfolded]:
    """Give the module's own export, in the precision and at the opset of the artefact, in a session of its own."""
    opset = opened.graph.opset_imports.get("") if opened.graph is not None else None
    graph = to_graph(module, opened.specs, opset=opset if opset in OPSETS else None).model
    graph = graph if opened.precision == "fp32" else to_precision(graph, opened.precision)
    with in_onnxruntime(graph, options=opened.options) as session:
        yield Unfolded(session.runner, graph)


def _other_weights(bundle: Bundle | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    if bundle is None or bundle.manifest.weights_sha256 == checkpoint.weights_sha256:
        return ()
    return ("the weights given are not the file that the bundle was exported from",)


def bench(
    artefact: str | Path,
    model: str | None = None,
    inputs: Sequence[str] = (),
    *,
    seconds: float = 2.0,
    threads: int | None = None,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Comparison | Latency:
    """The latency of ``artefact`` at its usual sizes, in turns with the module that ``model`` names.

    It is a bundle, or an ONNX file or a plan, which need ``inputs`` outside a bundle. Without ``model`` it is measured
    alone: the factory that its manifest names is code, and code runs only
    where the user names it. ``threads`` are each runner's; None leaves one core to the rest of the machine.

    Raises what :func:`normdeploy.load_bundle` and :func:`normdeploy.export` raise.
    """
    stages, threads = Stages(progress), usual_threads() if threads is None else threads
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores or not 0 < seconds < math.inf:
        given = f"--threads {threads} --seconds {seconds:g}"
        fix = f"give 1 to {cores} threads, as many as this machine has cores, and a positive, finite time"
        raise InputError("this cannot be measured", where=given, fix=fix)
    with stages("load"):
        opened = open_artefact(Path(artefact), inputs, threads=threads, trust=trusted(source))
        feed, deployed = opened.usual_feed(), opened.here(threads)
        eager = None if model is None else EagerRunner(load_beside(opened.specs, model, source).module, opened.specs)
    with stages("latency"):
        if eager is None:
            return _alone(deployed, feed, seconds)
        return interleave(eager, deployed, feed, threads=threads, seconds=seconds)


def _alone(runner: Runner, feed: Feed, seconds: float) -> Latency:
    for _ in range(_WARM_UP):
        runner(feed.arrays)
    samples, end = [timed(lambda: runner(feed.arrays))], time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(timed(lambda: runner(feed.arrays)))
    return latency(runner.name, samples)
