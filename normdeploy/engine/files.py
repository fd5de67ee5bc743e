"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

from normdeploy.errors import InputError


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it there; what was there stays until then. Raises InputError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # with the rights of any new file
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write the file: {error.strerror}", where=str(path), fix="check the folder, its rights and the disk"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
