"""The whole length of the house, one verb a file: each takes files and names, and calls the rooms in turn.

Loaded when first used: what only reads a report needs no PyTorch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normdeploy.pipeline.bench import bench as bench
    from normdeploy.pipeline.calibrate import calibrate as calibrate
    from normdeploy.pipeline.compare import bisect as bisect
    from normdeploy.pipeline.compare import verify as verify
    from normdeploy.pipeline.deploy import export as export
    from normdeploy.pipeline.engines import build as build
    from normdeploy.pipeline.examine import doctor as doctor
    from normdeploy.pipeline.files import fold_file as fold_file
    from normdeploy.pipeline.init import init as init
    from normdeploy.pipeline.judge import NotRunError as NotRunError
    from normdeploy.pipeline.judge import ParityError as ParityError
    from normdeploy.pipeline.keywords import Source as Source
    from normdeploy.pipeline.layernorm import bench_layernorm as bench_layernorm
    from normdeploy.pipeline.saved import judge_again as judge_again
    from normdeploy.pipeline.saved import ledger_of as ledger_of
    from normdeploy.pipeline.saved import report_of as report_of
    from normdeploy.pipeline.saved import require_as_fast as require_as_fast
    from normdeploy.pipeline.stages import Progress as Progress

_HOME = {
    "NotRunError": "judge",
    "ParityError": "judge",
    "Progress": "stages",
    "Source": "source",
    "bench": "bench",
    "bench_layernorm": "layernorm",
    "bisect": "compare",
    "build": "engines",
    "calibrate": "calibrate",
    "doctor": "examine",
    "export": "deploy",
    "fold_file": "files",
    "init": "init",
    "judge_again": "saved",
    "ledger_of": "saved",
    "report_of": "saved",
    "require_as_fast": "saved",
    "verify": "compare",
}
__all__ = [
    "NotRunError",
    "ParityError",
    "Progress",
    "Source",
    "bench",
    "bench_layernorm",
    "bisect",
    "build",
    "calibrate",
    "doctor",
    "export",
    "fold_file",
    "init",
    "judge_again",
    "ledger_of",
    "report_of",
    "require_as_fast",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


class _Package(ModuleType):
    """Keeps a verb callable where a submodule bears its name: importing that one binds it here otherwise."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle the name, as it is of any module: functions that use this one go to other processes."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
