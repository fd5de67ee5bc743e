"""Files that someone else laid out: what a folder names lies in it, is a plain file, and is opened without links."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader

from normdeploy.errors import InputError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_GIVEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Without O_NONBLOCK a pipe would wait for its writer before it could be refused."""
_FILE = _GIVEN | os.O_NOFOLLOW


@contextmanager
def opened_folder(path: str | os.PathLike[str]) -> Iterator[int]:
    """Open the folder ``path`` and yield its descriptor: the same folder from then on, whatever takes its name.

    Raises OSError where it cannot be opened.
    """
    descriptor = os.open(path, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_given(path: str | os.PathLike[str]) -> BufferedReader:
    """Open the file ``path`` that the user names, through links if it is one, for reading.

    Raises InputError for a pipe, a device or a folder; OSError where it is missing or may not be read.
    """
    return _plain_file(os.open(path, _GIVEN), os.fspath(path))


def open_plain(folder: str | os.PathLike[str] | int, name: str) -> BufferedReader:
    """Open the file ``name`` in ``folder`` (a path, or a descriptor) for reading.

    ``name`` has ``/`` between its parts. Raises InputError where it leads out of the folder, through a link, or to a
    pipe, a device or a folder; OSError where it is missing or may not be read.
    """
    where = name if isinstance(folder, int) else os.path.join(folder, name)
    *folders, last = _parts(name, where)
    descriptor = os.dup(folder) if isinstance(folder, int) else os.open(folder, _DIRECTORY)
    try:
        for part in folders:
            deeper = _opened(part, _DIRECTORY | os.O_NOFOLLOW, descriptor, where)
            os.close(descriptor)
            descriptor = deeper
        found = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
        _require_plain(found.st_mode, where)  # before it is opened: opening a device may already do something
        return _plain_file(_opened(last, _FILE, descriptor, where), where)
    finally:
        os.close(descriptor)


def read_plain(folder: str | os.PathLike[str] | int, name: str, most: int) -> bytes:
    """Read a file of ``most`` bytes at the most, opened as by :func:`open_plain`; InputError for a larger one."""
    with open_plain(folder, name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"the file has more than {most:,} bytes", where=name, fix="give the file that was meant")
    return content


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Return True for a regular file, and for no link to one."""
    return stat.S_ISREG(os.lstat(path).st_mode)


def sha256_of(folder: str | os.PathLike[str] | int, name: str) -> str:
    """Return the sha256 of a file, opened as by :func:`open_plain`, in hexadecimal."""
    with open_plain(folder, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: str | os.PathLike[str] | int) -> set[str]:
    """Return the names, ``/`` between their parts, of everything below ``folder`` that is not a folder; or OSError.

    A link is not followed: it is no folder.
    """
    found: set[str] = set()
    folders = ["."]
    top = os.dup(folder) if isinstance(folder, int) else os.open(folder, _DIRECTORY)
    try:
        while folders:
            inner = folders.pop()
            descriptor = os.open(inner, _DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        name = entry.name if inner == "." else f"{inner}/{entry.name}"
                        folders.append(name) if entry.is_dir(follow_symlinks=False) else found.add(name)
            finally:
                os.close(descriptor)
    finally:
        os.close(top)
    return found


def _parts(name: str, where: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or "\0" in name:
        raise InputError("a file outside its folder is named", where=where, fix="keep the files in one folder")
    return parts


def _opened(name: str, flags: int, folder: int, where: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            with suppress(OSError):
                _require_no_link(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode, where)
        raise OSError(error.errno, os.strerror(error.errno or 0), where) from None


def _plain_file(descriptor: int, where: str) -> BufferedReader:
    """Return the reader of ``descriptor``, which is closed where it is of no plain file."""
    try:
        _require_plain(os.fstat(descriptor).st_mode, where)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_plain(mode: int, where: str) -> None:
    _require_no_link(mode, where)
    if not stat.S_ISREG(mode):
        raise InputError(f"this is a {_kind(mode)}, not a plain file", where=where, fix="put the file itself there")


def _require_no_link(mode: int, where: str) -> None:
    if stat.S_ISLNK(mode):
        raise InputError("this is a link, and links are not followed", where=where, fix="put the file itself there")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
