"""Timing against a clock that only the runners move: every number is exact, and the machine's speed plays no part."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from normdeploy.bench import clocks, timers
from normdeploy.bench.timers import FEWEST_ROUNDS, MOST_ROUNDS, interleave, is_stable
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed

FEED = Feed("random N=1", {"x": np.ones((1, 2), np.float32)})


class Clock:
    """Stands still but for the runners."""

    def __init__(self) -> None:
        self.ns = 0
        self.calls: list[str] = []

    def perf_counter_ns(self) -> int:
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9


class FakeRunner:
    """Takes ``ms`` a call, and ``penalty`` more where another runner was called last; inputs are checked."""

    inputs = ("x",)
    outputs = ("output",)

    def __init__(self, name: str, clock: Clock, ms: float, penalty: float = 0.0) -> None:
        self.name, self._clock, self._ms, self._penalty = name, clock, ms, penalty

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert feeds is FEED.arrays
        changed = not self._clock.calls or self._clock.calls[-1] != self.name
        self._clock.calls.append(self.name)
        self._clock.ns += round((self._ms + (self._penalty if changed else 0.0)) * 1e6)
        self.seen = (torch.get_num_threads(), gc.isenabled())
        return {"output": feeds["x"]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in (clocks, timers):
        monkeypatch.setattr(module, "time", clock)
    threads = torch.get_num_threads()
    yield clock
    torch.set_num_threads(threads)


def test_the_known_ratio_comes_out(clock: Clock) -> None:
    result = interleave(FakeRunner("eager", clock, 3.0), FakeRunner("ort", clock, 1.5), FEED, threads=1, seconds=1.0)
    assert (result.eager.p50_ms, result.deployed.p50_ms) == (3.0, 1.5)
    assert (result.ratio, result.ratio_low, result.ratio_high) == (2.0, 2.0, 2.0)
    assert (result.eager.runner, result.deployed.runner, result.feed) == ("eager", "ort", "random N=1")
    assert (result.threads, result.noisy) == (1, False)
    assert result.eager.n == result.deployed.n == 112  # 1 s of rounds that take 2 * (3 + 1.5) ms


def test_the_call_that_pays_for_the_others_turn_is_not_timed(clock: Clock) -> None:
    eager, deployed = FakeRunner("eager", clock, 3.0, penalty=50.0), FakeRunner("ort", clock, 1.5, penalty=7.0)
    result = interleave(eager, deployed, FEED, threads=1)
    assert (result.eager.p99_ms, result.deployed.p99_ms) == (3.0, 1.5)


def test_both_take_turns_and_either_comes_first(clock: Clock) -> None:
    interleave(FakeRunner("eager", clock, 1.0), FakeRunner("ort", clock, 1.0), FEED, threads=1)
    rounds = [tuple(clock.calls[i : i + 4]) for i in range(0, len(clock.calls), 4)]
    orders = [("eager", "eager", "ort", "ort"), ("ort", "ort", "eager", "eager")]
    assert set(rounds) == set(orders)
    # a fair coin over some 500 rounds
    assert 0.4 < rounds.count(orders[0]) / len(rounds) < 0.6


def test_a_slow_model_still_gets_its_rounds_and_a_fast_one_ends(clock: Clock) -> None:
    slow = FakeRunner("eager", clock, 60_000.0), FakeRunner("ort", clock, 60_000.0)
    result = interleave(*slow, FEED, threads=1)
    assert result.eager.n == FEWEST_ROUNDS
    assert len(clock.calls) == 4 * (FEWEST_ROUNDS + 1)  # warm-up: one round
    assert result.noisy
    fast = FakeRunner("eager", clock, 0.0), FakeRunner("ort", clock, 0.0)
    result = interleave(*fast, FEED, threads=1)
    assert result.eager.n == MOST_ROUNDS
    assert result.ratio == 1.0


def test_threads_and_collection_are_set_and_restored(clock: Clock) -> None:
    torch.set_num_threads(2)
    eager, deployed = FakeRunner("eager", clock, 1.0), FakeRunner("ort", clock, 1.0)
    interleave(eager, deployed, FEED, threads=1)
    assert eager.seen == deployed.seen == (1, False)
    assert (torch.get_num_threads(), gc.isenabled()) == (2, True)


def test_threads_and_collection_are_restored_when_a_runner_fails(clock: Clock) -> None:
    class Broken(FakeRunner):
        def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise InputError("broken")

    torch.set_num_threads(2)
    with pytest.raises(InputError, match="broken"):
        interleave(FakeRunner("eager", clock, 1.0), Broken("ort", clock, 1.0), FEED, threads=1)
    assert (torch.get_num_threads(), gc.isenabled()) == (2, True)


@pytest.mark.parametrize("bad", [{"threads": 0}, {"seconds": 0.0}, {"seconds": float("inf")}, {"warmup_seconds": -1.0}])
def test_numbers_that_cannot_be_measured_with_are_refused(clock: Clock, bad: dict[str, float]) -> None:
    runner = FakeRunner("eager", clock, 1.0)
    with pytest.raises(InputError, match="cannot be measured with"):
        interleave(runner, runner, FEED, **{"threads": 1, **bad})  # type: ignore[arg-type]
    assert clock.calls == []


def test_warm_is_when_both_medians_repeat() -> None:
    settled = [(1.0, 2.0)] * 10
    assert is_stable(settled)
    assert not is_stable(settled[:9])
    assert is_stable([(9.0, 9.0)] * 20 + settled)  # what was long ago does not count
    assert not is_stable([(1.2, 2.0)] * 5 + [(1.0, 2.0)] * 5)
    assert not is_stable([(1.0, 2.2)] * 5 + [(1.0, 2.0)] * 5)
    assert is_stable([(1.0, 2.0)] * 9 + [(50.0, 2.0)])  # one slow round is no trend


def test_warm_up_ends_with_stability_or_with_its_time(clock: Clock) -> None:
    calls = (lambda: FakeRunner("a", clock, 1.0)(FEED.arrays), lambda: FakeRunner("b", clock, 1.0)(FEED.arrays))
    assert len(timers.for_rounds(calls, random.Random(0), 10.0, until=is_stable)) == 10
    assert len(timers.for_rounds(calls, random.Random(0), 0.1, until=lambda _: False)) == 25


def test_real_runners_can_be_timed() -> None:
    """One short run on the machine's own clock: only that it comes back with samples, never how long they took."""

    class Add:
        name, inputs, outputs = "add", ("x",), ("output",)

        def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"output": feeds["x"] + 1}

    result = interleave(Add(), Add(), FEED, threads=1, seconds=0.01, warmup_seconds=0.01)
    assert result.eager.n >= FEWEST_ROUNDS
    assert result.ratio > 0
