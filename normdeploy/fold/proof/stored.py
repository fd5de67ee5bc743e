"""The proof of what is stored: each edited tensor against a second formula, which shares nothing with the first.

    stored = round(C(original ⊙ (left ⊙ right) + shift)),   C(w) = w - (w · 1/n) 1ᵀ

The edits are proven as functions, operator by operator; this proves that the numbers in the file are those functions.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from normdeploy.errors import NormdeployError
from normdeploy.fold.affine import Array
from normdeploy.fold.graph.edits import Edit

_ROWS = 1 << 16
"""Elements that are compared at once."""
_SLACK = 2.0**-48
"""How far two ways of adding up in float64 may differ, relative to what is added up."""


def require_stored(edit: Edit, stored: np.ndarray) -> None:
    """Raise unless ``stored`` is the rounding of what ``edit`` says, to the last place of its dtype.

    Raises:
        NormdeployError: a mistake of the fold.
    """
    original = None if edit.original is None else edit.original.numpy()
    whole = edit.centred is not None or stored.ndim == 0
    step = stored.shape[0] if whole and stored.ndim else max(1, _ROWS // max(1, math.prod(stored.shape[1:])))
    for start in range(0, stored.shape[0] if stored.ndim else 1, max(1, step)):
        rows = np.s_[start : start + step] if stored.ndim else np.s_[...]
        expected = _expected(edit, original, rows)
        if not _is_nearest(edit, stored[rows], expected):
            _compare(edit, stored[rows], expected, _sizes(edit, original, rows))


def _expected(edit: Edit, original: np.ndarray | None, rows: slice | object) -> Array:
    """Return some rows of the tensor."""
    with np.errstate(all="ignore"):
        exact = _part(edit, edit.shift, rows) + 0.0
        if original is not None:
            product = _factor(edit, rows) * _part(edit, original, rows).astype(np.float64)
            exact = np.add(exact, product) if exact.any() else product
    return exact if edit.centred is None else exact - _mean(edit, exact)


def _sizes(edit: Edit, original: np.ndarray | None, rows: slice | object) -> Array:
    """Return the sizes of what was added up in some rows of the tensor."""
    with np.errstate(all="ignore"):
        size: Array = np.abs(_part(edit, edit.shift, rows))
        if original is not None:
            size = size + np.abs(_factor(edit, rows) * _part(edit, original, rows).astype(np.float64))
    return size if edit.centred is None else size + _mean(edit, size)


def _part(edit: Edit, array: np.ndarray, rows: slice | object) -> np.ndarray:
    return np.asarray(np.broadcast_to(array, edit.shape)[rows])  # type: ignore[index]  # rows or all of them


def _factor(edit: Edit, rows: slice | object) -> Array:
    factor: Array = np.multiply(_part(edit, edit.left, rows), _part(edit, edit.right, rows))
    return factor


def _mean(edit: Edit, array: Array) -> Array:
    axis = edit.centred
    assert axis is not None
    count = array.shape[axis]
    mean = np.tensordot(array, np.full(count, 1.0 / count), axes=(axis, 0))
    return np.asarray(np.expand_dims(mean, axis))


def _is_nearest(edit: Edit, stored: np.ndarray, expected: Array) -> bool:
    """Return True if every number is the rounding of what is expected; most tensors need no closer look."""
    if edit.dtype.is_integer():
        return np.array_equal(stored, expected)
    with np.errstate(all="ignore"):
        off = np.abs(stored.astype(np.float64) - expected)
        return bool(np.all(off <= 0.5 * _limits(stored)[0] * np.abs(expected)))


def _limits(stored: np.ndarray) -> tuple[float, float]:
    """Return the spacing of the numbers at 1 in the dtype of ``stored``, and its smallest normal number."""
    limits = ml_dtypes.finfo(stored.dtype)  # type: ignore[no-untyped-call]  # it has no annotations
    return float(limits.eps), float(limits.smallest_normal)


def _compare(edit: Edit, stored: np.ndarray, expected: Array, size: Array) -> None:
    eps, smallest = (0.0, 0.0) if edit.dtype.is_integer() else _limits(stored)
    with np.errstate(all="ignore"):
        wide = stored.astype(np.float64)
        allowed = 0.5 * eps * np.abs(expected) + _SLACK * size + eps * smallest
        wrong = ~(np.abs(wide - expected) <= allowed * (1.0 + 2.0**-20))
    wrong &= ~((wide == 0.0) & (np.abs(expected) <= smallest))  # what is below is flushed
    if wrong.any():
        name = str(getattr(edit.original, "name", "") or "a new tensor")
        raise NormdeployError(
            f"the fold made a mistake, and nothing is written: {wrong.sum()} numbers of {name} are not as proven",
            fix="report it with the model",
        )
