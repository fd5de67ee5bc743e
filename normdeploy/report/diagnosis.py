"""What the doctor found, on a terminal: every norm with its neighbours, then the findings; what calibration changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normdeploy.doctor.findings import Finding, called
from normdeploy.report import view

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_MOST = 5
"""Findings of one code that are shown."""


class Norm(Protocol):
    """A row of the table."""

    @property
    def module(self) -> str:
        """Return its dotted name."""

    @property
    def kind(self) -> str:
        """Return its class."""

    @property
    def behind(self) -> tuple[str, ...]:
        """Return what it reads."""

    @property
    def before(self) -> tuple[str, ...]:
        """Return what reads it."""

    @property
    def fate(self) -> str:
        """Return what folding makes of it."""


def show_diagnosis(norms: Sequence[Norm], findings: Sequence[Finding], notes: Sequence[str], console: Console) -> None:
    """Print ``norms``, ``findings`` and ``notes``."""
    if norms:
        console.print(_table(norms))
    show_findings(findings, console)
    for note in notes:
        console.print(Text(f"note: {view.plain(note)}", "dim"), soft_wrap=True)


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print ``findings``, the worst first, a few of each code."""
    shown: Counter[str] = Counter()
    for finding in sorted(findings, key=lambda each: [*_STYLES].index(each.severity)):
        shown[finding.code] += 1
        if shown[finding.code] <= _MOST:
            console.print(Text(view.plain(str(finding)), _STYLES[finding.severity]), soft_wrap=True)
    for code, count in shown.items():
        if count > _MOST:
            console.print(Text(f"{code}: {count - _MOST} more, which --json lists"), soft_wrap=True)
    counts: Counter[str] = Counter(finding.severity for finding in findings)
    told = ", ".join(view.count(counts[severity], severity) for severity in _STYLES if counts[severity])
    console.print(Text(f"{told}; normdeploy explain CODE tells more" if told else "nothing found"), soft_wrap=True)


def _table(norms: Sequence[Norm]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("norm", "class", "reads", "is read by", "folding"):
        table.add_column(heading, overflow="fold")
    for norm in norms:
        cells = (
            called(norm.module),
            norm.kind,
            ", ".join(norm.behind),
            ", ".join(norm.before),
            norm.fate,
        )
        table.add_row(*(Text(view.plain(cell)) for cell in cells))
    return table


def show_calibrated(rows: Sequence[Any], batches: int, console: Console) -> None:
    """Print the statistics of each norm before and after, each the mean over its channels."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("norm", "mean", "then", "variance", "then", "a mean moved by at most"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        numbers = [f"{each:.4g}" for each in (row.mean_before, row.mean_after, row.var_before, row.var_after)]
        table.add_row(Text(view.plain(called(row.module))), *numbers, f"{row.moved:.3g} deviations")
    console.print(table)
    console.print(view.count(batches, "batch", "batches"))
