"""Errors against formulas written out in longdouble or Python integers, and the cases that have no formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter

from normdeploy.errors import InputError, VerdictError
from normdeploy.parity.metrics import EXACT, Errors, eps, errors

SHAPE = (3, 5, 7)  # odd and distinct: a transposed or broadcast operand would show


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    reference = generator.standard_normal(SHAPE)
    return (reference + 1e-3 * generator.standard_normal(SHAPE)).astype(np.float32), reference


def test_errors_are_their_formulas() -> None:
    actual, reference = pair()
    a, r = actual.astype(np.longdouble), reference.astype(np.longdouble)
    d = a - r
    result = errors(actual, reference, "float32")
    assert result.rms == pytest.approx(float(np.sqrt((d**2).mean() / (r**2).mean())), rel=1e-12)
    assert result.max == pytest.approx(float(np.abs(d).max() / np.abs(r).max()), rel=1e-12)
    assert result.max_abs == pytest.approx(float(np.abs(d).max()), rel=1e-12)
    assert result.max_rel == pytest.approx(float(np.abs(d / r).max()), rel=1e-12)
    assert result.cosine == pytest.approx(float((a * r).sum() / np.sqrt((a * a).sum() * (r * r).sum())), rel=1e-12)
    assert result.sqnr_db == pytest.approx(float(10 * np.log10((r**2).sum() / (d**2).sum())), rel=1e-12)
    assert result.finite


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_eps_and_ulp_are_those_of_numpy(dtype: str) -> None:
    info = np.finfo(dtype)
    assert eps(dtype) == float(info.eps)
    reference = np.array([1.0, 1.5, -3.0, 100.0, float(info.tiny), float(info.tiny) / 4, 0.0])
    for value in reference.astype(dtype):
        spacing = float(np.abs(np.spacing(value)))
        one = np.array([float(value)])
        assert errors(one + 3 * spacing, one, dtype).ulp == pytest.approx(3.0, rel=1e-12)


def test_eps_and_ulp_of_bfloat16_are_those_of_torch() -> None:
    assert eps("bfloat16") == torch.finfo(torch.bfloat16).eps
    one = np.ones(1)
    assert errors((one + 2**-7).astype(ml_dtypes.bfloat16), one, "bfloat16").ulp == 1.0


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_have_no_eps(dtype: str) -> None:
    assert eps(dtype) == 0.0


def test_equal_is_exact() -> None:
    actual, _ = pair()
    assert errors(actual, actual.astype(np.float64), "float32") == EXACT
    assert EXACT.rms == EXACT.max == 0.0


@pytest.mark.parametrize("shape", [(0,), (3, 0, 5)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_nothing_has_no_error(shape: tuple[int, ...], dtype: str) -> None:
    assert errors(np.empty(shape, dtype), np.empty(shape, dtype), dtype) == EXACT


def test_a_scalar_is_judged_like_any_other() -> None:
    result = errors(np.float32(3.0) * np.ones((), np.float32), np.array(3.5), "float32")
    assert result.max_abs == 0.5
    assert result.rms == result.max == pytest.approx(0.5 / 3.5)


@pytest.mark.parametrize(("actual", "reference"), [((2, 1), (2,)), ((1,), (4,)), ((2, 3), (3, 2)), ((0,), (1,))])
def test_nothing_is_broadcast(actual: tuple[int, ...], reference: tuple[int, ...]) -> None:
    with pytest.raises(VerdictError, match="cannot be compared"):
        errors(np.ones(actual, np.float32), np.ones(reference), "float32")


def test_a_zero_reference_is_matched_by_zeros_only() -> None:
    zeros = np.zeros(4)
    assert errors(zeros.astype(np.float32), zeros, "float32") == EXACT
    result = errors(np.array([0, 0, 1e-30, 0], np.float32), zeros, "float32")
    assert result.rms == result.max == math.inf
    assert (result.cosine, result.sqnr_db, result.max_rel) == (0.0, -math.inf, 0.0)
    assert result.finite


def test_zeros_in_place_of_the_reference_are_an_error_of_one() -> None:
    _, reference = pair()
    result = errors(np.zeros(SHAPE, np.float32), reference, "float32")
    assert (result.rms, result.max, result.cosine) == (pytest.approx(1.0), pytest.approx(1.0), 0.0)
    assert result.sqnr_db == pytest.approx(0.0, abs=1e-9)


def test_non_finite_values_in_the_same_places_are_equal() -> None:
    reference = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    actual = np.array([1.0, np.nan, np.inf, -np.inf, 2.5], np.float32)
    result = errors(actual, reference, "float32")
    assert result.finite
    assert result.max_abs == 0.5
    assert result.max == 0.25  # among the finite ones only
    assert errors(reference.astype(np.float32), reference, "float32") == EXACT
    nothing = replace(EXACT, compared=False)
    assert errors(np.full(3, np.nan, np.float32), np.full(3, np.nan), "float32") == nothing


@pytest.mark.parametrize(
    ("actual", "reference"),
    [
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([1.0, np.inf], [1.0, np.nan]),
        ([1.0, np.inf], [1.0, 3e38]),
        ([np.nan, 1.0], [1.0, np.nan]),
    ],
)
def test_non_finite_values_of_another_kind_or_place_are_infinitely_wrong(
    actual: list[float], reference: list[float]
) -> None:
    result = errors(np.array(actual, np.float32), np.array(reference), "float32")
    assert not result.finite
    assert result.rms == result.max == math.inf


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    _, reference = pair()
    exact = errors(1.001 * reference, reference, "float64")
    for scale in (1e300, 1e-290):
        result = errors(1.001 * (scale * reference), scale * reference, "float64")
        assert result.rms == pytest.approx(exact.rms, rel=1e-9)
        assert result.max == pytest.approx(exact.max, rel=1e-9)
        assert result.cosine == pytest.approx(1.0)
    opposite = errors(np.array([-1.5e308, 1.0]), np.array([1.5e308, 1.0]), "float64")
    assert opposite.rms == opposite.max == math.inf


@pytest.mark.parametrize(
    ("actual", "reference", "distance"),
    [
        ([2**60], [2**60 + 1], 1.0),  # equal in float64
        ([2**63 - 1], [-(2**63)], float(2**64 - 1)),  # overflows in int64
        ([3, 4, 5], [3, 7, 5], 3.0),
    ],
)
def test_integer_differences_are_exact(actual: list[int], reference: list[int], distance: float) -> None:
    result = errors(np.array(actual, np.int64), np.array(reference, np.int64), "int64")
    assert result.max_abs == distance
    assert result.rms > 0
    assert result.max > 0


@given(*[hnp.arrays(np.int64, 3, elements=st.integers(-(2**63), 2**63 - 1)) for _ in range(2)])
def test_integers_pass_for_equal_only_if_they_are(a: np.ndarray, b: np.ndarray) -> None:
    result = errors(a, b, "int64")
    assert (result == EXACT) == (a.tolist() == b.tolist())
    assert result.max_abs == float(max(abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool"])
def test_small_integers_do_not_wrap(dtype: str) -> None:
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max] if dtype != "bool" else [False, True], dtype)
    expected = 255.0 if dtype != "bool" else 1.0
    assert errors(ends, ends[::-1], dtype).max_abs == expected


@given(
    hnp.arrays(np.float64, (2, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float64, (2, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
)
def test_no_error_is_ever_nan_or_negative(a: np.ndarray, r: np.ndarray) -> None:
    result = errors(a, r, "float64")
    for value in (result.rms, result.max, result.max_abs, result.max_rel, result.ulp):
        assert value >= 0  # false for NaN
    assert -1.0 <= result.cosine <= 1.0
    assert not math.isnan(result.sqnr_db)
    if not np.array_equal(a, r, equal_nan=True):
        assert result.max_abs > 0


@pytest.mark.parametrize("array", [np.array([1 + 2j]), np.array(["a"]), np.array([object()])])
def test_what_is_no_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="cannot be judged"):
        errors(array, array, "float32")


def test_errors_survive_json_with_their_infinities() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Errors)
    for value in (EXACT, errors(np.ones(1), np.zeros(1), "float64"), errors(np.full(1, np.nan), np.ones(1), "float64")):
        assert adapter.validate_json(adapter.dump_json(value)) == value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_where_nothing_is_finite_nothing_was_compared(value: float) -> None:
    lost = np.full((2, 3), value, np.float32)
    found = errors(lost, lost, "float32")
    assert found.finite
    assert not found.compared
    partly = lost.copy()
    partly[0, 0] = 1
    assert errors(partly, partly, "float32").compared
    assert not errors(np.zeros((2, 3), np.float32), lost, "float32").finite
    assert errors(lost[:0], lost[:0], "float32").compared, "there was nothing to compare"
