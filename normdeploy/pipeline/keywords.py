"""The keywords that several verbs share; light, as one of them runs without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

Data = str | Path | Sequence[str | Path] | None
"""Real inputs: .npz or safetensors files, or ``module:function`` that yields batches by name; one or several."""


class Source(TypedDict, total=False):
    """How a factory becomes the trained module; see :func:`normdeploy.checkpoint.load`."""

    app_dir: str | Path | None
    model_args: Mapping[str, str]
    weights: str | Path | None
    weights_key: str | None
    strip_prefix: str | None
    add_prefix: str | None
    rename: Sequence[str]
    ignore_unexpected: Sequence[str]
    allow_missing: Sequence[str]
    force_eval: bool
    trust: Sequence[str | Path]
