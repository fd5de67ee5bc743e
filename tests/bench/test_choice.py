"""The choice on synthetic times: only what is outside the noise, twice, and right; no test here takes any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from normdeploy.bench.choice import MARGIN, Candidate, Race, choose, race, why_not

DEFAULT = Candidate("affine", "affine", "onnx", {})


def times(milliseconds: float, seed: int, *, n: int = 200, sigma: float = 0.03) -> list[float]:
    """Right-skewed latencies of that median."""
    return list(milliseconds * np.exp(sigma * np.random.default_rng(seed).standard_normal(n)))


def raced(milliseconds: float, seed: int = 0, *, n: int = 200, sigma: float = 0.03) -> Race:
    """A candidate of that latency beside a default of 1 ms."""
    return race(times(1.0, 2 * seed, n=n, sigma=sigma), times(milliseconds, 2 * seed + 1, n=n, sigma=sigma))


def candidate(name: str, milliseconds: float, **noise: float) -> Candidate:
    return Candidate(name, "centre", "onnxruntime", {}, race=raced(milliseconds, len(name), **noise))  # type: ignore[arg-type]


def right(_: Candidate) -> str:
    return ""


def never(_: Candidate) -> Race:
    raise AssertionError("nothing was to be measured again")


def again(milliseconds: float) -> Callable[[Candidate], Race]:
    return lambda _: raced(milliseconds, 99)


def kept(rows: tuple[Candidate, ...]) -> str:
    (name,) = [row.name for row in rows if row.kept]
    return name


def test_a_race_is_what_the_samples_say() -> None:
    result = race([2.0, 4.0, 3.0, 1.0, 5.0] * 8, [1.0, 2.0, 1.5, 0.5, 2.5] * 8)
    assert (result.n, result.ratio, result.ratio_low, result.ratio_high) == (40, 2.0, 2.0, 2.0)
    assert (result.default.low_ms, result.default.median_ms, result.default.high_ms) == (2.0, 3.0, 4.0)
    assert (result.candidate.low_ms, result.candidate.median_ms, result.candidate.high_ms) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (raced(0.8), ""),
        (raced(1.0), "no difference"),
        (raced(1.3), "slower"),
        (raced(0.97, sigma=0.4), "no difference"),  # 3 % in noise of 40 %
        (race([1.0] * 200, [1 / (1 + MARGIN)] * 200), "too little"),
        (race([1.0] * 200, [1 / (1.001 + MARGIN)] * 200), ""),
        (race([1.0] * 19, [0.5] * 19), "only 19 rounds, too few to tell"),
        (race([1.0] * 20, [0.5] * 20), ""),
    ],
)
def test_only_an_advantage_outside_the_noise_counts(result: Race, said: str) -> None:
    assert why_not(result) == said


def test_a_faster_and_right_candidate_is_kept() -> None:
    rows = choose([DEFAULT, candidate("fast", 0.7)], right, again(0.7))
    assert kept(rows) == "fast"
    default, fast = rows
    assert (default.parity, default.reason) == (True, "the default")
    assert (fast.parity, fast.reason) == (True, "kept: faster, twice")
    assert fast.again is not None
    assert fast.again != fast.race


@pytest.mark.parametrize(
    "others",
    [
        [],
        [candidate("same", 1.0)],
        [candidate("slow", 1.2), candidate("tie", 1.0)],
        [Candidate("not made", "centre", "onnx", {}, reason="no RMSNorm")],
    ],
    ids=len,
)
def test_the_default_stays_where_nothing_is_faster(others: list[Candidate]) -> None:
    rows = choose([DEFAULT, *others], right, never)
    assert kept(rows) == "affine"
    assert all(row.reason and row.parity is None for row in rows[1:])


def test_ties_keep_the_default_however_many_there_are() -> None:
    """Of 40 equal candidates on noisy rounds some look faster; none may be kept."""
    ties = [candidate("x" * length, 1.0, sigma=1.0) for length in range(1, 41)]
    assert any(row.race and not why_not(row.race) for row in ties)
    assert kept(choose([DEFAULT, *ties], right, again(1.0))) == "affine"


def test_what_was_fast_by_luck_is_not_fast_again_and_has_no_successor() -> None:
    measured: list[str] = []

    def remember(row: Candidate) -> Race:
        measured.append(row.name)
        return raced(1.0, 99)

    rows = choose([DEFAULT, candidate("second", 0.8), candidate("lucky", 0.7)], right, remember)
    assert kept(rows) == "affine"
    assert measured == ["lucky"]
    assert [row.reason for row in rows[1:]] == [
        "not the fastest, which alone is measured again",
        "not again: no difference",
    ]


def test_a_fast_and_wrong_candidate_is_not_kept_and_gives_way_to_the_next() -> None:
    judged: list[str] = []

    def judge(row: Candidate) -> str:
        judged.append(row.name)
        return "off by 1" if row.name == "wrong" else ""

    others = [candidate("wrong", 0.5), candidate("good", 0.7), candidate("fair", 0.8), candidate("slow", 1.3)]
    rows = choose([DEFAULT, *others], judge, again(0.7))
    assert kept(rows) == "good"
    assert judged == ["wrong", "good"]  # by their speed, and no more than must be
    assert [(row.parity, row.reason) for row in rows] == [
        (True, "the default"),
        (False, "faster, but wrong: off by 1"),
        (True, "kept: faster, twice"),
        (None, "faster, but not the fastest"),
        (None, "slower"),
    ]


def test_the_surest_advantage_comes_first_and_not_the_one_that_noise_drew_out() -> None:
    sure, noisy = candidate("sure", 0.8), Candidate("noisy", "off", "onnx", {}, race=raced(0.6, 7, sigma=1.2))
    assert sure.race is not None
    assert noisy.race is not None
    assert not why_not(noisy.race)
    assert noisy.race.ratio > sure.race.ratio
    assert noisy.race.ratio_low < sure.race.ratio_low
    assert kept(choose([DEFAULT, noisy, sure], right, again(0.8))) == "sure"


def test_where_all_that_is_faster_is_wrong_the_default_stays() -> None:
    rows = choose([DEFAULT, candidate("a", 0.5), candidate("bc", 0.6)], lambda _: "off", never)
    assert kept(rows) == "affine"
    assert [row.parity for row in rows] == [True, False, False]


def test_what_is_given_is_not_changed() -> None:
    given = [DEFAULT, candidate("fast", 0.7)]
    before = [replace(row) for row in given]
    choose(given, right, again(0.7))
    assert given == before
