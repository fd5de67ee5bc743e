"""Renames that lose nothing: into a name that must be free, and two names exchanged, both at once where the system can.

Linux does it in one call (renameat2, Linux 3.15); some file systems, NFS among them, and other systems do not know it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_AT_FDCWD, _NO_REPLACE, _EXCHANGE = -100, 1, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What the system answers where it, or its file system, does not know the call."""


def move(source: Path, target: Path) -> None:
    """Rename the file or folder ``source`` to ``target``, which must be free; both in one file system.

    Raises FileExistsError where ``target`` is anything at all, OSError where the rename fails; nothing is lost then.
    """
    if not _renamed(source, target, _NO_REPLACE):
        (_claim_folder if source.is_dir() else _claim_file)(source, target)


def exchange(first: Path, second: Path) -> bool:
    """Exchange what two names stand for, at once; return False, and do nothing, where the system cannot."""
    return _renamed(first, second, _EXCHANGE)


def _claim_folder(source: Path, target: Path) -> None:
    target.mkdir()
    try:
        source.rename(target)  # over the empty one just made: fails if somebody put something into it
    except BaseException:
        with suppress(OSError):
            target.rmdir()
        raise


def _claim_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, *_UNKNOWN):
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # a file system without hard links
        try:
            source.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        source.unlink()


def _renamed(source: Path, target: Path, flag: int) -> bool:
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@cache
def _renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function
