"""Files that are opened as what they should be: regular, and, where a model names them, inside its own folder.

A descriptor is kept and not a name: what was checked is what is read, whatever stands under the name by then. It is
read and not mapped, so a file that loses its end is an error and no SIGBUS.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING

from normdeploy.disk import read
from normdeploy.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


class File:
    """An open regular file that is read by its offsets.

    Attributes:
        path: what messages call it.
        size: in bytes, when it was opened.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path, self._descriptor = path, os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        self.size, self._state = found.st_size, found

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start:end]``; InputError where the file has lost them."""
        buffer = bytearray(end - start)
        self.read_into(start, buffer)
        return bytes(buffer)

    def read_into(self, start: int, buffer: Buffer) -> None:
        """Fill ``buffer``, of bytes, from ``start`` on; InputError where the file has lost them."""
        view = memoryview(buffer)
        while len(view):
            count = os.preadv(self._descriptor, [view[:_MOST]], start)
            if not count:
                raise InputError(
                    "the file was cut off while it was read", where=str(self.path), fix="get it again, whole"
                )
            view, start = view[count:], start + count

    def is_unchanged(self) -> bool:
        """Return True if nobody wrote to the file since it was opened; another one in its place does not matter.

        A copy that keeps times, as of ``cp -p``, sets the time of writing back, but not that of the last change. A name
        that is added or taken away, as by another file in its place, changes the latter too.
        """
        found, before = os.fstat(self._descriptor), self._state
        named = found.st_nlink != before.st_nlink
        kept = (found.st_size, found.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        return kept and (named or found.st_ctime_ns == before.st_ctime_ns)

    def is_same(self, path: Path) -> bool:
        """Return True if ``path`` is this very file."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False


_MOST = 1 << 30
"""Bytes that are asked of the system at once; it gives no 2 GB."""


def open_given(path: Path) -> File:
    """Open a file that the user names, through links if it is one.

    Raises:
        FileNotFoundError: there is none.
        OSError: it may not be read.
        InputError: it is no regular file: a folder, a pipe, a device.
    """
    with read.open_given(path) as file:
        return File(file, path)


def open_inside(folder: Path, name: str, where: str) -> File:
    """Open a file that a model in ``folder`` names, as :func:`normdeploy.disk.read.open_plain` does.

    Messages call the model ``where``.

    Raises:
        InputError: the name leads out of the folder, or over a link, or to no regular file, or to none that may be
            read.
    """
    fix = "copy the model's external data into its folder, the files themselves, e.g. with cp -L"
    try:
        with read.open_plain(folder, name) as file:
            return File(file, folder / name)
    except InputError as error:
        what = f"the model names a file that is not read, {name!r}: {error.what}"
        raise InputError(what, where=where, fix=fix) from error
    except OSError as error:
        what = f"a file that the model names cannot be read: {error.strerror}"
        raise InputError(what, where=str(folder / name), fix=fix) from error
