"""What the commands print: results on stdout, as text or as one JSON document, everything else on stderr."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from textwrap import fill
from types import TracebackType
from typing import TYPE_CHECKING, Any

from normdeploy import codes
from normdeploy.cli.blame import of_given_code
from normdeploy.cli.options import Talk
from normdeploy.disk import WRITTEN, clear_all_but, held_now
from normdeploy.errors import (
    InputError,
    NormdeployError,
    UnavailableError,
    VerdictError,
    missing,
    plain,
    printable,
    words,
)

if TYPE_CHECKING:
    from rich.console import Console

    from normdeploy.bench.stats import Comparison, Latency
    from normdeploy.codes import Page
    from normdeploy.engine import Sidecar
    from normdeploy.engine.layernorm_times import Times
    from normdeploy.engine.process import Progress as BuildProgress
    from normdeploy.fleet.page import Row
    from normdeploy.fold.ledger import Entry, Ledger
    from normdeploy.parity.verdict import Verdict
    from normdeploy.pipeline import Progress
    from normdeploy.pipeline.calibrate import Calibrated
    from normdeploy.pipeline.examine import Diagnosis
    from normdeploy.report.schema import Report
    from normdeploy.serving.check import Checked
    from normdeploy.serving.measure import Load
    from normdeploy.serving.repository import Packaged
    from normdeploy.serving.server import Server

INTERRUPTED = 130


class Guard:
    """Turns whatever leaves a command into one message on stderr and an exit ``code``.

    After a Ctrl-C the command is interrupted, whatever error a library makes of that, and even if it takes no notice.
    """

    def __init__(self, *, debug: bool, ends: bool = False) -> None:
        self.code, self._debug, self._ends, self._interrupted = 0, debug, ends, False
        self._before, self._held, self._usual = len(WRITTEN), held_now(), signal.getsignal(signal.SIGINT)
        self._listens = callable(self._usual) and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Guard:
        self._on_interrupt(self._interrupt)
        _require_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # an arrow may not fail where only ASCII can be printed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._on_interrupt(signal.SIG_IGN)  # it is over: what is left is to say so
        try:
            error = _flushed() or error
            if self._interrupted or isinstance(error, KeyboardInterrupt):
                self.code, message = INTERRUPTED, f"interrupted; {self._written()}"
                clear_all_but(self._held)  # one that came in the very block that would have done it
            elif error is None:
                return False
            else:
                self.code, message = _told(error)
            if self._debug and error is not None:
                traceback.print_exception(error)
            with suppress(OSError):  # a full disk behind stderr changes nothing of what happened
                print(printable(message), file=sys.stderr, flush=True)
        finally:
            if not self._ends:
                self._on_interrupt(self._usual)
        return True

    def _on_interrupt(self, action: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, action)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _written(self) -> str:
        names = ", ".join(map(str, WRITTEN[self._before :]))
        return f"before that {names} was written, whole" if names else "nothing was written"


def _require_streams() -> None:
    """Give a process without stdin, stdout or stderr, as daemons are, what takes everything and says nothing.

    A file that is opened later would get their numbers, and with these what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STREAMS:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process runs


def require_folder() -> None:
    """Refuse to run in a folder that was removed: libraries end the process there, in words of theirs."""
    try:
        os.getcwd()
    except FileNotFoundError:
        fix = "cd to one that is, also where another took its place under its name"
        raise InputError("the current folder is not there any more", fix=fix) from None


_STDOUT, _STDERR, _STREAMS = 1, 2, 3
"""stdin, stdout and stderr have the numbers below the last."""


def _flushed() -> OSError | None:
    """Why what was printed cannot reach its reader, None where it did; Python then has nothing left to flush."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _told(error: BaseException) -> tuple[int, str]:
    """The exit code and the message that ``error`` deserves."""
    if isinstance(error, BrokenPipeError):
        return InputError.exit_code, "error: the reader of the output has gone"
    if isinstance(error, ModuleNotFoundError):
        error = missing(error) or error
    if isinstance(error, OSError):
        fix = _REMEDIES.get(error.errno or 0, "check its permissions and the free space")
        error = InputError(str(error.strerror or error), where=str(error.filename or ""), fix=fix)
    if isinstance(error, SystemExit):  # nothing of ours leaves so: its code would be taken for a verdict
        what = f"code that was called ended the process, by SystemExit({error.code!r})"
        error = InputError(what, fix="let forward and the functions that are named return or raise an error")
    if isinstance(error, RecursionError):
        error = InputError("what was given is nested too deep, or contains itself", fix="--debug shows where")
    if isinstance(error, MemoryError):
        error = UnavailableError("there is not enough memory", fix="free some, or raise the limit (ulimit -v)")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        error = InputError("a name with a null character names no file", fix="correct the path")
    error = of_given_code(error) or error
    if isinstance(error, NormdeployError):
        return error.exit_code, f"error: {error}"
    told = f"{type(error).__name__}: {words(error)}"
    return InputError.exit_code, f"error: this is a bug in normdeploy: {told}\n  fix: report it with what --debug shows"


_REMEDIES = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "let the process open more files (ulimit -n)",
    errno.ENFILE: "let the machine open more files",
    errno.ENOSPC: "free some space",
}
"""What to do about an error of the system, where it is neither permissions nor space."""


def command_line() -> str:
    """Return the command that runs, as it can be typed again."""
    return plain(shlex.join(["normdeploy", *sys.argv[1:]])) if sys.argv[1:2] else ""


@contextmanager
def working(talk: Talk) -> Iterator[Progress]:
    """Print the stages of a command on stderr, whatever libraries print too, and their warnings if asked for."""
    with _stages() as progress, _apart(talk):  # the lines of the stages are written to the terminal itself
        yield progress


@contextmanager
def building(talk: Talk) -> Iterator[Callable[[BuildProgress], None]]:
    """Do the same while an engine is built: the builder's own steps, as bars on a terminal."""
    from normdeploy.engine.progress import bars

    console = _console(sys.stderr)
    with _apart(talk):
        if not console.is_terminal:
            yield lambda _: None
            return
        with bars(console) as progress:
            yield progress


@contextmanager
def _apart(talk: Talk) -> Iterator[None]:
    """Send what libraries and the user's code print to stderr; what they warn of too, if asked for."""
    _SAID.clear()
    log, notes, others = logging.getLogger("normdeploy"), _Notes(), _Others(logging.WARNING)
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    last, logging.lastResort = logging.lastResort, others if talk.verbose else None
    plainly: Any = _Plainly(sys.stderr)  # as much of a stream as print asks for
    try:
        with _own_stdout(), warnings.catch_warnings(), redirect_stdout(plainly), redirect_stderr(plainly):
            if not talk.verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(notes)
        logging.lastResort = last


@contextmanager
def _own_stdout() -> Iterator[None]:
    """Send to stderr what is written to the descriptor of stdout itself, by C or by other processes."""
    if threading.current_thread() is not threading.main_thread():  # others print meanwhile
        yield
        return
    sys.stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds back
        os.dup2(kept, _STDOUT)
        os.close(kept)


_SAID: list[str] = []
"""What this command has said on stderr, which its result need not say again."""


class _Notes(logging.Handler):
    """Shows on stderr what normdeploy decided by itself."""

    def emit(self, record: logging.LogRecord) -> None:
        _SAID.append(record.getMessage())
        print(plain(f"note: {record.getMessage()}"), file=sys.stderr)


class _Others(logging.StreamHandler[Any]):
    """Shows a library's messages, without the traceback that it may have put there."""

    def emit(self, record: logging.LogRecord) -> None:
        print(plain(f"{record.name}: {record.getMessage()}"), file=sys.stderr)


class _Plainly(io.TextIOBase):
    """What libraries print, with names of anyone's in it, spelled out on the way to ``stream``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        return self._stream.encoding or "utf-8"  # a StringIO has none, and SymPy asks for it when it is imported


@contextmanager
def _stages() -> Iterator[Progress]:
    """A line for each stage that has ended; on a terminal a spinner beside the one that runs."""
    console = _console(sys.stderr)
    with console.status("") as status:

        def tell(stage: str, seconds: float | None) -> None:
            if seconds is None:
                status.update(stage)
            else:
                console.print(f"  {stage:8}{seconds:7.1f} s", highlight=False)

        yield tell


def report(report: Report, talk: Talk, path: Path | None = None) -> None:
    """Print the report of an export; ``path`` is its bundle."""
    from normdeploy.report.console import show

    if talk.json:
        document(report)
    else:
        show(report, _console(sys.stdout), path=path, said=_SAID)


def verdict(verdict: Verdict, talk: Talk) -> int:
    """Print a parity verdict, in JSON what the report has as ``parity``, and return its exit code.

    Raises MissingKernelError where the graph passed and nothing here runs it.
    """
    from normdeploy.parity.verdict import require_run
    from normdeploy.report.console import show_parity

    if talk.json:
        document(verdict)
    else:
        show_parity(verdict, _console(sys.stdout))
    require_run(verdict)
    return 0 if verdict.passed else VerdictError.exit_code


def latency(measured: Comparison | Latency, talk: Talk) -> None:
    """Print a latency; in JSON what the report has as ``latency``, or as ``deployed`` in there."""
    from normdeploy.bench.stats import Latency
    from normdeploy.report.console import show_latencies, show_latency

    if talk.json:
        document(measured)
    elif isinstance(measured, Latency):
        show_latencies([measured], _console(sys.stdout))
    else:
        show_latency(measured, _console(sys.stdout))


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
    _console(sys.stdout).print(table)
    print(plain(str(file)))


def latencies(measured: Mapping[int | None, Comparison | Latency], talk: Talk) -> None:
    """Latencies by the size of a batch; one alone, at the usual size, as :func:`latency` shows it."""
    if talk.json and None not in measured:
        document({str(size): each for size, each in measured.items()})
        return
    for each in measured.values():
        latency(each, talk)


def ledger(ledger: Ledger, talk: Talk, path: Path) -> None:
    """Print what became of each norm on the way into ``path``; in JSON what the report has as ``ledger``."""
    from normdeploy.report.console import show_norms

    if talk.json:
        document(ledger)
        return
    show_norms(ledger.norms(), _console(sys.stdout))
    if not ledger.entries:
        print("nothing to fold: the model has no norms and no constant maps")
    for note in (*ledger.notes, *(f"dropped, its proof failed: {dropped}" for dropped in ledger.dropped)):
        print(plain(f"note: {note}"))
    print(f"{ledger.seconds:.2f} s, of which {ledger.validation_seconds:.2f} s to prove each step in float64")
    print(plain(str(path)))


def engine(sidecar: Sidecar, talk: Talk, path: Path, *, layers: bool) -> None:
    """Print what was built; in JSON what lies beside the plan."""
    from normdeploy.engine.view import layer_table
    from normdeploy.report.console import show_engine

    if talk.json:
        document(sidecar)
        return
    console = _console(sys.stdout)
    if layers:
        console.print(layer_table(sidecar.layers))
    show_engine(sidecar, console)
    print(plain(str(path)))


@contextmanager
def counting() -> Iterator[Callable[[int], None]]:
    """Show how many batches are done: a bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = _console(sys.__stderr__)
    columns = (TextColumn("batches"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("batches", total=None)
        yield lambda done: bars.update(task, completed=done)


def calibrated(found: Calibrated, talk: Talk, path: Path | None) -> None:
    """Print the statistics before and after a calibration."""
    from normdeploy.report.diagnosis import show_calibrated

    if talk.json:
        document(found)
        return
    show_calibrated(found.rows, found.batches, _console(sys.stdout))
    print(plain(str(path)))


def diagnosis(found: Diagnosis, talk: Talk) -> None:
    """Print what the doctor found."""
    from normdeploy.report.diagnosis import show_diagnosis

    if talk.json:
        document(found)
    else:
        show_diagnosis(found.norms, found.findings, found.notes, _console(sys.stdout))


@contextmanager
def fleet(talk: Talk) -> Iterator[Callable[[Row], None]]:
    """Print on stderr what came of each export of a fleet, when it has ended."""

    def told(row: Row) -> None:
        with suppress(OSError):
            print(f"  {row.name}  {row.state}  {row.seconds:.1f} s", file=sys.stderr, flush=True)

    with _apart(talk):
        yield told


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
    _console(sys.stdout).print(table)


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
        print("\n  ".join(map(plain, _lines(entry))))


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


_PAGE = 160
"""Columns of what is written to a file or a pipe."""


def _console(file: Any) -> Console:
    from rich.console import Console

    console = Console(file=file, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PAGE  # rich takes 80 columns for what is no terminal: module names would break
    return console
