"""Timing two runners in one process, in turns, so that whatever slows the machine down meets both.

In every round each runner makes two calls and the second is timed: the first one pays for the caches and the spinning
threads that the other left behind. Who comes first is drawn anew in each round.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from normdeploy.bench.clocks import Clock, Time, WallClock
from normdeploy.bench.stats import Comparison, Latency, compare, latency
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.runtime.runner import Runner

FEWEST_ROUNDS, MOST_ROUNDS = 5, 5000
_WARM_UP = 10
"""Calls before a runner is measured alone."""
_WINDOW = 5
"""Rounds whose median must repeat before a runner counts as warm."""
_STABLE = 0.05
"""How far, relatively, that median may move."""

Pair = tuple[float, float]


class Rounds(NamedTuple):
    """Milliseconds by runner, round by round: by the wall clock, and by the events of a GPU, empty where none ran."""

    wall: dict[str, list[float]]
    device: dict[str, list[float]]


def interleave(
    eager: Runner,
    deployed: Runner,
    feed: Feed,
    *,
    threads: int,
    seconds: float = 2.0,
    warmup_seconds: float = 1.0,
    seed: int = 0,
) -> Comparison:
    """Return the latencies of two runners on ``feed``, and their ratio; the arguments are those of
    :func:`take_turns`.
    """
    times = take_turns(
        eager, deployed, feed, threads=threads, seconds=seconds, warmup_seconds=warmup_seconds, seed=seed
    )
    runs = [latency(runner.name, samples) for runner, samples in zip((eager, deployed), times, strict=True)]
    return compare(*runs, threads=threads, feed=feed.name)


def take_turns(
    first: Runner,
    second: Runner,
    feed: Feed,
    *,
    threads: int,
    seconds: float = 2.0,
    warmup_seconds: float = 1.0,
    seed: int = 0,
    fewest: int = FEWEST_ROUNDS,
) -> tuple[list[float], list[float]]:
    """Return milliseconds a call of two runners on ``feed``; the i-th samples belong to one round.

    ``threads`` is what PyTorch gets meanwhile; other backends fix theirs when a runner is made, so make runners with
    the same number. Measuring ends after ``seconds``, but not before ``fewest`` rounds nor after 5,000; warm-up ends
    when the medians of both repeat, or after ``warmup_seconds``. Garbage collection is off while measuring.

    Raises InputError on numbers that are not positive, and whatever a runner raises.
    """
    if threads < 1 or not 0 < seconds < float("inf") or not 0 <= warmup_seconds < float("inf"):
        given = f"threads={threads}, seconds={seconds}, warmup_seconds={warmup_seconds}"
        raise InputError("these cannot be measured with", where=given, fix="give positive, finite numbers")
    calls = (lambda: first(feed.arrays), lambda: second(feed.arrays))
    order = random.Random(seed)
    with torch_threads(threads), collection_off():
        for_rounds(calls, order, warmup_seconds, fewest=1, until=is_stable)
        return _columns(for_rounds(calls, order, seconds, fewest))


def alone(runner: Runner, feed: Feed, seconds: float, clock: Clock | None = None) -> Latency:
    """Return the latency of one runner on ``feed``, measured for ``seconds`` by ``clock``, the wall clock if none."""
    clock = clock or WallClock()
    with clock.running():
        call = clock.call(runner, feed)
        for _ in range(_WARM_UP):
            call()
        samples, end = [clock.timed(call)], time.perf_counter() + seconds
        while time.perf_counter() < end:
            samples.append(clock.timed(call))
    device = [each.device for each in samples if each.device is not None]
    return latency(runner.name, [each.wall for each in samples], device)


def for_rounds(
    calls: tuple[Callable[[], object], Callable[[], object]],
    order: random.Random,
    seconds: float,
    fewest: int = FEWEST_ROUNDS,
    until: Callable[[list[Pair]], bool] = lambda _: False,
) -> list[Pair]:
    """Return milliseconds of both calls, round by round, for ``seconds`` or until ``until`` holds of the rounds so far.

    A slow model gets ``fewest`` rounds however long they take; a fast one gets 5,000 at most.
    """
    pairs: list[Pair] = []
    end = time.perf_counter() + seconds
    while len(pairs) < fewest or (time.perf_counter() < end and len(pairs) < MOST_ROUNDS):
        times = {which: timed(calls[which]) for which in order.sample((0, 1), 2)}
        pairs.append((times[0], times[1]))
        if until(pairs):
            break
    return pairs


def timed(call: Callable[[], object]) -> float:
    """Return milliseconds of the second of two calls, by the wall clock."""
    return WallClock().timed(call).wall


def is_stable(pairs: list[Pair]) -> bool:
    """Return True if the medians of the last rounds repeat those of the rounds before, for both runners."""
    if len(pairs) < 2 * _WINDOW:
        return False
    earlier, later = pairs[-2 * _WINDOW : -_WINDOW], pairs[-_WINDOW:]
    medians = [
        (median(before), median(after)) for before, after in zip(_columns(earlier), _columns(later), strict=True)
    ]
    return all(abs(after - before) <= _STABLE * before for before, after in medians)


def _columns(pairs: list[Pair]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def take_rounds(
    runners: Mapping[str, Runner],
    feed: Feed,
    *,
    threads: int,
    seconds: float,
    warmup_seconds: float = 0.5,
    seed: int = 0,
    fewest: int = FEWEST_ROUNDS,
    clock: Clock | None = None,
) -> Rounds:
    """Return milliseconds a call of each of several runners; the i-th samples belong to one round.

    As :func:`take_turns`, for any number of runners, and by any ``clock``; the wall clock if none is given.
    """
    clock, order = clock or WallClock(), random.Random(seed)
    times = {name: list[Time]() for name in runners}
    with torch_threads(threads), collection_off(), clock.running():
        calls = {name: clock.call(runner, feed) for name, runner in runners.items()}
        end = time.perf_counter() + warmup_seconds
        for call in calls.values():
            clock.timed(call)
        while time.perf_counter() < end:
            for call in calls.values():
                clock.timed(call)
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < fewest or (time.perf_counter() < end and rounds < MOST_ROUNDS):
            for name in order.sample([*calls], len(calls)):
                times[name].append(clock.timed(calls[name]))
            rounds += 1
    wall = {name: [each.wall for each in taken] for name, taken in times.items()}
    device = {name: [each.device for each in taken if each.device is not None] for name, taken in times.items()}
    return Rounds(wall, {name: taken for name, taken in device.items() if taken})


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run PyTorch with ``threads`` threads inside an operator; what was set before is restored.

    Where nobody has imported it, nobody runs it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def collection_off() -> Iterator[None]:
    """Run Python without garbage collection, after one collection; what was set before is restored."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
