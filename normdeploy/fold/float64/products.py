"""Products with a weight in float64: a weight is large, and converted in parts, where it is used, never as a whole."""

from __future__ import annotations

import math

import numpy as np

from normdeploy.fold.affine import Array

_BLOCK = 1 << 18
"""Elements of a weight that are converted at once, to stay in a cache until they are used."""


def by_kernels(rows: Array, kernels: np.ndarray) -> Array:
    """Return (group, row, in) in float64 and (group, out, in) in any float dtype to (group, row, out)."""
    groups, out, inner = kernels.shape
    if not rows.any():  # half of all probes: nothing need be multiplied
        return np.zeros((groups, rows.shape[1], out))
    step = max(1, _BLOCK // max(1, groups * inner))
    parts = (kernels[:, start : start + step] for start in range(0, out, step))
    return np.concatenate([rows @ part.astype(np.float64, copy=False).transpose(0, 2, 1) for part in parts], axis=2)


def matmul(a: np.ndarray, b: np.ndarray) -> Array:
    """Evaluate by the ONNX specification, MatMul-13: numpy's matmul, of any float dtypes."""
    if b.ndim != 2 or not a.ndim:
        return np.asarray(np.matmul(a, b, dtype=np.float64))
    rows = a.astype(np.float64, copy=False).reshape(1, math.prod(a.shape[:-1]), a.shape[-1])
    return by_kernels(rows, b.T[None]).reshape(*a.shape[:-1], b.shape[1])
