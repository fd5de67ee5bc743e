"""What is seen of a command while it works: its stages and notes, and what libraries print, all on stderr."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from normdeploy.cli.options import Talk
from normdeploy.errors import plain, printable

if TYPE_CHECKING:
    from rich.console import Console

    from normdeploy.engine.process import Progress as BuildProgress
    from normdeploy.fleet.page import Row
    from normdeploy.pipeline import Progress


@contextmanager
def working(talk: Talk) -> Iterator[Progress]:
    """Print the stages of a command on stderr, whatever libraries print too, and their warnings if asked for."""
    with _stages() as progress, _apart(talk):  # the lines of the stages are written to the terminal itself
        yield progress


@contextmanager
def building(talk: Talk) -> Iterator[Callable[[BuildProgress], None]]:
    """Do the same while an engine is built: the builder's own steps, as bars on a terminal."""
    from normdeploy.engine.progress import bars

    shown = console(sys.stderr)
    with _apart(talk):
        if not shown.is_terminal:
            yield lambda _: None
            return
        with bars(shown) as progress:
            yield progress


@contextmanager
def _apart(talk: Talk) -> Iterator[None]:
    """Send what libraries and the user's code print to stderr; what they warn of too, if asked for."""
    SAID.clear()
    log, notes, others = logging.getLogger("normdeploy"), _Notes(), _Others(logging.WARNING)
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    # without any, logging itself would say once that there is none
    last, logging.lastResort = logging.lastResort, others if talk.verbose else logging.NullHandler()
    plainly: Any = _Plainly(sys.stderr)  # as much of a stream as print asks for
    try:
        with _own_stdout(), warnings.catch_warnings(), redirect_stdout(plainly), redirect_stderr(plainly):
            if not talk.verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(notes)
        logging.lastResort = last


_STDOUT, _STDERR = 1, 2
"""The descriptors of the process."""


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


SAID: list[str] = []
"""What this command has said on stderr, which its result need not say again."""


class _Notes(logging.Handler):
    """Shows on stderr what normdeploy decided by itself."""

    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(record.getMessage())
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
    shown = console(sys.stderr)
    with shown.status("") as status:

        def tell(stage: str, seconds: float | None) -> None:
            if seconds is None:
                status.update(stage)
            else:
                shown.print(f"  {stage:8}{seconds:7.1f} s", highlight=False)

        yield tell


@contextmanager
def counting() -> Iterator[Callable[[int], None]]:
    """Show how many batches are done: a bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = console(sys.__stderr__)
    columns = (TextColumn("batches"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bars:
        task = bars.add_task("batches", total=None)
        yield lambda done: bars.update(task, completed=done)


@contextmanager
def fleet(talk: Talk) -> Iterator[Callable[[Row], None]]:
    """Print on stderr what came of each export of a fleet, when it has ended."""

    def told(row: Row) -> None:
        with suppress(OSError):
            print(f"  {row.name}  {row.state}  {row.seconds:.1f} s", file=sys.stderr, flush=True)

    with _apart(talk):
        yield told


_PAGE = 160
"""Columns of what is written to a file or a pipe."""


def console(file: Any) -> Console:
    """Return what writes styled text to ``file``, in lines long enough for names of modules."""
    from rich.console import Console

    shown = Console(file=file, highlight=False)
    if not shown.is_terminal and "COLUMNS" not in os.environ:
        shown.width = _PAGE  # rich takes 80 columns for what is no terminal: module names would break
    return shown
