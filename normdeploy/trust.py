"""Files that run code when they are opened: only by their exact path, and as the very bytes that were hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normdeploy.disk import open_given
from normdeploy.errors import InputError


@dataclass(frozen=True)
class Content:
    """What a file held when it was read; whatever is made of it is made of ``data``, not of the file again.

    Attributes:
        path: as given.
        data: all of it.
        sha256: of ``data``, in hexadecimal.
    """

    path: Path
    data: bytes
    sha256: str


def read_once(path: Path) -> Content:
    """Read the plain file ``path`` whole. Raises InputError where it is none, or cannot be read."""
    try:
        with open_given(path) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), fix="check its path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from error
    return Content(path, data, hashlib.sha256(data).hexdigest())


def is_trusted(path: Path, trust: Sequence[Path]) -> bool:
    """Return True if ``path`` is one of ``trust`` by name: no link is followed, no folder stands for what is in it."""
    return os.path.abspath(path) in {os.path.abspath(each) for each in trust}
