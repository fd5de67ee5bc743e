"""Statistics of paired latency samples: percentiles, and the ratio of medians with its uncertainty.

Round i gives one sample of each runner under nearly the same conditions, so rounds are resampled as pairs. A machine
slows down and recovers over many rounds, so whole blocks of consecutive rounds are resampled (circular block bootstrap,
blocks of about n^(1/3) rounds); independent rounds would promise too narrow an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
WIDEST = 0.10
"""Relative half-width of the interval above which it tells too little."""
FEWEST = 20
"""Rounds below which a percentile interval of a median cannot be trusted."""


@dataclass(frozen=True)
class Latency:
    """One runner's latencies, in milliseconds a call; ``throughput_per_s`` counts calls, not items of a batch."""

    runner: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runners, interleaved.

    Attributes:
        eager: latency of eager PyTorch.
        deployed: latency of the artefact.
        ratio: eager's median over the artefact's: above 1 the artefact is the faster one.
        ratio_low: lower end of the ratio's 95 % confidence interval.
        ratio_high: its upper end.
        noisy: whether the interval is too wide, or its ground too thin, to tell.
        note: what the interval does and does not show, in one sentence.
        threads: threads that each runner was given.
        feed: name of the feed.
    """

    eager: Latency
    deployed: Latency
    ratio: float
    ratio_low: float
    ratio_high: float
    noisy: bool
    note: str
    threads: int
    feed: str


def latency(runner: str, samples_ms: Sequence[float]) -> Latency:
    """The latency of ``runner`` from its samples, in milliseconds, in the order they were taken."""
    samples = _samples(runner, samples_ms)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    mean = float(samples.mean())
    return Latency(runner, samples.size, p50, p90, p99, mean, 1000.0 / mean, tuple(samples.tolist()))


def compare(eager: Latency, deployed: Latency, *, threads: int, feed: str, seed: int = 0) -> Comparison:
    """The comparison of two latencies whose i-th samples belong to one round; the same seed gives the same interval."""
    ratio = eager.p50_ms / deployed.p50_ms
    low, high = ratio_interval(eager.samples_ms, deployed.samples_ms, seed=seed)
    noisy, note = _reading(eager.n, ratio, low, high)
    return Comparison(eager, deployed, ratio, low, high, noisy, note, threads, feed)


def ratio_interval(
    eager_ms: Sequence[float], deployed_ms: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of median(eager) / median(deployed), of two equally long sequences of paired samples."""
    eager, deployed = _samples("eager", eager_ms), _samples("deployed", deployed_ms)
    if eager.size != deployed.size:
        raise InputError(f"{eager.size} samples cannot be paired with {deployed.size}", fix="take both in every round")
    ratios = np.concatenate(
        [
            np.median(eager[rounds], axis=1) / np.median(deployed[rounds], axis=1)
            for rounds in _resampled(eager.size, resamples, seed)
        ]
    )
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _resampled(n: int, resamples: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Indices of rounds, one row of ``n`` a resample, in pieces of about a million so that memory stays small."""
    generator = np.random.default_rng(seed)
    length = max(1, round(n ** (1 / 3)))
    starts = generator.integers(0, n, size=(resamples, -(-n // length), 1))
    rounds = ((starts + np.arange(length)) % n).reshape(resamples, -1)[:, :n]
    return np.array_split(rounds, min(resamples, 1 + rounds.size // 2**20))


def _samples(runner: str, samples_ms: Sequence[float]) -> Floats:
    samples = np.asarray(samples_ms, dtype=np.float64)
    if samples.ndim != 1 or not samples.size or not (np.isfinite(samples) & (samples > 0)).all():
        raise InputError("latencies are one or more positive times", where=runner, fix="measure at least one round")
    return samples


def _reading(n: int, ratio: float, low: float, high: float) -> tuple[bool, str]:
    """Whether the interval is too noisy to tell, and the sentence that says what it shows."""
    interval = f"the 95 % interval of the ratio is {low:.3g} to {high:.3g}"
    if n < FEWEST:
        return True, f"only {n} rounds were measured, too few to tell: measure for more seconds"
    if (high - low) / (2 * ratio) > WIDEST:
        return True, f"the machine is too noisy to tell: {interval}; close other programs or measure for more seconds"
    if low <= 1 <= high:
        return False, f"no difference is shown: {interval}"
    return False, f"the artefact is {'faster' if low > 1 else 'slower'}: {interval}"
