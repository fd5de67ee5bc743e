"""Products with a weight in float64: a weight is large, and converted in parts, where it is used, never as a whole."""

from __future__ import annotations

import math

import numpy as np

from normdeploy.fold.affine import Array

_BLOCK = 1 << 18
"""Elements of a weight that are converted at once, to stay in a cache until they are used."""
_SMALL = 500_000
"""Multiplications below which OpenBLAS multiplies as the matrices lie; above, it lays them out anew first, which takes
longer than to multiply a few rows."""
_FEWEST = 8
"""Columns from which on that pays: each piece is a call."""


def by_kernels(rows: Array, kernels: np.ndarray) -> Array:
    """Return (group, row, in) in float64 and (group, out, in) in any float dtype to (group, row, out)."""
    groups, out, inner = kernels.shape
    if not rows.any():  # half of all probes: nothing need be multiplied
        return np.zeros((groups, rows.shape[1], out))
    step, small = max(1, _BLOCK // max(1, groups * inner)), _SMALL // max(1, rows.shape[1] * inner)
    step = min(step, small) if small >= _FEWEST else step
    parts = (kernels[:, start : start + step] for start in range(0, out, step))
    return np.concatenate([rows @ part.astype(np.float64, copy=False).transpose(0, 2, 1) for part in parts], axis=2)


def matmul(a: np.ndarray, b: np.ndarray) -> Array:
    """Evaluate by the ONNX specification, MatMul-13: numpy's matmul, of any float dtypes."""
    if b.ndim != 2 or not a.ndim:
        return np.asarray(np.matmul(a, b, dtype=np.float64))
    rows = a.astype(np.float64, copy=False).reshape(1, math.prod(a.shape[:-1]), a.shape[-1])
    return by_kernels(rows, b.T[None]).reshape(*a.shape[:-1], b.shape[1])
