"""The versions of a model in a repository: folders that are called by a number, as Triton reads them."""

from __future__ import annotations

import re
from pathlib import Path

_NUMBER = re.compile(r"[1-9][0-9]*", re.A)
LARGEST = (1 << 63) - 1
"""Triton reads a version as an int64."""


def versions(model: Path) -> list[int]:
    """Return the numbers of the versions in the folder of a model, in order. Raises OSError."""
    return sorted(int(name) for name in _numbered(model) if _is_version(name))


def misnamed(model: Path) -> list[str]:
    """Return what has the name of a number in the folder of a model, and Triton takes for no version."""
    numbered = [entry.name for entry in model.iterdir() if entry.name.isdecimal()]
    return sorted(name for name in numbered if not (_is_version(name) and (model / name).is_dir()))


def _numbered(model: Path) -> list[str]:
    return [entry.name for entry in model.iterdir() if entry.name.isdecimal() and entry.is_dir()]


def _is_version(name: str) -> bool:
    return bool(_NUMBER.fullmatch(name)) and len(name) <= len(str(LARGEST)) and int(name) <= LARGEST
