"""Stops whatever writes files at each of its moments: killed, interrupted, or answered with an error, once or for good.

Python announces every operation on files to its audit hooks before it is done; the few that it does not announce are
wrapped. The work is done in a forked process, so that a kill is a kill.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from normdeploy.disk import held, rename

_EVENTS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod", "shutil.rmtree",
    "tempfile.mkdtemp", "os.scandir", "os.listdir",
}  # fmt: skip
KILLED, DONE, FAILED = 137, 0, 3


class _Moments:
    """Counts the moments of this process and strikes at one of them; ``errors`` repeats the blow from then on."""

    def __init__(self, at: int, blow: str) -> None:
        self.at, self.blow, self.count, self.busy = at, blow, 0, False

    def __call__(self, event: str, arguments: Any = ()) -> None:
        if event not in _EVENTS or self.busy:
            return
        if event == "open" and not isinstance(arguments[0], int) and str(arguments[0]).endswith((".py", ".pyc", ".so")):
            return  # an import
        if self.blow == "full" and not _takes_space(event, arguments):
            return
        self.count += 1
        if self.count == self.at or (self.blow == "errors" and self.count > self.at):
            self.strike()

    def strike(self) -> None:
        self.busy = self.blow != "errors"
        if self.blow == "kill":
            os._exit(KILLED)
        if self.blow == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return
        number = {"full": errno.ENOSPC}.get(self.blow, errno.EIO)
        raise OSError(number, os.strerror(number))


def _takes_space(event: str, arguments: Any) -> bool:
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "os.rename", "os.link", "os.truncate")


def stopped(work: Callable[[], object], at: int, blow: str, *, exchange: bool = True) -> tuple[int, int]:
    """Do ``work`` in a process of its own and strike at moment ``at``; gives its exit code, and how many there were."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = FAILED
        with suppress(BaseException):  # nothing of it may get back into the tests
            signal.signal(signal.SIGINT, signal.default_int_handler)
            moments = _Moments(at, blow)
            _wrap(moments, exchange)
            sys.addaudithook(moments)
            try:
                work()
                code = DONE
            finally:
                moments.busy = True
                os.write(write, str(moments.count).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as told:
        count = int(told.read() or at)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def _wrap(moments: _Moments, exchange: bool) -> None:
    """What Python does not announce: fsync, and the rename that it does not know. One system cannot exchange names."""
    fsync, renamed = os.fsync, rename._renamed

    def announced(descriptor: int) -> None:
        moments("os.truncate")
        fsync(descriptor)

    def rename_announced(source: Path, target: Path, flag: int) -> bool:
        if not exchange:
            return False
        moments("os.rename")
        done = renamed(source, target, flag)
        moments("os.rename")  # and after it: the next moment is not always one of these
        return done

    os.fsync = announced
    rename._renamed = rename_announced


def each_moment(prepare: Callable[[], Callable[[], object]], blow: str, *, exchange: bool = True) -> Iterator[int]:
    """Do the work that ``prepare`` gives again and again, struck at one moment later each time; yields its exit code.

    It ends after the first time in which there was no such moment any more.
    """
    at = 0
    while True:
        at += 1
        code, count = stopped(prepare(), at, blow, exchange=exchange)
        yield code
        if count < at:
            assert code == DONE
            return


def rooms_in(folder: Path) -> list[str]:
    """What writers have left in ``folder``."""
    return [name for name in os.listdir(folder) if held.is_room(name)]
