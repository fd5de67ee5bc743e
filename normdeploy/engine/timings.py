"""The timing cache on disk: one file for each backend, version and GPU, in the folder that the user gave.

It is locked for the whole build. Two builds that time kernels on one GPU at once would measure each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from normdeploy.disk import disk_errors, is_plain, read_plain, write_file
from normdeploy.errors import InputError

_MOST = 1 << 30
"""Bytes of a cache."""


def cache_key(backend: str, version: str, gpu: str) -> str:
    """Return the file name of the cache that fits: timings of another version or GPU say nothing."""
    return re.sub(r"[^\w.-]+", "_", f"{backend}-{version}-{gpu}") + ".timings"


class TimingCache:
    """One cache file, held by this process until the build is over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> bytes:
        """Return what was kept; empty where nothing was."""
        try:
            return read_plain(self.path.parent, self.path.name, _MOST)
        except FileNotFoundError:
            return b""

    def store(self, data: bytes) -> None:
        """Replace what is kept, atomically; nothing is written where there is nothing new."""
        if data and data != self.load():
            with disk_errors(self.path, "the timing cache"):
                write_file(self.path, data, replace=True)


@contextmanager
def locked(folder: Path, key: str) -> Iterator[TimingCache]:
    """Open the cache called ``key`` in ``folder``, made where missing; wait for a build that holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key}.lock"
        if os.path.lexists(path) and not is_plain(path):
            raise InputError("the timing cache's lock is no plain file", where=str(path), fix="remove it")
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot use the timing cache: {error.strerror}", where=str(folder), fix="give a folder you can write to"
        ) from error
    try:
        yield TimingCache(folder / key)
    finally:
        lock.release()
