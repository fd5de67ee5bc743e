"""Folds random graphs and holds each result to the properties of tests/fold/fuzz.

    .venv/bin/python scripts/fuzz_fold.py --graphs 100000
    make fuzz N=100000

Graphs are drawn in blocks, each from a seed of its own, which is printed: the same seed and number draw the same
graphs again, and ``--seed`` goes on where a run ended. A violation is printed as ONNX text, shrunk, and ends the run
with exit code 1; with ``--keep`` it is written there as it was drawn, and the run goes on. At the end stands what the
graphs were made of and what became of their maps.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fold"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "fold" / "fuzz"))

# mypy does not look into the tests
from properties import Violation, check  # type: ignore[import-not-found]
from runs import each_case  # type: ignore[import-not-found]
from tally import Tally  # type: ignore[import-not-found]

BLOCK = 500  # graphs a seed: long enough for hypothesis to vary what it drew, short enough to draw again
_SEEDS = 2**32
FIRST = (41, 700, 4005)
"""Seeds that once drew what folded wrong or not at once: they come first where no seed is asked for."""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--graphs", type=int, default=10000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first block (default: a new one)")
    parser.add_argument("--keep", type=Path, help="a folder for graphs that violate a property: the run goes on")
    parser.add_argument(
        "--again", type=int, default=1, help="fold one graph in so many again, and without proofs (default: each)"
    )
    asked = parser.parse_args()
    start = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
    before = FIRST if asked.seed is None else ()
    tally, begin, failed = Tally(), time.perf_counter(), 0
    for index, first in enumerate(range(0, asked.graphs, BLOCK)):
        count = min(BLOCK, asked.graphs - first)
        seed = before[index] if index < len(before) else start + index
        look = Look(seed, tally, asked.keep, asked.again)
        try:
            each_case(seed, count, look.at, shrink=asked.keep is None)
        except Violation as violation:
            print(f"{violation}\n\nTo see it again: {sys.executable} {__file__} --seed {seed} --graphs {count}")
            return 1
        failed += look.failed
        pace = (first + count) / (time.perf_counter() - begin)
        print(
            f"seed {seed}: {first + count} of {asked.graphs} graphs, {failed} violate, {pace:.0f} a second", flush=True
        )
    print(tally)
    return int(failed > 0)


class Look:
    """Looks at the graphs of one block, one by one."""

    def __init__(self, seed: int, tally: Any, keep: Path | None, again: int) -> None:
        self._seed, self._tally, self._keep, self._again = seed, tally, keep, again
        self._count = self.failed = 0

    def at(self, case: Any) -> None:
        """Check one graph, and count it."""
        self._count += 1
        try:
            self._tally.add(case, check(case, again=self._count % self._again == 0))
        except Violation as violation:
            if self._keep is None:
                raise
            self.failed += 1
            self._write(self._keep, case, str(violation))

    def _write(self, folder: Path, case: Any, told: str) -> None:
        place = folder / f"{self._seed}-{self._count}"
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(case.given, place.with_suffix(".onnx"))
        place.with_suffix(".txt").write_text(told)
        print(f"{place}: {told.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
