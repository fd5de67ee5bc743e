"""Statistics on samples whose answers are known; no test here takes the time of anything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from normdeploy.bench.stats import (
    Comparison,
    compare,
    hierarchical_interval,
    latency,
    over_processes,
    ratio_interval,
)
from normdeploy.errors import InputError

EVEN = np.linspace(1.0, 2.0, 101)
"""101 evenly spaced values: the q-th percentile is 1 + q / 100."""


def noise(n: int, seed: int, sigma: float = 0.05) -> np.ndarray:
    """Right-skewed factors with median 1, like latencies."""
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(n))


def test_percentiles_mean_and_throughput_of_known_samples() -> None:
    shuffled = np.random.default_rng(0).permutation(EVEN)
    result = latency("eager", shuffled.tolist())
    assert (result.runner, result.n) == ("eager", 101)
    assert result.p50_ms == pytest.approx(1.5, rel=1e-12)
    assert result.p90_ms == pytest.approx(1.9, rel=1e-12)
    assert result.p99_ms == pytest.approx(1.99, rel=1e-12)
    assert result.mean_ms == pytest.approx(1.5, rel=1e-12)
    assert result.throughput_per_s == pytest.approx(1000 / 1.5, rel=1e-12)
    assert result.samples_ms == tuple(shuffled)  # in the order they were taken: rounds are paired by it


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf]])
def test_times_that_are_none_are_refused(samples: list[float]) -> None:
    with pytest.raises(InputError, match="positive times"):
        latency("eager", samples)


def test_samples_that_do_not_pair_are_refused() -> None:
    with pytest.raises(InputError, match="3 samples cannot be paired with 2"):
        ratio_interval([1.0, 1.0, 1.0], [1.0, 1.0])


def test_constant_samples_have_an_interval_without_width() -> None:
    assert ratio_interval([3.0] * 40, [1.5] * 40) == (2.0, 2.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    eager, deployed = 2 * noise(100, 1), noise(100, 2)
    first = ratio_interval(eager, deployed, seed=7)
    assert ratio_interval(eager, deployed, seed=7) == first
    assert ratio_interval(eager, deployed, seed=8) != first


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    """95 % nominal; of 200 intervals at least 88 % must cover (0.1 % quantile of a binomial with p = 0.95)."""
    true = 1.7
    covered = 0
    for seed in range(200):
        low, high = ratio_interval(true * noise(80, 2 * seed), noise(80, 2 * seed + 1), seed=seed, resamples=200)
        covered += low <= true <= high
    assert 0.88 * 200 <= covered < 200


def test_rounds_are_paired_so_a_drift_that_meets_both_widens_nothing() -> None:
    drift = np.linspace(1.0, 3.0, 300)
    paired = ratio_interval(2 * drift, drift)
    assert paired == pytest.approx((2.0, 2.0), rel=1e-12)
    # paired with another round's drift, the same samples can tell much less
    low, high = ratio_interval(2 * drift, np.random.default_rng(0).permutation(drift))
    assert high - low > 0.1


def test_slow_noise_gives_a_wider_interval_than_the_same_noise_shuffled() -> None:
    """Blocks: 512 rounds of noise that stays for 16 rounds hold the evidence of 32 rounds, not of 512."""
    slow = np.repeat(noise(32, 5, sigma=0.3), 16)
    ones = np.ones(512)
    low, high = ratio_interval(slow, ones)
    shuffled_low, shuffled_high = ratio_interval(np.random.default_rng(1).permutation(slow), ones)
    assert high - low > 1.5 * (shuffled_high - shuffled_low)


def comparison(factor: float, sigma: float, n: int = 200) -> Comparison:
    eager = latency("eager", (factor * noise(n, 1, sigma)).tolist())
    return compare(eager, latency("onnxruntime", noise(n, 2, sigma).tolist()), threads=2, feed="random N=1")


def test_a_clear_difference_is_told() -> None:
    result = comparison(2.0, 0.05)
    assert not result.noisy
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert result.ratio == result.eager.p50_ms / result.deployed.p50_ms
    assert result.ratio_low > 1.9
    assert "faster" in result.note
    assert (result.threads, result.feed) == (2, "random N=1")
    assert "slower" in comparison(0.5, 0.05).note


def test_no_difference_is_not_noise() -> None:
    result = comparison(1.0, 0.02)
    assert not result.noisy
    assert "no difference is shown" in result.note


def test_a_wide_interval_is_noisy_and_says_so() -> None:
    result = comparison(1.3, 1.5)
    assert result.noisy
    assert (result.ratio_high - result.ratio_low) / (2 * result.ratio) > 0.1
    assert "too noisy to tell" in result.note


def test_few_rounds_cannot_tell_however_quiet() -> None:
    result = comparison(2.0, 0.0, n=5)
    assert result.noisy
    assert "only 5 rounds" in result.note


def process(generator: np.random.Generator, ratio: float, placement: float, rounds: int = 60) -> Any:
    first, second = (
        middle * np.exp(generator.normal(0, placement)) * np.exp(0.02 * generator.gamma(2.0, size=rounds))
        for middle in (ratio, 1.0)
    )
    return first.tolist(), second.tolist()


def test_over_processes_the_ratio_is_their_geometric_mean() -> None:
    pairs = [([4.0] * 20, [1.0] * 20), ([1.0] * 20, [1.0] * 20)]
    ratio, low, high = hierarchical_interval(pairs)
    assert ratio == pytest.approx(2.0)
    assert low < 1.0 < 4.0 < high  # two processes that disagree tell next to nothing


def test_processes_that_differ_widen_the_interval_and_a_is_a() -> None:
    different = wrong = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        samples = [process(generator, 1.0, 0.03) for _ in range(3)]
        _, low, high = hierarchical_interval(samples, seed=seed, resamples=200)
        different += not low <= 1 <= high
        pooled = [[time for one in samples for time in one[side]] for side in (0, 1)]
        low, high = ratio_interval(*pooled, seed=seed, resamples=200)
        wrong += not low <= 1 <= high
    assert different <= 2
    assert wrong > 10  # as of one process, it would be called different again and again


def test_a_real_difference_is_shown_over_processes() -> None:
    generator = np.random.default_rng(1)
    ratio, low, high = hierarchical_interval([process(generator, 1.5, 0.01) for _ in range(3)])
    assert 1.2 < low < ratio < high < 1.9


def test_the_unfolded_graph_is_a_row_of_its_own() -> None:
    generator = np.random.default_rng(2)
    samples = []
    for _ in range(3):
        eager, deployed = process(generator, 5.0, 0.01)
        samples.append({"eager": eager, "deployed": deployed, "unfolded": (np.array(deployed) * 1.3).tolist()})
    names = {"eager": "eager", "deployed": "onnxruntime", "unfolded": "onnxruntime, unfolded"}
    made = over_processes(samples, names, threads=1, feed="x")
    assert made.processes == 3
    assert made.fold_ratio == pytest.approx(1.3)
    assert made.ratio == pytest.approx(5.0, rel=0.1)
    assert made.unfolded is not None
    assert made.unfolded.n == 180


@pytest.mark.parametrize("pairs", [[], [([1.0, 2.0], [1.0])]])
def test_what_cannot_be_paired_is_refused(pairs: Any) -> None:
    with pytest.raises(InputError):
        hierarchical_interval(pairs)
