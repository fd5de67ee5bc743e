"""Statistics of paired latency samples: percentiles, and the ratio of medians with its uncertainty.

Round i gives one sample of each runner under nearly the same conditions, so rounds are resampled as pairs. A machine
slows down and recovers over many rounds, so whole blocks of consecutive rounds are resampled (circular block bootstrap,
blocks of about n^(1/3) rounds); independent rounds would promise too narrow an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """One runner's latencies, in milliseconds a call; ``throughput_per_s`` counts calls, not items of a batch.

    ``device_p50_ms`` is the median on a GPU, between two events on its stream; None where it ran on none.
    """

    runner: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...]
    device_p50_ms: float | None = None


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
        unfolded: latency of the unfolded graph in the artefact's own runtime; None where it was not measured.
        fold_ratio: its median over the artefact's: what folding brought, not what the runtime brings.
        fold_low: lower end of that ratio's 95 % confidence interval.
        fold_high: its upper end.
        processes: fresh processes that were measured in.
        compiled: latency of what torch.compile makes of the module; None where it was not measured.
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
    unfolded: Latency | None = None
    fold_ratio: float | None = None
    fold_low: float | None = None
    fold_high: float | None = None
    processes: int = 1
    compiled: Latency | None = None


def latency(runner: str, samples_ms: Sequence[float], device_ms: Sequence[float] = ()) -> Latency:
    """Return the latency of ``runner`` from its samples, in milliseconds, in the order they were taken.

    ``device_ms`` are those of a GPU's own events, where it ran on one.
    """
    samples = _samples(runner, samples_ms)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    mean = float(samples.mean())
    device = float(np.median(device_ms)) if len(device_ms) else None
    return Latency(runner, samples.size, p50, p90, p99, mean, 1000.0 / mean, tuple(samples.tolist()), device)


def compare(eager: Latency, deployed: Latency, *, threads: int, feed: str, seed: int = 0) -> Comparison:
    """Return the comparison of two latencies whose i-th samples belong to one round; the same seed gives the same
    interval.
    """
    ratio = eager.p50_ms / deployed.p50_ms
    low, high = ratio_interval(eager.samples_ms, deployed.samples_ms, seed=seed)
    noisy, note = _reading(eager.n, ratio, low, high)
    return Comparison(eager, deployed, ratio, low, high, noisy, note, threads, feed)


def ratio_interval(
    eager_ms: Sequence[float], deployed_ms: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of median(eager) / median(deployed), of two equally long sequences of paired samples."""
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


def hierarchical_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Return the ratio median(first) / median(second) over several processes, with the ends of its 95 % interval.

    ``pairs`` are the paired samples of each process. Where a process places its memory and code makes it faster or
    slower than the next, so rounds of one process say little of another one: processes are resampled, and blocks of
    rounds within each. The ratio is the geometric mean over the processes. A bootstrap over so few of them is too
    narrow; it is widened as Student's t is wider than the normal distribution, and by sqrt(p / (p - 1)).

    Raises InputError where there is no process, or samples cannot be paired.
    """
    if not pairs:
        raise InputError("no process was measured", fix="measure at least one")
    logs, draws = [], []
    for index, (first_ms, second_ms) in enumerate(pairs):
        first, second = _samples("first", first_ms), _samples("second", second_ms)
        if first.size != second.size:
            raise InputError(
                f"{first.size} samples cannot be paired with {second.size}", fix="take both in every round"
            )
        logs.append(float(np.log(np.median(first) / np.median(second))))
        drawn = [
            np.log(np.median(first[rounds], axis=1) / np.median(second[rounds], axis=1))
            for rounds in _resampled(first.size, resamples, seed + index)
        ]
        draws.append(np.concatenate(drawn))
    count, middle = len(pairs), float(np.mean(logs))
    chosen = np.random.default_rng(seed).integers(0, count, (resamples, count))
    means = np.stack(draws)[chosen, np.arange(resamples)[:, None]].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    wider = 1.0 if count == 1 else _STUDENT.get(count - 1, 2.0) / 1.96 * float(np.sqrt(count / (count - 1)))
    return (
        float(np.exp(middle)),
        float(np.exp(middle + wider * (low - middle))),
        float(np.exp(middle + wider * (high - middle))),
    )


_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Degrees of freedom → the 97.5 % point of Student's t."""


def over_processes(
    samples: Sequence[Mapping[str, Sequence[float]]],
    names: Mapping[str, str],
    *,
    threads: int,
    feed: str,
    seed: int = 0,
    device: Sequence[Mapping[str, Sequence[float]]] = (),
) -> Comparison:
    """Return the comparison of what was measured in several processes.

    ``samples`` has milliseconds by row, ``eager``, ``deployed`` and, where they were measured, ``unfolded`` and
    ``compiled``, for each process; the i-th ones of a process belong to one round. ``names`` says what the runners are
    called, ``device`` has the times of a GPU's events in the same way, where it ran on one.
    """
    runs = {row: latency(names[row], _pooled(samples, row), _pooled(device, row)) for row in samples[0]}
    by_eager = [(process["eager"], process["deployed"]) for process in samples]
    ratio, low, high = hierarchical_interval(by_eager, seed=seed)
    noisy, note = _reading(min(len(process["deployed"]) for process in samples), ratio, low, high)
    made = Comparison(runs["eager"], runs["deployed"], ratio, low, high, noisy, note, threads, feed)
    made = replace(made, processes=len(samples), compiled=runs.get("compiled"))
    if "unfolded" not in runs:
        return made
    fold = hierarchical_interval([(process["unfolded"], process["deployed"]) for process in samples], seed=seed)
    return replace(
        made, unfolded=runs["unfolded"], fold_ratio=fold[0], fold_low=fold[1], fold_high=fold[2],
    )  # fmt: skip


def _pooled(samples: Sequence[Mapping[str, Sequence[float]]], row: str) -> list[float]:
    return [time for process in samples for time in process.get(row, ())]


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
    """Return True if the interval is too noisy to tell, and the sentence that says what it shows."""
    interval = f"the 95 % interval of the ratio is {low:.3g} to {high:.3g}"
    if n < FEWEST:
        return True, f"only {n} rounds were measured, too few to tell: measure for more seconds"
    if (high - low) / (2 * ratio) > WIDEST:
        return True, f"the machine is too noisy to tell: {interval}; close other programs or measure for more seconds"
    if low <= 1 <= high:
        return False, f"no difference is shown: {interval}"
    return False, f"the artefact is {'faster' if low > 1 else 'slower'}: {interval}"
