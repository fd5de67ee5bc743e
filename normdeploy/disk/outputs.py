"""Where a command may write: to nothing that it reads, and to one place for each output.

Files are compared by what they are, not by their names: a link, or a second name, leads to the same one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

from normdeploy.errors import InputError


def require_apart(outputs: Mapping[str, Path], inputs: Mapping[str, Iterable[Path]], *, folder: str = "") -> None:
    """Raise InputError where an output is, or holds, one of the inputs, or lies in another output.

    ``outputs`` are named by their options, of which ``folder`` is for a folder, ``inputs`` by what they are; those that
    are not there are passed over.
    """
    read = [(kind, path) for kind, paths in inputs.items() for path in paths]
    for option, output in outputs.items():
        for kind, path in read:
            if _is_same(path, output):
                what = f"the output is the input: it would take the place of {kind}, {path}"
                raise InputError(what, where=str(output), fix=f"choose another {option}")
            if option == folder and any(_is_same(parent, output) for parent in _real(path).parents):
                what = f"the output holds the input: {kind}, {path}, lies in it"
                raise InputError(what, where=str(output), fix=f"choose another {option}")
    for (inner, path), (outer, other) in permutations(outputs.items(), 2):
        if _real(path) == _real(other) or _real(other) in _real(path).parents:
            what = f"one output lies in the other: {inner} is in {outer}"
            raise InputError(what, where=f"{path}, {other}", fix=f"choose another {inner}")


def check_file(path: Path, ends: Sequence[str], *, force: bool, option: str = "--out") -> None:
    """Raise InputError unless a file may be written to ``path``; nothing is changed.

    A file that is there is replaced only with ``force``, and only where its name ends in one of ``ends``, as those do
    that are written there.
    """
    if path.is_symlink():
        fix = f"choose another {option}; the file itself is {_real(path)}"
        raise InputError("the output is a link, and what it leads to is not replaced", where=str(path), fix=fix)
    if path.is_dir():
        fix = f"give {option} a file name"
        raise InputError("there is a folder where the file should go", where=str(path), fix=fix)
    if not path.exists():
        return
    if not path.is_file():
        fix = f"choose another {option}"
        raise InputError("there is no regular file where the file should go", where=str(path), fix=fix)
    if not force:
        raise exists(path, option)
    if path.suffix.lower() not in ends:
        what = f"the file is not replaced: it is not called as what is written here ({', '.join(ends)})"
        raise InputError(what, where=str(path), fix=f"choose another {option}, or move the file away")


def exists(path: Path, option: str = "--out") -> InputError:
    """Return the error for an output that is there and was not to be replaced."""
    return InputError("the output exists already", where=str(path), fix=f"choose another {option}, or give --force")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
