"""Clocks: the wall clock, and a GPU's with a device that is made up; no test asserts how fast anything is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest

from normdeploy.bench.clocks import CudaClock, WallClock, clock_of
from normdeploy.bench.stats import over_processes
from normdeploy.bench.timers import take_rounds
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.runtime.placement import Placement

FEED = Feed("random", {"x": np.zeros((2, 2), np.float32)})


class FakeCuda:
    """Acts as ``torch.cuda``: work is queued, and the device's time passes when somebody waits for it."""

    def __init__(self) -> None:
        self.now, self.queue, self.current, self.waits = 0.0, list[Callable[[], None]](), 0, 0

    def work(self, milliseconds: float) -> None:
        assert self.current == 7, "launched on another stream than the clock's"
        self.queue.append(lambda: setattr(self, "now", self.now + milliseconds))

    def drain(self) -> None:
        for step in self.queue:
            step()
        self.queue.clear()

    def synchronize(self) -> None:
        self.waits += 1
        self.drain()

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.current = stream.cuda_stream
        yield
        self.current = 0

    def Stream(self) -> FakeStream:  # torch's name
        return FakeStream()

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # torch's name
        assert enable_timing
        return FakeEvent(self)


class FakeStream:
    cuda_stream = 7


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.at = cuda, float("nan")

    def record(self, stream: FakeStream) -> None:
        assert stream.cuda_stream == 7
        self._cuda.queue.append(lambda: setattr(self, "at", self._cuda.now))

    def synchronize(self) -> None:
        self._cuda.drain()

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class OnDevice:
    """Queues so many milliseconds of the device's time; calling it with arrays is what must not be timed."""

    inputs, outputs = ("x",), ("y",)

    def __init__(self, cuda: FakeCuda, name: str, milliseconds: float) -> None:
        self.name, self.prepared, self._cuda, self._takes = name, 0, cuda, milliseconds

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise AssertionError("copies to and from the device are timed")

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        self.prepared += 1
        return lambda: self._cuda.work(self._takes)


def test_inputs_lie_on_the_device_and_its_own_time_is_taken() -> None:
    cuda = FakeCuda()
    runners = {"eager": OnDevice(cuda, "eager", 8.0), "deployed": OnDevice(cuda, "onnxruntime", 2.0)}
    rounds = take_rounds(runners, FEED, threads=1, seconds=0.001, warmup_seconds=0.0, fewest=20, clock=CudaClock(cuda))
    assert set(rounds.device["eager"]) == {8.0}
    assert set(rounds.device["deployed"]) == {2.0}
    assert [runner.prepared for runner in runners.values()] == [1, 1]
    assert len(rounds.wall["eager"]) == len(rounds.device["eager"]) >= 20
    assert cuda.waits >= 2 * 20, "the call before the one that is timed was not waited for"
    assert not cuda.queue, "something was still running at the end"


def test_the_medians_of_a_device_stand_beside_those_of_the_wall_clock() -> None:
    wall = {"eager": [10.0] * 30, "deployed": [5.0] * 30}
    device = [{"eager": [8.0] * 30, "deployed": [1.0] * 30}, {"eager": [8.0] * 30, "deployed": [3.0] * 30}]
    names = {"eager": "eager", "deployed": "onnxruntime"}
    made = over_processes([wall, wall], names, threads=1, feed="x", device=device)
    assert (made.eager.p50_ms, made.eager.device_p50_ms) == (10.0, 8.0)
    assert (made.deployed.p50_ms, made.deployed.device_p50_ms) == (5.0, 2.0)
    assert made.ratio == pytest.approx(2.0)  # of the wall clock, by which a caller waits


def test_the_wall_clock_times_arrays_and_knows_no_device() -> None:
    seen: list[object] = []

    class Plain:
        name, inputs, outputs = "plain", ("x",), ("y",)

        def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(feeds["x"])
            return {}

    rounds = take_rounds({"deployed": Plain()}, FEED, threads=1, seconds=0.001, warmup_seconds=0.0)
    assert rounds.device == {}
    assert all(each is FEED.arrays["x"] for each in seen)
    with pytest.raises(InputError, match="plain does not run on the GPU"):
        CudaClock(FakeCuda()).call(Plain(), FEED)


@pytest.mark.parametrize("placement", [Placement(), Placement("cuda", "nv-tensorrt-rtx")])
def test_where_nothing_can_be_bound_the_wall_clock_is_taken(placement: Placement) -> None:
    assert isinstance(clock_of(placement), WallClock)
    assert clock_of(placement).stream is None
