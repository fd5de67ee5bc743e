"""Latency in fresh processes: eager PyTorch, the unfolded graph and the deployed one, in turns in each of them.

Where a process happens to place its memory and code decides a few percent, so the rounds of one process say little of
the next; and a runtime that crashes takes only its own process along.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from normdeploy import child, errors
from normdeploy.bench.clocks import clock_of
from normdeploy.bench.stats import FEWEST, Comparison, over_processes
from normdeploy.bench.timers import take_rounds
from normdeploy.bundle import golden
from normdeploy.disk import scratch
from normdeploy.errors import InputError, NormdeployError, UnavailableError, VerdictError
from normdeploy.parity.feeds import Feed
from normdeploy.pipeline.keywords import Source
from normdeploy.pipeline.source import load
from normdeploy.pipeline.stages import PROCESSES
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import from_json
from normdeploy.runtime.runner import Runner
from normdeploy.specs import parse

_INPUTS, _RESULT, _JOB = "inputs.npz", "result.json", "job.json"


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        model: the factory of the eager module; None leaves eager out.
        source: where its weights are.
        inputs: specs and values of its inputs.
        deployed: the deployed ONNX file; None leaves it out.
        unfolded: the unfolded one; None leaves it out.
        options: session options of both.
        threads: of each runner.
        seconds: to measure for; with 0 each runs once, and nothing is measured.
        seed: of the order within rounds.
        placement: where all of them run.
        compiled: measure what torch.compile makes of the module, too.
    """

    model: str | None
    source: dict[str, Any]
    inputs: tuple[str, ...]
    deployed: str | None
    unfolded: str | None
    options: dict[str, str]
    threads: int
    seconds: float
    seed: int
    placement: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False


def require_compiled(job: Job, feed: Feed) -> None:
    """Raise UnavailableError where torch.compile cannot run the module of ``job``, as without a C++ compiler."""
    with scratch() as folder:
        golden.save(folder / _INPUTS, feed.arrays)
        _run(folder, replace(job, deployed=None, unfolded=None, seconds=0, compiled=True), feed)


def measured(job: Job, feed: Feed, processes: int = PROCESSES) -> Comparison:
    """Return what ``processes`` fresh processes measured on ``feed``, each for its share of the job's seconds.

    Raises VerdictError where one of them dies, and what one raises.
    """
    with scratch() as folder:
        golden.save(folder / _INPUTS, feed.arrays)
        shares = (replace(job, seconds=job.seconds / processes, seed=job.seed + index) for index in range(processes))
        samples = [_run(folder, share, feed) for share in shares]
    wall, device = ([each[kind] for each in samples] for kind in ("wall", "device"))
    names = {"eager": "eager", "unfolded": "onnxruntime, unfolded", "deployed": "onnxruntime"}
    names["compiled"] = "torch.compile"
    return over_processes(wall, names, threads=job.threads, feed=feed.name, seed=job.seed, device=device)


def plain(source: Source) -> dict[str, Any]:
    """Return ``source`` as JSON can hold it, its paths absolute: a child works in a folder of its own."""
    found: dict[str, Any] = {}
    for key, value in source.items():
        if key in ("app_dir", "weights") and value is not None:
            value = str(Path(str(value)).resolve())
        elif key == "trust":
            value = [str(Path(str(each)).resolve()) for each in value]  # type: ignore[attr-defined]
        elif isinstance(value, Mapping):
            value = {str(name): str(each) for name, each in value.items()}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = [*value]
        found[key] = value
    return found


def _run(folder: Path, job: Job, feed: Feed) -> dict[str, dict[str, list[float]]]:
    """Return what a fresh process measures of ``job``; the arrays of ``feed`` lie in ``folder`` already."""
    dtypes = {key: array.dtype.name for key, array in feed.arrays.items()}
    asked = {"job": asdict(job), "dtypes": dtypes, "feed": feed.name, "here": os.getcwd()}
    (folder / _JOB).write_text(json.dumps(asked))
    (folder / _RESULT).unlink(missing_ok=True)
    with (
        (folder / "stderr.txt").open("w") as stderr,
        child.running(
            lambda: child.start("normdeploy.pipeline.latency", str(folder), folder=folder, stderr=stderr)
        ) as process,
    ):
        process.wait()
    if process.returncode or not (folder / _RESULT).exists():
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = (folder / "stderr.txt").read_text(errors="replace").splitlines()[-2:]
        raise VerdictError(f"the process that measures latency died ({how})", where=" | ".join(said))
    result = json.loads((folder / _RESULT).read_text())
    if error := result.get("error"):
        kind, what, where, fix = error
        raise getattr(errors, kind)(what, where=where, fix=fix)
    samples: dict[str, dict[str, list[float]]] = result["samples"]
    return samples


def _measure(folder: Path) -> dict[str, Any]:
    asked = json.loads((folder / _JOB).read_text())
    job = Job(**{**asked["job"], "inputs": tuple(asked["job"]["inputs"])})
    feed = Feed(asked["feed"], golden.load(folder / _INPUTS, asked["dtypes"]))
    runners: dict[str, Runner] = {}
    placement = from_json(job.placement)
    placement.set_tf32()
    clock = clock_of(placement)
    if job.model is not None:
        source: Any = job.source
        with chdir(asked["here"]):  # the factory is found, and finds its own files, where the command was started
            module, specs = load(job.model, source).module, parse(job.inputs)
        runners["eager"] = EagerRunner(module, specs, placement=placement)
        if job.compiled:
            runners["compiled"] = _compiled(EagerRunner(module, specs, placement=placement, compiled=True), feed)
    for row, path in (("unfolded", job.unfolded), ("deployed", job.deployed)):
        if path is not None:
            runners[row] = OnnxRuntimeRunner(
                Path(path), threads=job.threads, options=job.options, placement=placement, stream=clock.stream
            )
    if not job.seconds:
        return {"samples": {}}
    rounds = take_rounds(
        runners, feed, threads=job.threads, seconds=job.seconds, seed=job.seed, fewest=FEWEST, clock=clock
    )
    return {"samples": rounds._asdict()}


def _compiled(runner: EagerRunner, feed: Feed) -> EagerRunner:
    """Return ``runner`` once it has compiled; UnavailableError where it cannot be, as without a C++ compiler."""
    try:
        runner(feed.arrays)
    except InputError as error:
        fix = "install a C++ compiler, or leave --compare out"
        raise UnavailableError(f"torch.compile cannot run the module: {error.what}", fix=fix) from error
    return runner


def main() -> None:
    """Measure what the folder that is named asks for; the answer is a file in it."""
    folder = Path(sys.argv[1])
    try:
        answer = _measure(folder)
    except NormdeployError as error:
        kind = next(each.__name__ for each in type(error).__mro__ if each.__module__ == "normdeploy.errors")
        answer = {"error": [kind, error.what, error.where, error.fix]}
    (folder / _RESULT).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
