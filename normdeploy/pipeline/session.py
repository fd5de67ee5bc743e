"""A graph in memory as a session of ONNX Runtime, through a file: one protobuf message cannot hold more than 2 GB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normdeploy.disk import scratch
from normdeploy.errors import InputError, MissingKernelError
from normdeploy.parity.feeds import Feed
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

    Where a kernel is missing, each run says so, as with :func:`open_session`. Where it crashes, on opening or on
    ``feed``, and an optimizer is the cause, that one is off. Raises CrashError where no optimizer is.
    """
    with written(model) as path:
        session = open_session(path, threads, {**faithful(model), **(options or {})}, feed, placement)
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
    feed: Feed | None = None,
    placement: Placement = CPU,
) -> Session:
    """Return a session of the file ``path``, the optimizers that crash it off.

    Where ONNX Runtime lacks a kernel for it, each run raises the MissingKernelError: its graph can still be judged.
    """
    notes = (_ALTERS,) if ALTERS_WEIGHTS in options.get("disabled_optimizers", "") else ()
    try:
        runner = _opened(path, threads, options, feed, placement)
        return Session(runner, options, (*notes, *runner.notes))
    except MissingKernelError as error:
        return Session(_WithoutKernel(error), options, notes)
    except CrashError as error:
        guilty = crash_free(path, options, None if feed is None else feed.arrays)
        if guilty is None:
            raise
        options, names = without(options, guilty), ", ".join(guilty)
        crash = (
            f"onnxruntime crashes ({error.signal}) on this model by its optimizer {names}: switched off in the session"
        )
        return Session(_opened(path, threads, options, feed, placement), options, (*notes, crash))


class _WithoutKernel:
    """What stands for a session that cannot be: to run it raises why."""

    name = "onnxruntime"
    inputs = outputs = ()

    def __init__(self, error: MissingKernelError) -> None:
        self._error = error

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raise MissingKernelError."""
        raise self._error


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
    feed: Feed | None,
    placement: Placement,
) -> IsolatedRunner:
    runner = IsolatedRunner(path, threads=threads, options=options, placement=placement)
    if feed is not None:
        try:
            runner(feed.arrays)
        except (CrashError, PatienceError):
            raise
        except Exception:  # it refuses the feed: parity will say so
            return runner
    return runner
