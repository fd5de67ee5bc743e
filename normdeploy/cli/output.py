"""What the commands print on stdout: their results, as text or as one JSON document."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from normdeploy import codes
from normdeploy.cli.options import Talk
from normdeploy.cli.streams import SAID, console
from normdeploy.errors import VerdictError, cut, plain

if TYPE_CHECKING:
    from normdeploy.bench.stats import Comparison, Latency
    from normdeploy.codes import Page
    from normdeploy.engine import Sidecar
    from normdeploy.engine.layernorm_times import Times
    from normdeploy.fleet.page import Row
    from normdeploy.fold.ledger import Entry, Ledger
    from normdeploy.parity.verdict import Verdict
    from normdeploy.pipeline.calibrate import Calibrated
    from normdeploy.pipeline.examine import Diagnosis
    from normdeploy.report.schema import Report
    from normdeploy.serving.check import Checked
    from normdeploy.serving.measure import Load
    from normdeploy.serving.repository import Packaged
    from normdeploy.serving.server import Server


def command_line() -> str:
    """Return the command that runs, as it can be typed again."""
    return plain(shlex.join(["normdeploy", *sys.argv[1:]])) if sys.argv[1:2] else ""


def report(report: Report, talk: Talk, path: Path | None = None) -> None:
    """Print the report of an export; ``path`` is its bundle."""
    from normdeploy.report.console import show

    if talk.json:
        document(report)
    else:
        show(report, console(sys.stdout), path=path, said=SAID)


def verdict(verdict: Verdict, talk: Talk) -> int:
    """Print a parity verdict, in JSON what the report has as ``parity``, and return its exit code.

    Raises MissingKernelError where the graph passed and nothing here runs it.
    """
    from normdeploy.parity.verdict import require_run
    from normdeploy.report.console import show_parity

    if talk.json:
        document(verdict)
    else:
        show_parity(verdict, console(sys.stdout))
    require_run(verdict)
    return 0 if verdict.passed else VerdictError.exit_code


def latency(measured: Comparison | Latency, talk: Talk) -> None:
    """Print a latency; in JSON what the report has as ``latency``, or as ``deployed`` in there."""
    from normdeploy.bench.stats import Latency
    from normdeploy.report.console import show_latencies, show_latency

    if talk.json:
        document(measured)
    elif isinstance(measured, Latency):
        show_latencies([measured], console(sys.stdout))
    else:
        show_latency(measured, console(sys.stdout))


def layernorms(file: Path, times: Sequence[Times], talk: Talk) -> None:
    """LayerNorms as they were measured, and where that is recorded; in JSON a list of the measurements."""
    if talk.json:
        document(list(times))
        return
    from rich.table import Table

    table = Table("norm", "type", "N", "rows", "native ms", "plugin ms", "plugin")
    for each in times:
        ratio = f"{each.native.median / each.plugin.median:.2f}x"
        medians = f"{each.native.median:.3g}", f"{each.plugin.median:.3g}"
        table.add_row(each.operator, each.dtype, f"{each.features:,}", f"{each.rows:,}", *medians, ratio)
    console(sys.stdout).print(table)
    print(plain(str(file)))


def latencies(measured: Mapping[int | None, Comparison | Latency], talk: Talk) -> None:
    """Latencies by the size of a batch; one alone, at the usual size, as :func:`latency` shows it."""
    if talk.json and None not in measured:
        document({str(size): each for size, each in measured.items()})
        return
    for each in measured.values():
        latency(each, talk)


def ledger(ledger: Ledger, talk: Talk, path: Path, precision: str = "fp32") -> None:
    """Print what became of each norm on the way into ``path``; in JSON what the report has as ``ledger``.

    Of a ``precision`` of 16 bits it is said that nobody has judged what it costs, and what does.
    """
    from normdeploy.report.console import show_norms

    if talk.json:
        document(ledger)
        return
    show_norms(ledger.norms(), console(sys.stdout), rest=f"normdeploy explain {shlex.quote(str(path))} tells of each")
    if not ledger.entries:
        print(_nothing_to_fold(path))
    for note in (*ledger.notes, *(f"dropped, its proof failed: {dropped}" for dropped in ledger.dropped)):
        print(cut(plain(f"note: {note}")))
    if precision != "fp32":
        file = shlex.quote(str(path))
        print(f"note: what {precision} costs is not judged here; beside the PyTorch module it is, by")
        print(plain(f"  normdeploy verify {file} --model PACKAGE.MODULE:FACTORY --weights FILE --input SPEC"))
    print(f"{ledger.seconds:.2f} s, of which {ledger.validation_seconds:.2f} s to prove each step in float64")
    print(plain(str(path)))


def _nothing_to_fold(path: Path) -> str:
    """Return that there is nothing to fold, and where that is so because the exporter of torch has done it, that."""
    from normdeploy import onnxfile

    maker, folded = onnxfile.made_by(path)
    has = "the model has no norms and no constant maps"
    if folded:
        return (
            f"nothing to fold: {has}; torch.onnx.export has folded {folded} BatchNormalization itself (optimize=True)"
        )
    if maker == "pytorch":
        has += "; torch.onnx.export folds BatchNormalization itself, but with dynamo=True, optimize=False"
    return f"nothing to fold: {has}"


def engine(sidecar: Sidecar, talk: Talk, path: Path, *, layers: bool) -> None:
    """Print what was built; in JSON what lies beside the plan."""
    from normdeploy.engine.view import layer_table
    from normdeploy.report.console import show_engine

    if talk.json:
        document(sidecar)
        return
    shown = console(sys.stdout)
    if layers:
        shown.print(layer_table(sidecar.layers))
    show_engine(sidecar, shown)
    print(plain(str(path)))


def calibrated(found: Calibrated, talk: Talk, path: Path | None) -> None:
    """Print the statistics before and after a calibration."""
    from normdeploy.report.diagnosis import show_calibrated

    if talk.json:
        document(found)
        return
    show_calibrated(found.rows, found.batches, console(sys.stdout))
    print(plain(str(path)))


def diagnosis(found: Diagnosis, talk: Talk) -> None:
    """Print what the doctor found."""
    from normdeploy.report.diagnosis import show_diagnosis

    if talk.json:
        document(found)
    else:
        show_diagnosis(found.norms, found.findings, found.notes, console(sys.stdout))


def exports(rows: Sequence[Row], talk: Talk, out: Path) -> None:
    """Print what came of each export of a fleet, and the error of each that failed; in JSON a list of it."""
    if talk.json:
        document(rows)
        return
    for row in rows:
        before = "" if row.again or row.code else ", as before"
        print(plain(f"{row.name}  {row.state}{before}  {row.norms}"))
        for line in row.said.splitlines() if row.code else ():
            print(f"  {plain(line)}")
    print(plain(str(out / "fleet.html")))


def serving(server: Server, talk: Talk) -> None:
    """Print what a server that is ready serves, and where."""
    models, metrics = server.models(), f"{server.http.rpartition(':')[0]}:{server.at.metrics}/metrics"
    if talk.json:
        document({"models": dict(models), "http": server.http, "grpc": server.grpc, "metrics": metrics})
    for name, version in () if talk.json else models:
        print(plain(f"{name} version {version}"))
    if not talk.json:
        print(f"http     {server.http}\ngrpc     {server.grpc}\nmetrics  {metrics}\nready; Ctrl-C ends it")
    sys.stdout.flush()


def checked(results: Sequence[Checked], talk: Talk) -> None:
    """Print what servers gave for golden inputs; in JSON a list of it."""
    if talk.json:
        document(results)
    for each in () if talk.json else results:
        said = each.problem or f"{each.model} version {each.version} gives the golden outputs"
        print(plain(f"{each.url}  {said}"))


def loads(measured: Sequence[Load], talk: Talk) -> None:
    """Latencies under load, a row each; in JSON a list of them."""
    if talk.json:
        document(measured)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("where", "clients", "p50 ms", "p90 ms", "p99 ms", "per second", "rows a run"):
        table.add_column(name, justify="left" if name == "where" else "right")
    for each in measured:
        times = (f"{value:.3g}" for value in (each.p50_ms, each.p90_ms, each.p99_ms))
        rows = "" if each.rows is None else f"{each.rows:.1f}"
        table.add_row(plain(each.where), str(each.clients), *times, f"{each.per_second:,.0f}", rows)
    console(sys.stdout).print(table)


def packaged(made: Sequence[Packaged], talk: Talk) -> None:
    """Print what was added to a repository; in JSON a list of it."""
    if talk.json:
        document(made)
    for each in () if talk.json else made:
        batch = f"in batches along {each.batch}" if each.batch else "without batches"
        print(plain(f"{each.name} version {each.version}, served {batch}"))
        for note in each.notes:
            print(plain(f"note: {note}"))
        print(plain(str(each.folder)))


def entries(entries: Sequence[Entry], talk: Talk) -> None:
    """Print entries of a ledger with everything they say; in JSON a list of them."""
    if talk.json:
        document(entries)
    for entry in () if talk.json else entries:
        print("\n  ".join(cut(plain(line)) for line in _lines(entry)))


def _lines(entry: Entry) -> Iterator[str]:
    yield f"{entry.module or entry.node}  {entry.kind}"
    yield str(entry)
    if entry.ulps is not None:
        yield f"largest change of a weight: {entry.ulps:.3g} ulp"
    if entry.residual is not None:
        yield f"largest relative error of its validation in float64: {entry.residual:.2g}"
    if entry.reason and entry.outcome != "left":
        yield f"in detail: {entry.reason}"
    if entry.fix:
        yield f"fix: {entry.fix}"
    for code in entry.codes:
        yield f"normdeploy explain {code}: {codes.page(code).title}"


def page(page: Page, talk: Talk) -> None:
    """Print what a code means; in JSON its page."""
    if talk.json:
        document(page)
        return
    print(f"{page.code}  {page.title}")
    for heading in ("what", "why", "example", "fix"):
        print(fill(f"{heading}: {getattr(page, heading)}", _TEXT, initial_indent="  ", subsequent_indent="    "))


_TEXT = 100
"""Columns of what is written for reading."""


def document(content: Any) -> None:
    """Print one JSON document; NaN and infinities are strings, as the published schema says."""
    from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

    try:
        text = to_json(content, inf_nan_mode="strings").decode()
    except PydanticSerializationError:  # a path that is not in UTF-8
        text = to_json(_spelled(to_jsonable_python(content)), inf_nan_mode="strings").decode()
    print(json.dumps(json.loads(text), indent=2))  # in ASCII: a name may not turn the text of a terminal around


def _spelled(value: Any) -> Any:
    """Return what JSON is made of with every text in it as by :func:`plain`."""
    if isinstance(value, dict):
        return {_spelled(key): _spelled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_spelled(each) for each in value]
    return plain(value) if isinstance(value, str) else value
