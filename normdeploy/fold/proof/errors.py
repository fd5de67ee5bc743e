"""How far two sides of a proof are apart: the largest relative error of a channel."""

from __future__ import annotations

import numpy as np

from normdeploy.fold.affine import Array


def worst_channel(difference: Array, magnitude: Array) -> float:
    """Return the largest relative error, each index of each axis by itself: no tiny channel hides behind a large
    one.
    """
    if not difference.any():
        return 0.0
    worst = 0.0
    for error, size in zip(_largest(difference), _largest(magnitude), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = max(worst, float(np.max(np.where(error > 0, error / size, 0.0))))
    return worst


def _largest(a: Array) -> list[Array]:
    """Return the largest element at each index of each axis that has several; the longest is compared in whole rows
    first.
    """
    longest = int(np.argmax(a.shape)) if a.ndim else 0
    rows = np.ascontiguousarray(np.moveaxis(np.atleast_1d(a), longest, -1))
    rest = rows.max(axis=-1)
    axes = range(rest.ndim)
    others = (rest.max(axis=tuple(o for o in axes if o != axis)) for axis in axes if rest.shape[axis] > 1)
    return [rows.reshape(-1, rows.shape[-1]).max(axis=0), *others]
