"""A fleet as one table: a page that works offline, and its rows for whoever prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from normdeploy.report import view
from normdeploy.report.schema import Report

_STATES = {0: "passed", 1: "failed", 2: "refused", 3: "cannot", 130: "interrupted"}


@dataclass(frozen=True)
class Row:
    """What came of one export.

    Attributes:
        code: its exit code; ``state`` is that in a word.
        said: the sentence of its verdict, or its error.
        norms: how many there were and are.
        latency: how much faster than eager it is.
        folder: where its report is, beside the page; empty where it has none.
        again: whether it was run, or was done before.
    """

    name: str
    code: int
    state: str
    seconds: float
    precision: str
    norms: str
    said: str
    latency: str
    weights: str
    folder: str
    again: bool


def row(name: str, code: int, seconds: float, said: str, report: Report | None, folder: str, *, again: bool) -> Row:
    """Return what came of an export, of which there is a ``report`` in ``folder`` where parity was judged."""
    state = _STATES.get(code, f"exit code {code}")
    if report is None:
        return Row(name, code, state, seconds, "", "", said, "", "", "", again)
    sentence = view.sentence(report.parity) if report.parity else said
    latency = view.ratio(report.latency) if report.latency else ""
    weights = view.size(report.bytes_after) if report.bytes_after else ""
    norms = view.before_after(report)
    return Row(name, code, state, seconds, report.precision, norms, sentence, latency, weights, folder, again)


def page(rows: Sequence[Row], *, waiting: int) -> str:
    """Return the page of ``rows``; ``waiting`` exports are still to be run."""
    environment = Environment(
        loader=PackageLoader("normdeploy.fleet", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: view.plain(value) if type(value) is str else value,
    )  # fmt: skip
    passed = sum(not each.code for each in rows)
    return environment.get_template("page.html.j2").render(rows=rows, waiting=waiting, passed=passed)
