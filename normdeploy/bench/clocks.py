"""What a call is timed by: the wall clock, and on a GPU CUDA's events beside it.

On a GPU a call is launched and ends later, and its inputs lie there already: what is timed is neither the copies nor
an answer that has not been waited for. All that run take the clock's stream, or wait for it and let it wait.

The wall clock runs in the tests and wherever this does; the clock of a GPU was run in the tests with a device that is
made up, and has not run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.runtime.placement import Placement
from normdeploy.runtime.runner import DeviceRunner, Runner

Call = Callable[[], object]


class Time(NamedTuple):
    """Milliseconds of one call: by the wall clock, and by the events of a GPU where it runs on one."""

    wall: float
    device: float | None


class Clock(Protocol):
    """How calls are made and timed."""

    @property
    def stream(self) -> int | None:
        """Return the address of the CUDA stream that work goes to; None where there is none."""

    def running(self) -> AbstractContextManager[None]:
        """Return the context that calls are made in."""

    def call(self, runner: Runner, feed: Feed) -> Call:
        """Return what runs ``runner`` once on ``feed``."""

    def timed(self, call: Call) -> Time:
        """Return the time of the second of two calls."""


class WallClock:
    """The wall clock alone: arrays go in and come out, as a caller has them."""

    stream = None

    def running(self) -> AbstractContextManager[None]:
        """Return nothing that matters."""
        return nullcontext()

    def call(self, runner: Runner, feed: Feed) -> Call:
        """Return what runs it on arrays, copies included where there are any."""
        return lambda: runner(feed.arrays)

    def timed(self, call: Call) -> Time:
        """Return the time of the second of two calls."""
        call()
        start = time.perf_counter_ns()
        call()
        return Time(_milliseconds(start), None)


class CudaClock:
    """The wall clock until the GPU is done, and the time between two events on its stream.

    ``cuda`` is ``torch.cuda``, or what acts as it.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda, self._stream = cuda, cuda.Stream()

    @property
    def stream(self) -> int:
        """Return the address of its stream."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make its stream the one that PyTorch launches on, and wait for the GPU at the end."""
        with self._cuda.stream(self._stream):
            yield
        self._cuda.synchronize()

    def call(self, runner: Runner, feed: Feed) -> Call:
        """Return what launches it on inputs that lie on the GPU; InputError for a runner that cannot."""
        if not isinstance(runner, DeviceRunner):
            raise InputError(f"{runner.name} does not run on the GPU", where=feed.name, fix="leave --device out")
        return runner.launcher(feed.arrays)

    def timed(self, call: Call) -> Time:
        """Return the time of the second of two calls, each waited for."""
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        call()
        self._cuda.synchronize()
        start = time.perf_counter_ns()
        begin.record(self._stream)
        call()
        end.record(self._stream)
        end.synchronize()
        return Time(_milliseconds(start), float(begin.elapsed_time(end)))


def clock_of(placement: Placement) -> Clock:
    """Return the clock for what runs at ``placement``."""
    if not placement.binds:
        return WallClock()
    import torch

    return CudaClock(torch.cuda)


def _milliseconds(start_ns: int) -> float:
    return max(time.perf_counter_ns() - start_ns, 1) / 1e6  # a clock tick is the least that can be told from nothing
