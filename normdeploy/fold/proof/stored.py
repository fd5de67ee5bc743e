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
        expected, size = _expected(edit, original, rows)
        _compare(edit, stored[rows], expected, size)


def _expected(edit: Edit, original: np.ndarray | None, rows: slice | object) -> tuple[Array, Array]:
    """Return some rows of the tensor, and the sizes of what was added up in them."""

    def part(array: np.ndarray) -> np.ndarray:
        return np.asarray(np.broadcast_to(array, edit.shape)[rows])  # type: ignore[index]  # rows or all of them

    shift = part(edit.shift)
    with np.errstate(all="ignore"):
        if original is None:
            exact, size = shift + 0.0, np.abs(shift)
        else:
            exact = np.multiply(part(edit.left), part(edit.right)) * part(original).astype(np.float64)
            size = np.abs(exact)
            if shift.any():
                exact, size = np.add(shift, exact), size + np.abs(shift)
    if edit.centred is None:
        return exact, size
    axis, count = edit.centred, exact.shape[edit.centred]
    weights = np.full(count, 1.0 / count)
    mean, mean_size = (np.expand_dims(np.tensordot(a, weights, axes=(axis, 0)), axis) for a in (exact, size))
    return exact - mean, size + mean_size


def _compare(edit: Edit, stored: np.ndarray, expected: Array, size: Array) -> None:
    eps = smallest = 0.0
    if not edit.dtype.is_integer():
        limits = ml_dtypes.finfo(stored.dtype)  # type: ignore[no-untyped-call]  # it has no annotations
        eps, smallest = float(limits.eps), float(limits.smallest_normal)
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
