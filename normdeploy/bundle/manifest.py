"""``manifest.json``: what a bundle is and where it came from, with the sha256 of every other file in it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import Field, StringConstraints, field_validator

from normdeploy.report.schema import Document

MODEL, EXTERNAL_DATA = "model.onnx", "model.onnx.data"
MANIFEST = "manifest.json"
REPORT, PAGE = "report.json", "report.html"
PLAN = "model.plan"
GOLDEN_INPUTS, GOLDEN_OUTPUTS = "golden/inputs.npz", "golden/outputs.npz"
_REQUIRED = (MODEL, REPORT, PAGE, GOLDEN_INPUTS, GOLDEN_OUTPUTS)

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
FileName = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART})*$")]
"""A file inside the folder: no part is hidden, ``..``, absolute, or means something else on another system."""

_OPTIMIZER = "[A-Za-z][A-Za-z0-9_]{0,63}"
SESSION_OPTIONS = {
    "graph_optimization_level": "disable|basic|extended|all",
    "session.set_denormal_as_zero": "[01]",
    "session.intra_op.allow_spinning": "[01]",
    "disabled_optimizers": f"{_OPTIMIZER}(,{_OPTIMIZER}){{0,31}}",
}
"""Options that only change how the model computes, with what their values may be: others would let a bundle from
elsewhere write files, load code. ONNX Runtime passes over the name of an optimizer that it does not have."""

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Manifest(Document):
    """What a bundle holds.

    Attributes:
        packages: package name → version, of those that made it.
        factory: ``module:factory`` the module came from; ``model_args`` are its arguments as they were given.
        weights: the checkpoint's file name, None where the factory brought its own; ``weights_sha256`` is of that file.
        trusted: file name → sha256 of each file that was allowed to run code when the module was loaded.
        inputs: canonical input specs.
        outputs: flattened output name → dtype, in the model's order.
        session_options: ONNX Runtime session configuration the model is to be run with.
        files: file name → sha256, of every file but this one.
    """

    created: datetime
    normdeploy_version: str
    packages: dict[str, str]
    factory: str
    model_args: dict[str, str]
    weights: str | None
    weights_sha256: Sha256 | None
    inputs: list[str]
    outputs: dict[str, str]
    opset: int
    precision: str
    session_options: dict[str, str]
    files: dict[FileName, Sha256]
    trusted: dict[str, Sha256] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _is_complete(cls, files: dict[str, str]) -> dict[str, str]:
        if missing := [name for name in _REQUIRED if name not in files]:
            raise ValueError(f"lacks {', '.join(missing)}")
        if MANIFEST in files:
            raise ValueError(f"lists {MANIFEST} itself")
        return files

    @field_validator("session_options")
    @classmethod
    def _is_harmless(cls, options: dict[str, str]) -> dict[str, str]:
        for name, value in options.items():
            if name not in SESSION_OPTIONS:
                raise ValueError(f"{name!r} is none of {', '.join(SESSION_OPTIONS)}")
            if not re.fullmatch(SESSION_OPTIONS[name], value):
                raise ValueError(f"{value!r} is no value of {name}")
        return options


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> set[str]:
    """The relative names of everything below ``folder`` that is not a folder, links to folders included; OSError."""
    found: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found.update((Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links))
    return found


def is_plain_file(path: Path) -> bool:
    """Whether ``path`` is a regular file and no link; a pipe would block its reader, a link may lead anywhere."""
    return stat.S_ISREG(path.lstat().st_mode)


def _raise(error: OSError) -> NoReturn:
    raise error
