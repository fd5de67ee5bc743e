"""``manifest.json``: what a bundle is and where it came from, with the sha256 of every other file in it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from normdeploy.engine.sidecar import SUFFIX
from normdeploy.report.schema import Document

MODEL, EXTERNAL_DATA = "model.onnx", "model.onnx.data"
MANIFEST = "manifest.json"
REPORT, PAGE = "report.json", "report.html"
INTERFACE = "io.json"
PLAN = "model.plan"
PLUGIN_MODEL, PLUGIN_DATA = "model.plugin.onnx", "model.plugin.onnx.data"
GOLDEN_INPUTS, GOLDEN_OUTPUTS = "golden/inputs.npz", "golden/outputs.npz"
_REQUIRED = (MODEL, REPORT, PAGE, GOLDEN_INPUTS, GOLDEN_OUTPUTS)
NAMES = frozenset({*_REQUIRED, INTERFACE, EXTERNAL_DATA, PLAN, f"{PLAN}{SUFFIX}", PLUGIN_MODEL, PLUGIN_DATA})
"""All that a bundle may hold beside its manifest: nothing else is read, replaced or removed."""
MOST = 1 << 24
"""Bytes that a manifest, or the interface, may have."""

_OPTIMIZER = "[A-Za-z][A-Za-z0-9_]{0,63}"
SESSION_OPTIONS = {"disabled_optimizers": f"{_OPTIMIZER}(,{_OPTIMIZER}){{0,31}}"}
"""Options that an export writes, with what their values may be: others would let a bundle from elsewhere write files,
load code, or change its numbers. ONNX Runtime passes over the name of an optimizer that it does not have."""

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
        files: file name, one of :data:`NAMES`, → sha256, of every file but this one.
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
    files: dict[str, Sha256]
    trusted: dict[str, Sha256] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _is_complete(cls, files: dict[str, str]) -> dict[str, str]:
        if missing := [name for name in _REQUIRED if name not in files]:
            raise ValueError(f"lacks {', '.join(missing)}")
        if others := sorted(files.keys() - NAMES):
            raise ValueError(f"lists {ascii(others)[1:-1]}, which is no part of a bundle")
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
