"""How far the intervals of ``bench`` can be believed: over repeated runs, how many overlap, and how often A is not A.

Two runs of the same comparison should have 95 % intervals that overlap in at least 90 of 100 pairs, and a runner that
is compared with itself should be called different in at most 5. Timings are drawn from a model of a machine: each
process places its memory anew and is a few percent faster or slower with each runner, a drift passes over many rounds,
and single rounds are disturbed. The interval of all rounds as if of one process, as it was before, stands beside.
"""

from __future__ import annotations

import argparse

import numpy as np

from normdeploy.bench.stats import hierarchical_interval, ratio_interval

Samples = list[tuple[list[float], list[float]]]


def run(generator: np.random.Generator, processes: int, rounds: int, placement: float, ratio: float) -> Samples:
    """Return the samples of one run of ``bench``: one pair of columns a process."""
    found: Samples = []
    for _ in range(processes):
        drift = np.cumsum(generator.normal(0, 0.002, rounds))
        columns = []
        for middle in (ratio, 1.0):
            own = np.exp(generator.normal(0, placement))
            noise = np.exp(0.03 * generator.gamma(2.0, size=rounds) + drift)
            columns.append((middle * own * noise).tolist())
        found.append((columns[0], columns[1]))
    return found


def pooled(samples: Samples, seed: int) -> tuple[float, float]:
    """Return the interval as it was before: all rounds as if of one process."""
    first = [time for one, _ in samples for time in one]
    second = [time for _, one in samples for time in one]
    return ratio_interval(first, second, seed=seed, resamples=400)


def hierarchical(samples: Samples, seed: int) -> tuple[float, float]:
    """Return the interval over processes and rounds."""
    return hierarchical_interval(samples, seed=seed, resamples=400)[1:]


def main() -> None:
    """Print, for each way to make an interval, the overlaps and the false differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    asked = parser.parse_args()
    print("| placement | interval | overlaps, of 100 pairs | A is not A, of 100 |\n| --: | --- | --: | --: |")
    for placement in (0.0, 0.01, 0.03):
        for name, interval in (("all rounds as one process", pooled), ("over processes and rounds", hierarchical)):
            generator, overlaps, different = np.random.default_rng(7), 0, 0
            for pair in range(asked.pairs):
                one, other = (
                    interval(run(generator, asked.processes, asked.rounds, placement, 1.3), 2 * pair + side)
                    for side in (0, 1)
                )
                overlaps += one[0] <= other[1] and other[0] <= one[1]
                low, high = interval(run(generator, asked.processes, asked.rounds, placement, 1.0), pair)
                different += not low <= 1 <= high
            share = 100 / asked.pairs
            print(
                f"| {100 * placement:.0f} % | {name} | {share * overlaps:.0f} | {share * different:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
