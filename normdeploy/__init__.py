"""normdeploy: norms folded into their neighbours, parity proven, bundle delivered.

The public verbs are loaded when first used: importing the package imports no torch. It imports nothing that Python has
not loaded by itself: under ``python -m`` the current folder, which can be someone else's, is still on the path here.
"""

import importlib
import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from normdeploy.bundle import Bundle, load_bundle
    from normdeploy.fold import FoldResult, fold
    from normdeploy.foldmodule.file import load_folded
    from normdeploy.foldmodule.module import fold_module
    from normdeploy.pipeline import bench, build, calibrate, doctor, export, verify

__all__ = [
    "Bundle",
    "FoldResult",
    "bench",
    "build",
    "calibrate",
    "doctor",
    "export",
    "fold",
    "fold_module",
    "load_bundle",
    "load_folded",
    "verify",
]

_HOMES = {
    "Bundle": "normdeploy.bundle",
    "FoldResult": "normdeploy.fold",
    "bench": "normdeploy.pipeline",
    "build": "normdeploy.pipeline",
    "calibrate": "normdeploy.pipeline",
    "doctor": "normdeploy.pipeline",
    "export": "normdeploy.pipeline",
    "fold": "normdeploy.fold",
    "fold_module": "normdeploy.foldmodule.module",
    "load_bundle": "normdeploy.bundle",
    "load_folded": "normdeploy.foldmodule.file",
    "verify": "normdeploy.pipeline",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from normdeploy.errors import missing

        if (told := missing(error)) is None:
            raise
        raise told from error
    return value


class _Package(ModuleType):
    """Keeps a verb callable where a submodule bears its name: importing ``normdeploy.fold`` binds it here otherwise."""

    def __setattr__(self, name: str, value: "Any") -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> "tuple[Any, ...]":
        """Tell pickle the name, as it is of any module: functions that use this one go to other processes."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
