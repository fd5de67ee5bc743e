"""Whose code an error comes from: a module that the user gave may raise anything, wherever it is asked."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from normdeploy.errors import InputError, NormdeployError, words

_OURS = Path(__file__).parent.parent
_OTHERS = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def of_given_code(error: BaseException) -> InputError | None:
    """Return the error that names the user's function and line, where those raised ``error`` or called what did.

    None where normdeploy's own code did, and for its own errors.
    """
    if isinstance(error, NormdeployError):
        return None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_OURS):
            return None
        if _is_given(file):
            told = ": ".join(filter(None, (type(error).__name__, words(error))))
            fix = "correct it; --debug shows who called it"
            return InputError(f"{frame.f_code.co_qualname} raised {told}", where=f"{file}:{line}", fix=fix)
    return None


def _is_given(file: Path) -> bool:
    """Return True for a file of neither Python nor a package that is installed."""
    installed = "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in _OTHERS)
    return file.is_file() and not installed
