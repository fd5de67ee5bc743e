"""The border of a command: whatever leaves it becomes one message on stderr and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

from normdeploy.cli.blame import of_given_code
from normdeploy.disk import WRITTEN, clear_all_but, held_now
from normdeploy.errors import InputError, NormdeployError, UnavailableError, missing, printable, words

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


_STREAMS = 3
"""stdin, stdout and stderr have the numbers below."""


def _flushed() -> OSError | None:
    """Return why what was printed cannot reach its reader, None where it did; Python has nothing left to flush then."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _told(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message that ``error`` deserves."""
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
