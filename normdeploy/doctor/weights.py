"""Weights in 16 bits: what overflows there, and which channels are flushed to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from normdeploy.doctor.findings import Finding, finding

_TYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


Array = npt.NDArray[Any]


def check_weight(module: str, weight: Array, axis: int, before: Array | None = None) -> Iterator[Finding]:
    """Yield what becomes of the folded ``weight`` of ``module``, whose output channels are those of ``axis``.

    What the weight lost already as it was ``before`` the fold, of the same shape, is not the fold's doing.
    """
    channels = _largest(weight, axis)
    known = np.full_like(channels, 1.0) if before is None else _largest(before, axis)
    for name, dtype in _TYPES.items():
        limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # no annotations
        with np.errstate(over="ignore"):
            stored = channels.astype(np.float32).astype(dtype).astype(np.float64)
        if over := int((np.isinf(stored) & (known <= float(limits.max))).sum()):
            message = (
                f"folded weights overflow {name} in {over} of {len(channels)} channels: {channels.max():.4g} at most"
            )
            yield finding("ND010", module, message)
        smallest = float(limits.smallest_normal)
        lost = (channels > 0) & (channels < smallest) & (known >= smallest)
        if lost.any():
            gone = int((lost & (stored == 0)).sum())
            yield finding(
                "ND011",
                module,
                f"all folded weights are below the smallest normal number of {name} in {int(lost.sum())} of "
                f"{len(channels)} channels, of which {gone} become 0: {channels[lost].min():.2g} at least",
            )


def _largest(weight: Array, axis: int) -> npt.NDArray[np.float64]:
    """Return the largest size of a weight in each output channel."""
    sizes = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64))
    largest: npt.NDArray[np.float64] = sizes.max(axis=1, initial=0.0)
    return largest
