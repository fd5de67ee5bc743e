"""``verify`` and ``bench``: a deployed model again, beside the eager one it came from."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import onnx_ir as ir

from normdeploy.bench.stats import Comparison, Latency, latency
from normdeploy.bench.timers import interleave, timed
from normdeploy.bundle import Bundle, load_bundle
from normdeploy.checkpoint import Checkpoint
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Criteria, Verdict
from normdeploy.pipeline.engines import computes_in
from normdeploy.pipeline.judge import verdict_on
from normdeploy.pipeline.source import Progress, Source, Stages, feeds_for, load, specs_of, usual_threads
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

_WARM_UP = 10  # calls


def verify(
    artefact: str | Path,
    model: str,
    inputs: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    seed: int = 0,
    criteria: Criteria | None = None,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Verdict:
    """The parity verdict on ``artefact``, a bundle or an ONNX file, against the module that ``model`` names.

    A bundle's sha256s and golden outputs are checked first, and its input specs hold; an ONNX file needs ``inputs``.
    Raises what :func:`normdeploy.load_bundle` and :func:`normdeploy.export` raise, but a failed verdict is returned.
    """
    path, stages = Path(artefact), Stages(progress)
    with stages("load"):
        bundle = load_bundle(path) if path.is_dir() else None
        if bundle is not None and inputs:
            raise InputError("a bundle has its own input specs", where="--input", fix="leave --input out")
        specs = bundle.specs if bundle else specs_of(inputs)
        feeds = feeds_for(specs, data, seed)
        deployed = bundle.runner if bundle else OnnxRuntimeRunner(path)
        checkpoint = load(model, source)
    with stages("parity"):
        graph = ir.load(bundle.model_path if bundle else path)
        verdict = verdict_on(checkpoint.module, specs, deployed, graph, feeds, criteria, precision=computes_in(graph))
    return replace(verdict, notes=(*checkpoint.notes, *_other_weights(bundle, checkpoint), *verdict.notes))


def _other_weights(bundle: Bundle | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    if bundle is None or bundle.manifest.weights_sha256 == checkpoint.weights_sha256:
        return ()
    return ("the weights given are not the file that the bundle was exported from",)


def bench(
    artefact: str | Path,
    model: str | None = None,
    *,
    seconds: float = 2.0,
    threads: int | None = None,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Comparison | Latency:
    """The latency of the bundle ``artefact`` at its usual sizes, in turns with the module that ``model`` names.

    Without ``model`` the bundle is measured alone: the factory that its manifest names is code, and code runs only
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
        bundle = load_bundle(artefact, threads=threads)
        feed = Feed("golden", dict(bundle.golden.inputs))
        eager = None if model is None else EagerRunner(load(model, source).module, bundle.specs)
    with stages("latency"):
        if eager is None:
            return _alone(bundle, feed, seconds)
        return interleave(eager, bundle.runner, feed, threads=threads, seconds=seconds)


def _alone(bundle: Bundle, feed: Feed, seconds: float) -> Latency:
    for _ in range(_WARM_UP):
        bundle.runner(feed.arrays)
    samples, end = [timed(lambda: bundle.runner(feed.arrays))], time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(timed(lambda: bundle.runner(feed.arrays)))
    return latency(bundle.runner.name, samples)
