"""The algebra of affine maps: composition, halves, moves."""

from __future__ import annotations

import numpy as np
import pytest

from normdeploy.fold.affine import AffineMap

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 5, 3, 7))


def channel_map(seed: int = 0) -> AffineMap:
    rng = np.random.default_rng(seed)
    return AffineMap.of(rng.standard_normal((5, 1, 1)), rng.standard_normal((5, 1, 1)), 4)


def test_application_is_scale_then_shift() -> None:
    m = AffineMap.of([[[2.0]], [[3.0]]], [[[-1.0]], [[4.0]]], 4)
    np.testing.assert_array_equal(m(np.ones((1, 2, 1, 1))).ravel(), [1.0, 7.0])


def test_composition_is_one_application_after_the_other() -> None:
    first, second = channel_map(1), channel_map(2)
    np.testing.assert_allclose(second.after(first)(X), second(first(X)), rtol=1e-14)


def test_composition_is_not_commutative() -> None:
    first, second = channel_map(1), channel_map(2)
    assert not np.allclose(second.after(first)(X), first.after(second)(X))


def test_composition_over_different_axes_varies_over_both() -> None:
    columns = AffineMap.of(RNG.standard_normal(7), 0.0, 4)
    both = columns.after(channel_map())
    assert both.axes == (1, 3)
    np.testing.assert_allclose(both(X), columns(channel_map()(X)), rtol=1e-14)


def test_the_identity_changes_nothing() -> None:
    identity = AffineMap.identity(4)
    assert identity.is_identity
    assert identity.axes == ()
    np.testing.assert_array_equal(identity(X), X)
    assert identity.after(channel_map()).equals(channel_map())
    assert channel_map().after(identity).equals(channel_map())


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1e-300), (np.nextafter(1.0, 2.0), 0.0), (-1.0, 0.0)])
def test_the_smallest_difference_is_no_identity(scale: float, shift: float) -> None:
    assert not AffineMap.of(scale, shift, 4).is_identity


def test_scale_and_shift_part_in_both_orders() -> None:
    m = channel_map()
    before = m.shift_before_scale()
    assert before is not None
    np.testing.assert_allclose(m.only_shift()(m.without_shift()(X)), m(X), rtol=1e-14)
    np.testing.assert_allclose(m.without_shift()(before(X)), m(X), rtol=1e-12)


def test_a_scale_of_zero_has_no_shift_before_it() -> None:
    assert AffineMap.of([1.0, 0.0], [1.0, 1.0], 2).shift_before_scale() is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_says_so(value: float) -> None:
    assert not AffineMap.of([1.0, value], 0.0, 2).is_finite
    assert not AffineMap.of(1.0, [0.0, value], 2).is_finite
    assert not AffineMap.of(1e200, 0.0, 2).after(AffineMap.of(1e200, 0.0, 2)).is_finite


def test_axes_and_sizes_are_those_it_varies_over() -> None:
    m = AffineMap.of(np.ones((5, 1, 1)), RNG.standard_normal(7), 4)
    assert m.axes == (1, 3)
    assert [m.size(axis) for axis in range(4)] == [1, 5, 1, 7]


def test_equality_is_of_functions_not_of_shapes() -> None:
    assert AffineMap.of(np.full((5, 1, 1), 2.0), 0.0, 4).equals(AffineMap.of(2.0, np.zeros(7), 4))
    assert not AffineMap.of(2.0, 0.0, 4).equals(AffineMap.of(2.0, [0.0] * 6 + [1e-300], 4))


def test_a_move_of_the_tensor_is_a_move_of_the_map() -> None:
    m = channel_map()
    moved = m.moved(lambda a: np.transpose(a, (0, 2, 3, 1)))
    np.testing.assert_array_equal(moved(np.transpose(X, (0, 2, 3, 1))), np.transpose(m(X), (0, 2, 3, 1)))


def test_a_move_shrinks_axes_that_became_constant() -> None:
    m = AffineMap.of(np.array([2.0, 3.0]).reshape(2, 1), 0.0, 2)
    assert m.moved(lambda a: a[:1]).axes == ()
    assert m.moved(lambda a: np.repeat(a, 2, axis=1)).axes == (0,)


def test_scale_and_shift_move_at_one_common_shape() -> None:
    m = AffineMap.of(np.array([2.0, 3.0]).reshape(2, 1), 5.0, 2)  # the shift alone has no axis to pick from
    picked = m.moved(lambda a: np.take(a, [1, 1, 0], axis=0))
    np.testing.assert_array_equal(picked(np.ones((3, 4)))[:, 0], [8.0, 8.0, 7.0])


def test_broadcast_writes_the_sizes_out() -> None:
    full = channel_map().broadcast([1, 5, 1, 7])
    assert full.scale.shape == full.shift.shape == (1, 5, 1, 7)
    np.testing.assert_array_equal(full(X), channel_map()(X))


def test_maps_of_other_sizes_or_ranks_are_not_equal() -> None:
    two, three = (AffineMap.of(np.ones((size, 1)) * 2.0, 0.0, 3) for size in (2, 3))
    assert not two.equals(three)
    assert not two.equals(AffineMap.of(2.0, 0.0, 2))
    assert two.equals(AffineMap.of(2.0, 0.0, 3))
