"""The report on a terminal: norms before → after, parity, latency, notes. It renders the schema and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normdeploy.bench.choice import Tuning
from normdeploy.bench.stats import Comparison, Latency
from normdeploy.engine.sidecar import Sidecar
from normdeploy.errors import cut
from normdeploy.fold.ledger import Entry
from normdeploy.parity.verdict import Part, Verdict
from normdeploy.report import batches, view
from normdeploy.report import tuning as tuned
from normdeploy.report.diagnosis import show_findings
from normdeploy.report.schema import Report

MOST_ROWS = 16
"""A model with more norms than this is shown by outcome, a line each; the report has the full list."""
_STYLES = {"folded": "green", "composed": "green", "reduced": "cyan", "left": "yellow"}


def show(report: Report, console: Console, *, path: Path | None = None, said: Collection[str] = ()) -> None:
    """Print ``report``, without the notes that were ``said`` before; ``path`` is the bundle it was written to.

    Colour is the console's decision.
    """
    _line(console, f"{report.factory}  {report.weights or 'with the weights of its factory'}", "bold")
    _line(console, f"normalizations  {view.before_after(report)}", "bold")
    show_norms(report.ledger.norms(), console)
    if report.findings:
        show_findings(report.findings, console)
    if report.parity is not None:
        show_parity(report.parity, console)
    if report.plugin_parity is not None:
        passed = report.plugin_parity.passed
        _line(console, view.plugins(report.plugin_parity), "bold" if passed else "bold red")
    if report.tuning is not None:
        show_tuning(report.tuning, console)
    if report.latency is not None:
        show_latency(report.latency, console)
    if report.latency_by_batch:
        rows = [tuple(map(_text, row)) for row in batches.rows(report.latency_by_batch)]
        console.print(_table(batches.columns(report.latency_by_batch), rows, right=len(rows[0])))
    if report.engine is not None:
        show_engine(report.engine, console)
    for note in [note for note in view.notes(report) if note not in said]:
        _line(console, f"note: {note}", "dim")
    if path is not None:
        console.print(Text(view.plain(str(path)), "bold"), soft_wrap=True)


def show_norms(norms: Sequence[Entry], console: Console, *, rest: str = "the report lists each") -> None:
    """Print what became of each of ``norms``; ``rest`` says where each is told of, where they are too many."""
    if not norms:
        return
    if len(norms) <= MOST_ROWS:
        rows = [(entry.module or entry.node, entry.kind, entry.outcome, str(entry)) for entry in norms]
        console.print(_table(("module", "norm", "what became of it"), [_norm_row(*row) for row in rows]))
        return
    console.print(_table(("norms", "norm", "what became of them", "such as"), [*map(_group_row, view.groups(norms))]))
    _line(console, f"{len(norms)} norms in all; {rest}", "dim")


def _norm_row(module: str, kind: str, outcome: str, became: str) -> tuple[Text, ...]:
    return _text(module), _text(kind), _text(became, _STYLES[outcome])


def _group_row(group: Sequence[Entry]) -> tuple[Text, ...]:
    first = group[0]
    became = _text(view.outcome(first), _STYLES[first.outcome])
    return _text(str(len(group))), _text(first.kind), became, _text(view.examples(group))


def show_parity(verdict: Verdict, console: Console) -> None:
    """Print the verdict, and of each part the judgement that decides it."""
    style = "bold green" if verdict.passed else "bold yellow" if verdict.unjudged else "bold red"
    _line(console, f"parity {view.word(verdict)}", style)
    parts: tuple[tuple[Part, str], ...] = (
        ("graph", verdict.graph_formula), ("rounding", verdict.rounding_formula), ("runtime", verdict.formula),
    )  # fmt: skip
    for part, formula in parts:
        passed = view.part_passed(verdict, part)
        if passed is not None:
            _line(console, f"  the {part} {'passed' if passed else 'FAILED'}  {formula}", "" if passed else "red")
    columns = ("part", "worst output", "feed", "error", "allowed beside", "deployed", "bound")
    rows = [row for part, _ in parts for row in _worst_rows(verdict, part)]
    console.print(_table(columns, rows, right=3))
    if verdict.of("runtime"):
        _line(console, view.least_k(verdict))
    _line(console, view.sentence(verdict), "" if verdict.passed else "red")
    if verdict.first_divergent is not None:
        _line(console, f"first module outside the bound: {verdict.first_divergent}", "red")
    if verdict.first_node is not None:
        _line(console, f"first node by its own error: {verdict.first_node}", "dim" if verdict.passed else "red")
    for note in verdict.notes:
        _line(console, f"note: {note}", "dim")


def _worst_rows(verdict: Verdict, part: Part) -> list[tuple[Text, ...]]:
    judged = view.worst(verdict, part)
    if judged is None:
        return []
    return [
        tuple(
            map(
                _text,
                (part, judged.measurement.output, judged.measurement.feed, row.name, *map(view.sig, row.values)),
            )
        )
        for row in view.two_errors(judged)
    ]


def show_engine(sidecar: Sidecar, console: Console) -> None:
    """Print what an engine was built by and for, and what its layers compute in."""
    _line(console, f"engine  {view.engine(sidecar)}", "bold")
    _line(console, view.engine_layers(sidecar))
    for note in sidecar.notes:
        _line(console, f"note: {note}", "dim")


def show_tuning(tuning: Tuning, console: Console) -> None:
    """Print each form that was tried, and why it was kept or not."""
    _line(console, f"tuning  {tuned.headline(tuning)}", "bold")
    rows = [tuple(_text(cell, "green" if row.kept else "") for cell in row.cells) for row in tuned.rows(tuning)]
    console.print(_table(tuned.COLUMNS, rows))
    for text in tuned.not_measured(tuning):
        _line(console, f"not measured: {text}", "dim")
    _line(console, tuned.rule(tuning), "dim")


def show_latency(latency: Comparison, console: Console) -> None:
    """Print both latencies and their ratio."""
    _line(console, f"latency  {latency.feed}, {view.count(latency.threads, 'thread')}", "bold")
    show_latencies(view.rows_of(latency), console)
    if brought := view.fold_ratio(latency):
        _line(console, brought, "bold")
    _line(console, view.ratio(latency), "" if brought else "bold")
    if latency.noisy:
        _line(console, f"warning: {latency.note}", "bold yellow")


def show_latencies(runs: Sequence[Latency], console: Console) -> None:
    """Print the latency of each runner, in a table."""
    on_gpu = any(run.device_p50_ms is not None for run in runs)
    columns = ("runner", "p50 ms", *(("GPU p50 ms",) if on_gpu else ()), "p90 ms", "p99 ms", "per second", "calls")
    rows = [
        (run.runner, view.sig(run.p50_ms), *((view.device_time(run),) if on_gpu else ()), view.sig(run.p90_ms),
         view.sig(run.p99_ms), view.sig(run.throughput_per_s), str(run.n))
        for run in runs
    ]  # fmt: skip
    console.print(_table(columns, [tuple(map(_text, row)) for row in rows], right=len(columns) - 1))


def _table(columns: Sequence[str], rows: Iterable[tuple[Text, ...]], *, right: int = 0) -> Table:
    """A table whose last ``right`` columns hold numbers; long names fold to the next line, nothing is cut off."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numeric = index >= len(columns) - right
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*row)
    return table


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(_text(text, style))


def _text(text: str, style: str = "") -> Text:
    """As it is: names come from files, so neither markup nor control characters in them may act, or fill it."""
    return Text(cut(view.plain(text)), style)
