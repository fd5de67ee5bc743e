"""``bench``: the latency of what is deployed. A bundle alone is measured without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from normdeploy.arguments import checked
from normdeploy.bench.clocks import clock_of
from normdeploy.bench.stats import Comparison, Latency
from normdeploy.bench.timers import alone
from normdeploy.bundle import load_bundle
from normdeploy.bundle.manifest import MANIFEST
from normdeploy.parity.feeds import Feed, batch_feed
from normdeploy.pipeline.keywords import Source
from normdeploy.pipeline.stages import PROCESSES, Progress, Stages, require_measurable, usual_threads
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import CPU, Placement


@checked(Source)
def bench(
    artefact: str | Path,
    model: str | None = None,
    inputs: Sequence[str] = (),
    *,
    seconds: float = 2.0,
    threads: int | None = None,
    processes: int = PROCESSES,
    batch: int | None = None,
    compiled: bool = False,
    placement: Placement = CPU,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Comparison | Latency:
    """Return the latency of ``artefact`` at its usual sizes, in turns with the module and its unfolded graph.

    It is a bundle, or an ONNX file or a plan, which need ``inputs`` outside a bundle. Without ``model`` it is measured
    alone: the factory that its manifest names is code, and code runs only where the user names it. ``threads`` are each
    runner's; None leaves one core to the rest of the machine. ``processes`` fresh ones share the ``seconds``; a plan is
    measured in this one, without an unfolded graph. ``batch`` is the size of the inputs' first dimension in place
    of the usual one, ``compiled`` a row more for torch.compile.

    Raises what :func:`normdeploy.load_bundle` and :func:`normdeploy.export` raise.
    """
    stages, threads = Stages(progress), usual_threads() if threads is None else threads
    require_measurable(threads, seconds, processes)
    if model is None and not inputs and (Path(artefact) / MANIFEST).is_file():
        return _bundle(Path(artefact), batch, threads, seconds, placement, stages)
    from normdeploy.pipeline.compare import beside

    return beside(
        artefact, model, inputs, seconds=seconds, threads=threads, processes=processes, batch=batch, compiled=compiled,
        placement=placement, stages=stages, source=source,
    )  # fmt: skip


def _bundle(
    folder: Path, batch: int | None, threads: int, seconds: float, placement: Placement, stages: Stages
) -> Latency:
    """The latency of the bundle ``folder`` alone."""
    with stages("load"):
        bundle = load_bundle(folder, threads=threads, isolated=True, **placement.as_json())
        feed = Feed("golden", dict(bundle.golden.inputs)) if batch is None else batch_feed(bundle.specs, batch)
        bundle.runner(feed.arrays)  # in its own process, which has limits, before it is timed in one without
    with stages("latency"):
        options, clock = bundle.manifest.session_options, clock_of(placement)
        runner = OnnxRuntimeRunner(
            bundle.model_path, threads=threads, options=options, placement=placement, checked=True, stream=clock.stream
        )
        return alone(runner, feed, seconds, clock)
