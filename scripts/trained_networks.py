"""Parity of ten really trained networks of PyPI, exported with no flag that touches the verdict.

Of each part that comparison is printed which comes closest to its bound, RMS or largest error: the error, what eager
PyTorch itself loses, and the bound. The packages come with ``make test-real``.

    python scripts/trained_networks.py
    python scripts/trained_networks.py --net fcpe crepe_full

Exit code 1 where one fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "real")]

from by_network import options  # noqa: E402
from trained import NETWORKS  # type: ignore[import-not-found]  # noqa: E402  # of the tests, behind the path to it

from normdeploy.parity.verdict import Judgement, Part, Verdict  # noqa: E402
from normdeploy.pipeline import report_of  # noqa: E402


def closest(judgement: Judgement) -> tuple[float, float, float, float]:
    """Return the share of its bound that an error takes, the error, eager's own and the bound: RMS or largest."""
    of = judgement.measurement
    pairs = (
        (of.deployed.rms, of.eager.rms, judgement.bound_rms),
        (of.deployed.max, of.eager.max, judgement.bound_max),
    )
    return max((error / bound if bound else 0.0, error, own, bound) for error, own, bound in pairs)


def cells(verdict: Verdict, part: Part) -> Iterator[str]:
    """Return the error, eager's own, the bound, and how many comparisons the unfolded graph excuses."""
    judged = verdict.of(part)
    _, error, own, bound = max(map(closest, judged))
    yield from (f"{error:.1e}", f"{own:.1e}", f"{bound:.1e}")
    if part == "runtime":
        yield f"{sum(each.excused for each in judged)} of {len(judged)}"


def main() -> int:
    """Print a row a network."""
    parser = options(__doc__, NETWORKS)
    asked = parser.parse_args()
    print("| network | graph | eager | bound | runtime | eager | bound | excused by the unfolded graph |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    failed = 0
    for name in asked.net:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = NETWORKS[name].command(out, "--no-bench")
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            report = report_of(out) if done.returncode == 0 else None
        if report is None or report.parity is None:
            failed += 1
            print(f"| {name} | fails: {done.stderr.strip()} |", flush=True)
        else:
            print(
                "|",
                " | ".join((name, *cells(report.parity, "graph"), *cells(report.parity, "runtime"))),
                "|",
                flush=True,
            )
    print(f"\n{len(asked.net) - failed} of {len(asked.net)} pass")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
