"""The proof of what is stored: each edited tensor against a second formula, which shares nothing with the first.

    stored = round(C(original ⊙ (left ⊙ right) + shift)),   C(w) = w - (w · 1/n) 1ᵀ

The edits are proven as functions, operator by operator; this proves that the numbers in the file are those functions.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from normdeploy.errors import NormdeployError
from normdeploy.fold.affine import Array
from normdeploy.fold.graph.edits import Edit

_ROWS = 1 << 17
"""Elements that are compared at once, to stay in a cache with what is computed from them."""
_SLACK = 2.0**-48
"""How far two ways of adding up in float64 may differ, relative to what is added up."""


def require_stored(edit: Edit, stored: np.ndarray) -> None:
    """Raise unless ``stored`` is the rounding of what ``edit`` says, to the last place of its dtype.

    Raises:
        NormdeployError: a mistake of the fold.
    """
    whole = edit.centred is not None or stored.ndim == 0
    step = stored.shape[0] if whole and stored.ndim else max(1, _ROWS // max(1, math.prod(stored.shape[1:])))
    with np.errstate(all="ignore"):
        formula = _Formula(edit)
        for start in range(0, stored.shape[0] if stored.ndim else 1, max(1, step)):
            rows = np.s_[start : start + step] if stored.ndim else np.s_[...]
            expected = formula.expected(rows)
            if not _is_nearest(edit, stored[rows], expected):
                _compare(edit, stored[rows], expected, formula.sizes(rows))


class _Formula:
    """The second formula of an edit, evaluated a few rows at a time."""

    def __init__(self, edit: Edit) -> None:
        self._edit, self._has_shift = edit, bool(edit.shift.any())
        self._shift, self._factor = (np.broadcast_to(a, edit.shape) for a in (edit.shift, edit.left * edit.right))
        self._original = None if edit.original is None else np.broadcast_to(edit.original.numpy(), edit.shape)

    def expected(self, rows: Any) -> Array:
        """Return some rows of the tensor, in an array of their own."""
        if self._original is None:
            exact = self._shift[rows] + 0.0
        else:
            exact = self._factor[rows] * self._original[rows].astype(np.float64)
            exact = np.add(exact, self._shift[rows]) if self._has_shift else exact
        return np.asarray(exact if self._edit.centred is None else exact - _mean(self._edit, exact))

    def sizes(self, rows: Any) -> Array:
        """Return the sizes of what was added up in some rows of the tensor."""
        size: Array = np.abs(self._shift[rows])
        if self._original is not None:
            size = size + np.abs(self._factor[rows] * self._original[rows].astype(np.float64))
        return size if self._edit.centred is None else size + _mean(self._edit, size)


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
    if stored.dtype.kind == "f" and np.array_equal(stored, expected.astype(stored.dtype)):  # others are rounded twice
        return bool(np.isfinite(stored).all())
    off, allowed = stored.astype(np.float64), np.abs(expected)
    off -= expected
    allowed *= 0.5 * _limits(stored)[0]
    return bool(np.all(np.abs(off, out=off) <= allowed))


def _limits(stored: np.ndarray) -> tuple[float, float]:
    """Return the spacing of the numbers at 1 in the dtype of ``stored``, and its smallest normal number."""
    limits = ml_dtypes.finfo(stored.dtype)  # type: ignore[no-untyped-call]  # it has no annotations
    return float(limits.eps), float(limits.smallest_normal)


def _compare(edit: Edit, stored: np.ndarray, expected: Array, size: Array) -> None:
    eps, smallest = (0.0, 0.0) if edit.dtype.is_integer() else _limits(stored)
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
