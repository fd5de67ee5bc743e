"""How far an output lies from its reference, in float64.

With d = actual − reference, over all elements that are finite in both::

    rms = sqrt(mean d²) / sqrt(mean reference²)        max = max |d| / max |reference|

- A reference that is zero everywhere is matched by zeros only: 0/0 is 0, anything else over 0 is infinite.
- NaN, +inf and −inf must stand at the same positions, each of the same kind. Where they do, they count as equal and
  the errors are those of the finite elements; where they do not, ``finite`` is False and the errors are infinite.
- Integers and booleans are equal or not: their differences are exact up to 64 bits, and their ε is 0.
- An output without elements has no error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError, VerdictError

Array = npt.NDArray[Any]

_FLOATS = {"float64": (52, -1022), "float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}
"""dtype → (stored bits of the mantissa, exponent of the smallest normal number)."""


@dataclass(frozen=True)
class Errors:
    """The errors of one output; all are 0, ``cosine`` 1 and ``sqnr_db`` infinite where it is exactly the reference.

    Attributes:
        rms: root mean square of the difference over that of the reference.
        max: largest absolute difference over the largest absolute reference.
        max_abs: largest absolute difference, in the output's unit.
        max_rel: largest difference relative to its own reference element, over the references that are not 0.
        ulp: largest difference in units in the last place of its reference element in the deployed dtype.
        cosine: cosine of the angle between the two; 0 where one of them is zero and the other is not.
        sqnr_db: power of the reference over power of the difference, in decibels.
        finite: whether NaN and infinities stand where the reference has them, and nowhere else.
        compared: whether there was a finite value to compare; False where the reference has none.
    """

    # inf is no JSON number; pydantic, which writes the reports, would turn it into null and could not read it again
    __pydantic_config__: ClassVar[Any] = {"ser_json_inf_nan": "strings"}

    rms: float
    max: float
    max_abs: float
    max_rel: float
    ulp: float
    cosine: float
    sqnr_db: float
    finite: bool
    compared: bool = True


EXACT = Errors(rms=0.0, max=0.0, max_abs=0.0, max_rel=0.0, ulp=0.0, cosine=1.0, sqnr_db=math.inf, finite=True)
USELESS = 0.25
"""Eager's own RMS error from which on ``4 * e_eager`` lets zeros pass: float64 is no reference of that output."""
INCOMPARABLE = Errors(math.inf, math.inf, math.inf, math.inf, math.inf, cosine=0.0, sqnr_db=-math.inf, finite=False)


def is_float(dtype: str) -> bool:
    """Return True if ``dtype`` names one of the floating-point types that can be judged with a tolerance."""
    return dtype in _FLOATS


def eps(dtype: str) -> float:
    """Return distance from 1 to the next number of ``dtype``; 0 for integers and booleans, which must be equal."""
    return 2.0 ** -_FLOATS[dtype][0] if dtype in _FLOATS else 0.0


def sizes(array: Array) -> tuple[float, float]:
    """Return the RMS and the largest magnitude of the real numbers in ``array``, in float64; 0 of none."""
    wide = np.abs(array.astype(np.float64))
    return (float(np.sqrt(np.mean(wide * wide))), float(wide.max())) if array.size else (0.0, 0.0)


def errors(actual: Array, reference: Array, dtype: str) -> Errors:
    """Return the errors of ``actual`` against ``reference``, two arrays of one shape.

    ``dtype`` is the name of the deployed one, whose ulp counts; the arrays may be wider. Raises VerdictError where
    the shapes differ (nothing is broadcast), InputError for values that are neither real numbers nor booleans.
    """
    if actual.shape != reference.shape:
        raise VerdictError(f"an output of shape {actual.shape} cannot be compared with {reference.shape}")
    if _is_integer(actual) and _is_integer(reference):
        return _of_difference(_integer_distance(actual, reference), _wide(actual), _wide(reference), dtype)
    a, r = _wide(actual), _wide(reference)
    finite = np.isfinite(r)
    if not np.array_equal(a[~finite], r[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return INCOMPARABLE
    if finite.size and not finite.any():
        return replace(EXACT, compared=False)
    with np.errstate(over="ignore"):  # two huge numbers of opposite sign lie infinitely far apart
        return _of_difference(np.abs(a[finite] - r[finite]), a[finite], r[finite], dtype)


def _is_integer(array: Array) -> bool:
    return array.dtype.kind in "iub"


def _wide(array: Array) -> npt.NDArray[np.float64]:
    if not (_is_integer(array) or is_float(array.dtype.name)):
        raise InputError(f"an output of dtype {array.dtype} cannot be judged", fix="return real numbers or booleans")
    return array.astype(np.float64)


def _integer_distance(a: Array, r: Array) -> npt.NDArray[np.float64]:
    """|a − r|: exact modulo 2⁶⁴, where a signed subtraction may overflow and float64 takes 2⁶⁰ for 2⁶⁰ + 1."""
    high, low = (pick(a, r).astype(np.uint64) for pick in (np.maximum, np.minimum))
    distance: npt.NDArray[np.uint64] = high - low
    return distance.astype(np.float64)


def _of_difference(
    d: npt.NDArray[np.float64], a: npt.NDArray[np.float64], r: npt.NDArray[np.float64], dtype: str
) -> Errors:
    """The errors of finite values, from the absolute difference ``d`` of ``a`` and ``r``."""
    if not d.any():
        return EXACT
    magnitude = np.abs(r)
    nonzero = magnitude > 0
    with np.errstate(over="ignore"):
        relative = d[nonzero] / magnitude[nonzero]
        ulps = d / _ulp(magnitude, dtype)
        largest = float(d.max() / magnitude.max()) if nonzero.any() else math.inf
    rms = _rms_ratio(d, magnitude)
    return Errors(
        rms=rms,
        max=largest,
        max_abs=float(d.max()),
        max_rel=float(relative.max(initial=0.0)),
        ulp=float(ulps.max()),
        cosine=_cosine(a, r),
        sqnr_db=0.0 - 20 * math.log10(rms) if rms > 0 else math.inf,
        finite=True,
    )


def _rms_ratio(d: npt.NDArray[np.float64], magnitude: npt.NDArray[np.float64]) -> float:
    """RMS of ``d`` over RMS of ``magnitude``, scaled so that no square overflows or vanishes."""
    largest, scale = float(d.max()), float(magnitude.max())
    if scale == 0.0 or math.isinf(largest):
        return math.inf
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(d / largest) / np.linalg.norm(magnitude / scale) * (np.float64(largest) / scale))


def _cosine(a: npt.NDArray[np.float64], r: npt.NDArray[np.float64]) -> float:
    """Cosine of the angle between two arrays that are not equal: 0 where one of them is zero."""
    if not (a.any() and r.any()):
        return 0.0
    u, v = a.ravel() / np.abs(a).max(), r.ravel() / np.abs(r).max()
    return float(np.clip(np.dot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v)), -1.0, 1.0))


def _ulp(magnitude: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.float64]:
    """Spacing of the numbers of ``dtype`` at ``magnitude``; 1 for integers."""
    if dtype not in _FLOATS:
        return np.ones_like(magnitude)
    bits, lowest = _FLOATS[dtype]
    exponent = np.frexp(np.maximum(magnitude, 2.0**lowest))[1] - 1
    spacing: npt.NDArray[np.float64] = np.ldexp(1.0, exponent - bits)
    return spacing


def differing(actual: Array, reference: Array) -> Errors:
    """Return the share of whole numbers or booleans, of one shape, that are others, as RMS and as largest error.

    How far an index lies from another says nothing. 16 bits decide some of many otherwise; how many can be compared.
    """
    share = float(np.mean(actual != reference)) if actual.size else 0.0
    return replace(EXACT, rms=share, max=share)


def usable(found: Errors) -> Errors:
    """Return ``found``, or no error where it has no bound: that says nothing about what is allowed."""
    return found if found.finite and found.rms < USELESS else EXACT


def allowance(own: Array, exact: Array, dtype: str) -> Errors:
    """Return the errors of ``own`` as what may be lost: none where they have no bound, or it has another shape."""
    return usable(errors(own, exact, dtype)) if own.shape == exact.shape else EXACT


def larger(one: Errors, other: Errors) -> Errors:
    """Return ``one`` with the larger of the RMS and of the maximum errors."""
    return replace(one, rms=max(one.rms, other.rms), max=max(one.max, other.max))


def added(one: Errors, other: Errors) -> Errors:
    """Return ``one`` with the RMS and the maximum error of ``other`` on top."""
    return replace(one, rms=one.rms + other.rms, max=one.max + other.max)
