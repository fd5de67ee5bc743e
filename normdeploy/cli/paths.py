"""Paths on the command line, looked at while it is parsed: a typo is told at once, not behind imports and work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from normdeploy.errors import InputError


def _there(_: object, given: Any) -> None:
    """Raise InputError where a file or folder is not there; what else is wrong with it is told by what reads it."""
    for path in given if isinstance(given, tuple) else (given,):
        if path is None:
            continue
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError("no such file", where=str(path), fix="check its path") from error
        except (OSError, ValueError):
            continue


def _bundle_there(kind: object, given: str | None) -> None:
    if given is not None and "://" not in given:  # a URL
        _there(kind, given)


def _data_there(kind: object, given: tuple[str, ...]) -> None:
    _there(kind, tuple(text for text in given if ":" not in text))  # the others name a function


def _takes_files(_: object, out: Path | None) -> None:
    from normdeploy.disk import check_place

    if out is not None and "\0" not in str(out):  # which what writes there tells
        check_place(out)


Given = Annotated[Path, Parameter(validator=_there)]
"""A file or folder that is read."""
BundleOrUrl = Annotated[str, Parameter(validator=_bundle_there)]
Data = Annotated[tuple[str, ...], Parameter(validator=_data_there)]
Out = Annotated[Path, Parameter(name=["--out", "-o"], validator=_takes_files)]
OtherOut = Annotated[Path | None, Parameter(validator=_takes_files)]
"""What is written beside ``--out``."""
