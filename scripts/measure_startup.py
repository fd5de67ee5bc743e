"""How long ``normdeploy --help`` takes, as a multiple of ``python -c pass``: it must stay within 20 times.

The two take turns, so that whatever slows the machine down meets both; the medians are compared. Exit code 1 where
the limit is passed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT = 20.0
_WARM_UP = 2  # rounds, for the disk's cache and Python's compiled files


def seconds(command: Sequence[str]) -> float:
    """The wall time of one run of ``command``."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def measure(commands: Sequence[Sequence[str]], rounds: int) -> list[list[float]]:
    """The times of each of ``commands``, which take turns."""
    for _ in range(_WARM_UP):
        for command in commands:
            seconds(command)
    samples = [[seconds(command) for command in commands] for _ in range(rounds)]
    return [list(column) for column in zip(*samples, strict=True)]


def told(name: str, times: Sequence[float]) -> str:
    """One line: the median and the middle half of ``times``, in milliseconds."""
    low, middle, high = (1000 * value for value in statistics.quantiles(times, n=4))
    return f"{name:20}{middle:7.1f} ms  (middle half {low:.1f} to {high:.1f}, {len(times)} runs)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31, help="turns that each command gets, at least 2")
    rounds = max(2, parser.parse_args().rounds)
    help_command = [str(Path(sys.executable).with_name("normdeploy")), "--help"]
    bare, ours = measure([[sys.executable, "-c", "pass"], help_command], rounds)
    ratio = statistics.median(ours) / statistics.median(bare)
    print(told("python -c pass", bare))
    print(told("normdeploy --help", ours))
    print(f"{ratio:.1f} times as long; the limit is {LIMIT:g}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
