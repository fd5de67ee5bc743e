"""How long a command takes that only reads, or refuses: beside ``python -c pass``, and in seconds.

``--help`` must stay within 20 times ``python -c pass``; what reads a bundle's report, and an option that is malformed,
within half a second of a processor, which counts the same on a machine that does other things. All take turns, so that
whatever slows it down meets each; medians are compared. Exit code 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT = 20.0
ANSWER = 0.5
"""Seconds of a processor that an answer may take."""
_WARM_UP = 2  # rounds, for the disk's cache and Python's compiled files
_BARE, _HELP = "python -c pass", "normdeploy --help"


class Taken(NamedTuple):
    """Seconds of one run: by the wall clock, and of a processor."""

    wall: float
    processor: float


def taken(command: Sequence[str]) -> Taken:
    """The time of one run of ``command``, whatever it answers."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def measure(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Taken]]:
    """The times of each of ``commands``, which take turns."""
    for _ in range(_WARM_UP):
        for command in commands.values():
            taken(command)
    samples = [{name: taken(command) for name, command in commands.items()} for _ in range(rounds)]
    return {name: [each[name] for each in samples] for name in commands}


def told(name: str, times: Sequence[Taken]) -> str:
    """One line: the median and the middle half by the wall clock, and the median of a processor's time."""
    low, middle, high = (1000 * value for value in statistics.quantiles([each.wall for each in times], n=4))
    return f"{name:34}{middle:5.0f} ms  (middle half {low:.0f} to {high:.0f})  {1000 * processor(times):5.0f} ms of CPU"


def processor(times: Sequence[Taken]) -> float:
    """The median seconds of a processor."""
    return statistics.median(each.processor for each in times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("out/digits_resnet"))
    parser.add_argument("--rounds", type=int, default=21, help="turns that each command gets, at least 2")
    asked = parser.parse_args()
    ours, bundle = str(Path(sys.executable).with_name("normdeploy")), str(asked.bundle)
    spelled = [["report", bundle], ["explain", bundle], ["explain", "NF201"], ["judge", bundle, "--k", "2"]]
    spelled += [["inspect", bundle], ["export", "--no-such-option"]]
    commands = {_BARE: [sys.executable, "-c", "pass"], _HELP: [ours, "--help"]}
    commands |= {" ".join(["normdeploy", *words]): [ours, *words] for words in spelled}
    times = measure(commands, max(2, asked.rounds))
    for name, each in times.items():
        print(told(name.replace(bundle, "BUNDLE"), each))
    ratio = processor(times[_HELP]) / processor(times[_BARE])
    slow = [name for name in times if processor(times[name]) > ANSWER]
    print(f"--help takes {ratio:.1f} times as long as python alone; the limit is {LIMIT:g}")
    print(f"over {ANSWER:g} s of CPU: {', '.join(slow) or 'none'}; {len(times[_BARE])} runs each, in turns")
    return 1 if slow or ratio > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
