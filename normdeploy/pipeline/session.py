"""A graph in memory as a session of ONNX Runtime, through a file: one protobuf message cannot hold more than 2 GB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from normdeploy.disk import scratch
from normdeploy.errors import InputError, UnavailableError
from normdeploy.parity.feeds import Feed
from normdeploy.pipeline.engines import computes_in
from normdeploy.precision import Precision
from normdeploy.runtime.isolated import CrashError, IsolatedRunner, PatienceError
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.optimizers import ALTERS_WEIGHTS, crash_free, faithful, without
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner


@dataclass(frozen=True)
class Session:
    """A graph that runs in a process of its own.

    Attributes:
        runner: runs it.
        options: session options that it runs with, those among them that had to be added.
        notes: why they were.
    """

    runner: Runner
    options: Mapping[str, str]
    notes: tuple[str, ...] = ()


@contextmanager
def in_onnxruntime(
    model: ir.Model,
    threads: int = 0,
    options: Mapping[str, str] | None = None,
    feed: Feed | None = None,
    placement: Placement = CPU,
) -> Iterator[Session]:
    """Open ``model`` in ONNX Runtime, with these session options and those without which it is not itself.

    Where it crashes, on opening or on ``feed``, and an optimizer is the cause, that one is off. Raises CrashError where
    no optimizer is.
    """
    with written(model) as path:
        session = open_session(
            path, threads, {**faithful(model), **(options or {})}, computes_in(model), feed, placement
        )
    try:
        yield session
    finally:
        close(session.runner)


@contextmanager
def in_this_process(model: ir.Model, threads: int, options: Mapping[str, str]) -> Iterator[Runner]:
    """Open ``model`` here, where it can be timed; with options that it has run with in another process."""
    with written(model) as path:
        yield OnnxRuntimeRunner(path, threads=threads, options=options)


def close(runner: Runner) -> None:
    """End the process of a runner that has one."""
    if isinstance(runner, IsolatedRunner):
        runner.close()


def open_session(
    path: Path,
    threads: int,
    options: Mapping[str, str],
    precision: Precision,
    feed: Feed | None = None,
    placement: Placement = CPU,
) -> Session:
    """Return a session of the file ``path``, the optimizers that crash it off."""
    notes = (_ALTERS,) if ALTERS_WEIGHTS in options.get("disabled_optimizers", "") else ()
    try:
        runner = _opened(path, threads, options, precision, feed, placement)
        return Session(runner, options, (*notes, *runner.notes))
    except CrashError as error:
        guilty = crash_free(path, options, None if feed is None else feed.arrays)
        if guilty is None:
            raise
        options, names = without(options, guilty), ", ".join(guilty)
        crash = (
            f"onnxruntime crashes ({error.signal}) on this model by its optimizer {names}: switched off in the session"
        )
        return Session(_opened(path, threads, options, precision, feed, placement), options, (*notes, crash))


_ALTERS = f"onnxruntime's {ALTERS_WEIGHTS} makes other weights of a quantized network's: it is off in the session"


@contextmanager
def written(model: ir.Model) -> Iterator[Path]:
    """Write a temporary file of ``model``, its weights beside it, for as long as the context lasts."""
    with scratch() as folder:
        path = folder / "model.onnx"
        try:
            ir.save(model, path, external_data="model.onnx.data")
        except OSError as error:
            what = f"the model cannot be written to a temporary file: {error.strerror or error}"
            raise InputError(
                what, where=str(folder), fix="free some space, or name another folder in TMPDIR"
            ) from error
        yield path


def _opened(
    path: Path,
    threads: int,
    options: Mapping[str, str],
    precision: Precision,
    feed: Feed | None,
    placement: Placement,
) -> IsolatedRunner:
    try:
        runner = IsolatedRunner(path, threads=threads, options=options, placement=placement)
    except UnavailableError as error:
        if precision != "bf16":
            raise
        fix = "give --precision fp32, and build the engine of that bundle: normdeploy build BUNDLE --precision bf16"
        raise UnavailableError(f"parity cannot be judged in bf16: {error.what}", fix=fix) from error
    if feed is not None:
        try:
            runner(feed.arrays)
        except (CrashError, PatienceError):
            raise
        except Exception:  # it refuses the feed: parity will say so
            return runner
    return runner
