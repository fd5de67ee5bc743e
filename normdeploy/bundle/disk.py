"""What every file that is written whole or not at all needs: a place beside its own, and one error for any disk."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_ir.serde import SerdeError

from normdeploy.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(target: Path, what: str = "the bundle") -> Iterator[None]:
    """Turn an OSError into an InputError that says why ``what`` cannot be written to ``target``.

    A NormdeployError of a weight that is computed while it is written comes out as itself.
    """
    try:
        with _without_wrapping():
            yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        raise InputError(
            "the disk is full" if full else f"{what} cannot be written: {error.strerror or error}",
            where=str(target),
            fix="free some space, or choose another --out" if full else "choose another --out",
        ) from error


@contextmanager
def _without_wrapping() -> Iterator[None]:
    """Raise what onnx_ir met while it wrote a model, not the layers it puts around it."""
    try:
        yield
    except SerdeError as error:
        cause: BaseException | None = error
        while isinstance(cause, SerdeError):
            cause = cause.__cause__
        raise cause or error from None


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``; it is gone afterwards, and so are the parents made for it if it failed."""
    made = [parent for parent in target.parents if not parent.exists()]
    temporary = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it holds what was written
                parent.rmdir()


def beside(target: Path) -> Path:
    """A path in the folder of ``target`` that nobody uses."""
    return target.parent / f".normdeploy-{uuid.uuid4().hex[:12]}.tmp"


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
