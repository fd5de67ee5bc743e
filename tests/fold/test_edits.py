"""Weight edits: they compose in float64, are rounded once, and refuse what does not fit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from normdeploy.fold.graph import edits
from normdeploy.fold.graph.edits import Channels, Edit, fingerprint
from normdeploy.fold.graph.reader import Refused

RNG = np.random.default_rng(13)
F16, BF16, F32, F64 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE


def edit_of(array: np.ndarray, dtype: ir.DataType = F32) -> Edit:
    return Edit(ir.tensor(array.astype(dtype.numpy()), dtype=dtype), dtype)


WEIGHT = RNG.standard_normal((5, 3, 2))
LEFT, RIGHT = RNG.standard_normal((5, 1, 1)), RNG.standard_normal((1, 3, 1))


def test_an_empty_edit_is_the_tensor_bit_for_bit() -> None:
    for dtype in (F16, BF16, F32, F64):
        stored = WEIGHT.astype(dtype.numpy())
        assert fingerprint(edit_of(WEIGHT, dtype).rounded()) == fingerprint(stored)
        assert edit_of(WEIGHT, dtype).ulps() == 0.0


def test_left_right_and_shift() -> None:
    edit = edit_of(WEIGHT, F64).scaled(left=LEFT, right=RIGHT).shifted(LEFT)
    np.testing.assert_allclose(edit.exact(), WEIGHT * LEFT * RIGHT + LEFT, rtol=1e-15)


def test_a_scale_after_a_shift_scales_the_shift() -> None:
    edit = edit_of(WEIGHT, F64).shifted(LEFT).scaled(left=LEFT)
    np.testing.assert_allclose(edit.exact(), (WEIGHT + LEFT) * LEFT, atol=1e-15)


def test_edits_are_values() -> None:
    first = edit_of(WEIGHT, F64)
    first.scaled(left=LEFT)
    np.testing.assert_array_equal(first.exact(), WEIGHT)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_many_edits_are_rounded_once(dtype: ir.DataType) -> None:
    edit = edit_of(WEIGHT, dtype)
    exact = WEIGHT.astype(dtype.numpy()).astype(np.float64)
    for _ in range(20):
        edit, exact = edit.scaled(left=LEFT).scaled(left=1 / LEFT), exact * LEFT * (1 / LEFT)
    edit = edit.scaled(right=RIGHT)
    np.testing.assert_array_equal(edit.rounded(), (exact * RIGHT).astype(dtype.numpy()))


def test_what_overflows_only_in_between_fits() -> None:
    edit = edit_of(np.array([30.0]), F16).scaled(left=np.array([1e6])).scaled(left=np.array([1e-6]))
    assert edit.require_storable().small == 0
    np.testing.assert_array_equal(edit.rounded(), np.array([30.0], np.float16))


@pytest.mark.parametrize(
    ("dtype", "value"), [(F16, 65520.0), (BF16, 3.4e38), (F32, 3.41e38), (F16, np.inf), (F32, np.nan)]
)
def test_what_overflows_is_refused(dtype: ir.DataType, value: float) -> None:
    with pytest.raises(Refused, match="overflows"):
        Edit(None, dtype, shift=np.array([1.0, value])).require_storable()


@pytest.mark.parametrize(("dtype", "value"), [(F16, 65504.0), (F32, 3.4028234e38)])
def test_the_largest_number_fits(dtype: ir.DataType, value: float) -> None:
    assert Edit(None, dtype, shift=np.array([1.0, -value])).require_storable().small == 0


def test_a_channel_that_underflows_is_refused() -> None:
    edit = Edit(None, F16, shift=np.array([[1.0, 2.0], [3.1e-8, 2.2e-8]]))
    with pytest.raises(Refused, match="underflows"):
        edit.require_storable(Channels((0,)))


def test_a_small_element_in_a_large_channel_may_underflow() -> None:
    assert Edit(None, F16, shift=np.array([[1.0, 3.1e-8], [2.2e-8, 2.0]])).require_storable(Channels((0,))).small == 2


def test_one_tiny_channel_does_not_hide_behind_a_large_one() -> None:
    tiny = np.array([[1e4, 2e4], [3.1e-8, 2.2e-8]])
    assert Edit(None, F16, shift=tiny).require_storable().small == 2
    with pytest.raises(Refused, match="underflows"):
        Edit(None, F16, shift=tiny).require_storable(Channels((0,)))


def test_subnormal_float32_results_become_zero() -> None:
    edit = Edit(None, F32, shift=np.array([1.0, 1e-39, -1e-40]))
    assert edit.require_storable().small == 2
    np.testing.assert_array_equal(edit.rounded(), np.array([1.0, 0.0, 0.0], np.float32))


def test_the_smallest_normal_float32_stays() -> None:
    smallest = float(np.finfo(np.float32).smallest_normal)
    np.testing.assert_array_equal(Edit(None, F32, shift=np.array([smallest])).rounded(), np.float32([smallest]))


def test_a_scalar_grows_to_a_vector() -> None:
    edit = edit_of(np.array(2.0)).scaled(left=np.array([1.0, 3.0])).shifted(np.array([0.5, 0.5]))
    assert edit.shape == (2,)
    np.testing.assert_array_equal(edit.rounded(), np.float32([2.5, 6.5]))


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_a_scalar_stays_a_scalar_array(dtype: ir.DataType) -> None:
    edit = edit_of(np.array(2.0), dtype).scaled(left=np.array(3.0))
    assert edit.rounded().shape == edit.shape == ()
    assert edit.rounded().dtype == dtype.numpy()
    assert edit.require_storable().small == 0


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_ulps_count_neighbours(dtype: ir.DataType) -> None:
    eps = float(ml_dtypes.finfo(dtype.numpy()).eps)
    assert edit_of(np.array([1.0]), dtype).scaled(left=np.array([1.0 + 3 * eps])).ulps() == 3.0
    assert edit_of(np.array([4.0]), dtype).scaled(left=np.array([1.0 + 3 * eps])).ulps() == 3.0
    assert edit_of(np.array([-1.0]), dtype).scaled(left=np.array([1.0 + eps])).ulps() == 1.0


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_ulps_are_those_of_the_worst_element(dtype: ir.DataType) -> None:
    edit = edit_of(WEIGHT * 3, dtype).scaled(left=LEFT, right=RIGHT)
    assert edit.original is not None
    new, old = (array.astype(np.float64) for array in (edit.rounded(), edit.original.numpy()))
    ulp = 2.0 ** np.floor(np.log2(np.abs(new))) * float(ml_dtypes.finfo(dtype.numpy()).eps)
    assert edit.ulps() == pytest.approx(float((np.abs(new - old) / ulp).max()), rel=1e-6)


def test_ulps_of_a_weight_that_became_zero_is_a_number() -> None:
    assert 1e40 < edit_of(np.array([1e4])).scaled(left=np.array([0.0])).ulps() < np.inf


def test_a_new_tensor_has_no_ulps() -> None:
    assert Edit(None, F32, shift=np.ones(3)).ulps() == np.inf


def test_release_forgets_and_computes_again() -> None:
    edit = edit_of(WEIGHT).scaled(left=LEFT)
    before = fingerprint(edit.rounded())
    edit.release()
    assert "_exact" not in edit.__dict__
    assert fingerprint(edit.rounded()) == before


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("centred", [None, 0, 1, -1, -3])
def test_large_tensors_are_evaluated_in_parts(rows: int, centred: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = RNG.standard_normal((5, 4, 3)).astype(np.float32)
    weight[1, 2], weight[4, 0, 1] = 1e-38, 0.0
    left, right, shift = RNG.standard_normal((5, 1, 1)), RNG.uniform(0.1, 1, (1, 4, 1)), RNG.standard_normal((4, 1))
    left[1] = 1e-2
    exact = weight.astype(np.float64) * left * right + (shift if centred is not None else 0)
    if centred is not None:
        exact -= exact.mean(axis=centred, keepdims=True)
    rounded = exact.astype(np.float32)
    rounded[np.abs(rounded) < np.finfo(np.float32).smallest_normal] = 0

    monkeypatch.setattr(edits, "_BLOCK", rows * 12)
    for exact_first in (True, False):
        edit = edit_of(weight).scaled(left=left, right=right)
        edit = edit if centred is None else edit.shifted(shift).without_mean(centred)
        if exact_first:
            np.testing.assert_allclose(edit.exact(), exact, rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(edit.rounded(), rounded, rtol=1e-7, atol=1e-7 if centred is not None else 0)
        assert edit.require_storable().small == (3 if centred is None else 0)
    whole = Edit(None, F32, shift=exact)
    np.testing.assert_array_equal(whole.rounded(), rounded)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_tensor_stays_empty(shape: tuple[int, ...]) -> None:
    edit = edit_of(np.ones(shape)).scaled(left=np.array(2.0))
    assert (edit.require_storable().small, edit.ulps(), edit.rounded().shape, edit.exact().shape) == (
        0,
        0.0,
        shape,
        shape,
    )


@pytest.mark.parametrize("where", [0, 4])
def test_overflow_in_any_part_is_refused(where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_BLOCK", 1)
    weight = np.ones(5)
    weight[where] = 1e30
    with pytest.raises(Refused, match="overflows"):
        edit_of(weight).scaled(left=np.array(1e30)).require_storable()


def test_summands_are_what_was_there_before_anything_cancels() -> None:
    edit = edit_of(np.array([3.0, -2.0]), F64).scaled(left=np.array([2.0, -1.0])).shifted(np.array([-6.0, -2.0]))
    np.testing.assert_array_equal(edit.exact(), [0.0, 0.0])
    np.testing.assert_array_equal(edit.summands(), [12.0, 4.0])
    np.testing.assert_array_equal(Edit(None, F64, shift=np.array([-1.5, 2.0])).summands(), [1.5, 2.0])
    np.testing.assert_array_equal(edit_of(np.array([1.0, 3.0]), F64).without_mean(0).summands(), [3.0, 5.0])


def test_the_original_is_never_written_to() -> None:
    array = WEIGHT.astype(np.float64)
    edit = Edit(ir.tensor(array), F64).scaled(left=LEFT).shifted(LEFT)
    edit.exact()
    edit.rounded()
    np.testing.assert_array_equal(array, WEIGHT)


def test_a_fingerprint_sees_one_bit() -> None:
    other = WEIGHT.astype(np.float32)
    changed = other.copy()
    changed[0, 0, 0] = np.nextafter(changed[0, 0, 0], np.float32(np.inf))
    assert fingerprint(changed) != fingerprint(other)
    assert fingerprint(other.transpose()) == fingerprint(np.ascontiguousarray(other.transpose()))
