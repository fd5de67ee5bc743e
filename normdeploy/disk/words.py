"""One error for any disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normdeploy.errors import InputError, NormdeployError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Return True if no more can be written; numpy gives no number, and counts elements that went out."""
    return error.errno in (*_FULL, errno.EFBIG) or (error.errno is None and "requested and" in str(error))


def _full(error: OSError) -> str:
    return "the disk is full" if error.errno in _FULL else "the disk is full, or no file may be so large (ulimit -f)"


@contextmanager
def disk_errors(target: Path, what: str) -> Iterator[None]:
    """Turn an OSError into an InputError that says why ``what`` cannot be written to ``target``.

    A library may have wrapped it, or an error of ours; that one comes out as itself, and so do all others.
    """
    try:
        yield
    except NormdeployError:
        raise
    except Exception as error:
        found = next((cause for cause in _causes(error) if isinstance(cause, OSError | NormdeployError)), error)
        if not isinstance(found, OSError):
            raise found from None
        full = is_full(found)
        raise InputError(
            _full(found) if full else f"{what} cannot be written: {found.strerror or found}",
            where=str(target),
            fix="free some space, or choose another --out" if full else "choose another --out",
        ) from error


@contextmanager
def scratch_errors(folder: Path) -> Iterator[None]:
    """Turn what a full disk makes of work in ``folder``, among the temporary files, into an InputError."""
    try:
        yield
    except NormdeployError:
        raise
    except Exception as error:
        found = next((cause for cause in _causes(error) if isinstance(cause, OSError) and is_full(cause)), None)
        if found is None:
            raise
        fix = "free some space, or name another folder in TMPDIR"
        raise InputError(_full(found), where=str(folder), fix=fix) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
