"""Folds random graphs and holds each result to the properties of tests/fold/fuzz.

    .venv/bin/python scripts/fuzz_fold.py --graphs 100000
    make fuzz N=100000

Graphs are drawn in blocks, each from a seed of its own, which is printed: the same seed and number draw the same
graphs again, and ``--seed`` goes on where a run ended. A violation is printed as ONNX text, shrunk, and ends the run
with exit code 1. At the end stands what the graphs were made of and what became of their maps.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fold"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fold" / "fuzz"))

# mypy does not look into the tests
from properties import Violation, check  # type: ignore[import-not-found]
from runs import each_case  # type: ignore[import-not-found]
from tally import Tally  # type: ignore[import-not-found]

BLOCK = 500  # graphs a seed: long enough for hypothesis to vary what it drew, short enough to draw again
_SEEDS = 2**32


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--graphs", type=int, default=10000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first block (default: a new one)")
    asked = parser.parse_args()
    start = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
    tally, begin = Tally(), time.perf_counter()
    for index, first in enumerate(range(0, asked.graphs, BLOCK)):
        count = min(BLOCK, asked.graphs - first)
        try:
            each_case(start + index, count, lambda case: tally.add(case, check(case)))
        except Violation as violation:
            print(
                f"{violation}\n\nTo see it again: {sys.executable} {__file__} --seed {start + index} --graphs {count}"
            )
            return 1
        pace = (first + count) / (time.perf_counter() - begin)
        print(f"seed {start + index}: {first + count} of {asked.graphs} graphs, {pace:.0f} a second", flush=True)
    print(tally)
    return 0


if __name__ == "__main__":
    sys.exit(main())
