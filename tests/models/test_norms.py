"""Semantics of torch's norms that a deployer must get right, against float64 formulas in numpy.

The modules run in float64 too, so that only a difference in meaning, not in rounding, can show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import norms

CLOSE = 1e-12  # of values around 1 in float64: some thousand roundings, far under any difference in meaning

BATCH_NORMS = [
    pytest.param(norms.batch_norm1d, (5, 2), id="1d-NC"),
    pytest.param(norms.batch_norm1d, (5, 2, 3), id="1d-NCL"),
    pytest.param(norms.batch_norm2d, (3, 2, 4, 5), id="2d"),
    pytest.param(norms.batch_norm3d, (3, 2, 2, 2, 3), id="3d"),
]
LAYER_NORMS = [
    pytest.param(norms.layer_norm_w, (3,), id="W"),
    pytest.param(norms.layer_norm_hw, (2, 3), id="HxW"),
    pytest.param(norms.layer_norm_chw, (1, 2, 3), id="CxHxW"),
]
LAYER_SHAPE = (8, 2, 3, 4)
every_batch_norm = pytest.mark.parametrize(("factory", "shape"), BATCH_NORMS)
every_layer_norm = pytest.mark.parametrize(("factory", "axes"), LAYER_NORMS)

Factory = Callable[..., nn.Module]
Array = np.ndarray[Any, np.dtype[np.float64]]


def batch(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Values whose mean and variance differ from channel to channel and from 0 and 1."""
    random = np.random.default_rng(seed)
    per_channel = (1, shape[1]) + (1,) * (len(shape) - 2)
    values: Array = random.normal(size=shape) * random.uniform(0.5, 3, per_channel) + random.normal(size=per_channel)
    return values


def run(norm: nn.Module, values: Array) -> Array:
    with torch.inference_mode():
        result: Array = norm.double()(torch.from_numpy(values)).numpy()
    return result


def state(norm: nn.Module, name: str) -> Array:
    array: Array = norm.state_dict()[name].double().numpy().copy()
    return array


def per_channel(vector: Array, ndim: int) -> Array:
    return vector.reshape((1, -1) + (1,) * (ndim - 2))


def moments(values: Array, ddof: int) -> tuple[Array, Array]:
    """Mean and variance ``[C]`` over the batch and the positions; ddof 0 is biased, 1 unbiased."""
    axes = (0, *range(2, values.ndim))
    return values.mean(axes), values.var(axes, ddof=ddof)


def normalized(values: Array, mean: Array, var: Array, eps: float = 1e-5) -> Array:
    return (values - per_channel(mean, values.ndim)) / np.sqrt(per_channel(var, values.ndim) + eps)


def affine(norm: nn.Module, values: Array) -> Array:
    gamma, beta = (per_channel(state(norm, name), values.ndim) for name in ("weight", "bias"))
    return values * gamma + beta


def assert_equal(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=CLOSE, atol=CLOSE)


def assert_differ(actual: Array, wrong: Array) -> None:
    """The check above would notice: the wrong formula is nowhere near."""
    assert np.abs(actual - wrong).max() > 1e-3


@every_batch_norm
def test_training_normalizes_with_the_biased_variance(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(), batch(shape)
    actual = run(norm, values)
    assert_equal(actual, affine(norm, normalized(values, *moments(values, ddof=0))))
    assert_differ(actual, affine(norm, normalized(values, *moments(values, ddof=1))))


@every_batch_norm
def test_the_unbiased_variance_enters_the_running_variance(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(momentum=0.25), batch(shape)
    mean, var = state(norm, "running_mean"), state(norm, "running_var")
    run(norm, values)
    batch_mean, unbiased = moments(values, ddof=1)
    assert_equal(state(norm, "running_mean"), 0.75 * mean + 0.25 * batch_mean)
    assert_equal(state(norm, "running_var"), 0.75 * var + 0.25 * unbiased)
    assert_differ(state(norm, "running_var"), 0.75 * var + 0.25 * moments(values, ddof=0)[1])


def test_two_mini_batches_from_mean_0_and_variance_1() -> None:
    norm = norms.batch_norm3d(momentum=0.3)
    norm.reset_parameters()
    first, second = batch((3, 2, 2, 2, 3), seed=1), batch((3, 2, 2, 2, 3), seed=2)
    for values in (first, second):
        run(norm, values)
    (mean1, var1), (mean2, var2) = moments(first, ddof=1), moments(second, ddof=1)
    assert_equal(state(norm, "running_mean"), 0.7 * 0.3 * mean1 + 0.3 * mean2)
    assert_equal(state(norm, "running_var"), 0.7 * 0.7 * np.ones(2) + 0.7 * 0.3 * var1 + 0.3 * var2)
    probe = batch((3, 2, 2, 2, 3), seed=3)
    expected = normalized(probe, state(norm, "running_mean"), state(norm, "running_var"))
    assert_equal(run(norm.eval(), probe), expected)


@every_batch_norm
def test_momentum_none_is_the_cumulative_average(factory: Factory, shape: tuple[int, ...]) -> None:
    norm = factory(momentum=None)  # the first batch replaces the seeded statistics altogether
    batches = [batch(shape, seed) for seed in range(3)]
    for values in batches:
        run(norm, values)
    means, variances = zip(*(moments(values, ddof=1) for values in batches), strict=True)
    assert_equal(state(norm, "running_mean"), np.mean(means, axis=0))
    assert_equal(state(norm, "running_var"), np.mean(variances, axis=0))
    assert int(norm.state_dict()["num_batches_tracked"]) == 3


@every_batch_norm
def test_inference_uses_the_running_statistics_and_keeps_them(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory().eval(), batch(shape)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    actual = run(norm, values)
    expected = affine(norm, normalized(values, state(norm, "running_mean"), state(norm, "running_var")))
    assert_equal(actual, expected)
    assert_differ(actual, affine(norm, normalized(values, *moments(values, ddof=0))))
    assert all(torch.equal(before[name], tensor.to(before[name])) for name, tensor in norm.state_dict().items())


@every_batch_norm
def test_inference_is_one_scale_and_shift_per_channel(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory().eval(), batch(shape)
    scale = state(norm, "weight") / np.sqrt(state(norm, "running_var") + 1e-5)
    shift = state(norm, "bias") - scale * state(norm, "running_mean")
    assert_equal(run(norm, values), per_channel(scale, values.ndim) * values + per_channel(shift, values.ndim))


@every_batch_norm
def test_without_tracking_inference_depends_on_the_batch(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(track_running_stats=False).eval(), batch(shape)
    assert norm.running_mean is None
    assert norm.running_var is None
    assert set(norm.state_dict()) == {"weight", "bias"}
    assert_equal(run(norm, values), affine(norm, normalized(values, *moments(values, ddof=0))))
    assert_differ(run(norm, values)[:2], run(norm, values[:2]))  # the same two samples among others


@every_batch_norm
def test_without_affine_gamma_is_1_and_beta_0(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(affine=False).eval(), batch(shape)
    assert list(norm.parameters()) == []
    expected = normalized(values, state(norm, "running_mean"), state(norm, "running_var"))
    assert_equal(run(norm, values), expected)


@pytest.mark.skipif("bias" not in inspect.signature(nn.BatchNorm1d).parameters, reason="this torch has no such form")
@every_batch_norm
def test_without_bias_beta_is_0(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(bias=False).eval(), batch(shape)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    expected = normalized(values, state(norm, "running_mean"), state(norm, "running_var"))
    assert_equal(run(norm, values), expected * per_channel(state(norm, "weight"), values.ndim))


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.5])
@every_batch_norm
def test_eps_is_added_to_the_variance_under_the_root(factory: Factory, shape: tuple[int, ...], eps: float) -> None:
    norm, values = factory(eps=eps).eval(), batch(shape)
    mean, var = state(norm, "running_mean"), state(norm, "running_var")
    assert_equal(run(norm, values), affine(norm, normalized(values, mean, var, eps)))


def test_a_running_variance_of_zero_leaves_eps_alone() -> None:
    norm, values = norms.batch_norm2d(eps=1e-3).eval(), batch((3, 2, 4, 5))
    norm.get_buffer("running_var").zero_()
    expected = affine(norm, (values - per_channel(state(norm, "running_mean"), 4)) / np.sqrt(1e-3))
    np.testing.assert_allclose(run(norm, values), expected, rtol=CLOSE, atol=100 * CLOSE)  # values around 100


@pytest.mark.parametrize(
    ("factory", "shape"),
    [(norms.batch_norm1d, (1, 2)), (norms.batch_norm1d, (1, 2, 1)), (norms.batch_norm2d, (1, 2, 1, 1))],
)
def test_one_value_per_channel_is_refused_in_training_only(factory: Factory, shape: tuple[int, ...]) -> None:
    norm, values = factory(), batch(shape)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(norm, values)
    expected = affine(norm, normalized(values, state(norm, "running_mean"), state(norm, "running_var")))
    assert_equal(run(norm.eval(), values), expected)


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (norms.batch_norm1d, (5, 2, 3, 4)),
        (norms.batch_norm2d, (5, 2, 3)),
        (norms.batch_norm3d, (5, 2, 3, 4)),
        (norms.batch_norm2d, (5, 3, 4, 5)),
        (norms.layer_norm_w, (8, 2, 4, 3)),
        (norms.layer_norm_chw, (8, 3, 2, 4)),
    ],
)
def test_other_shapes_are_refused(factory: Factory, shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        run(factory(), batch(shape))


def layer_normalized(values: Array, axes: tuple[int, ...], eps: float = 1e-5, ddof: int = 0) -> Array:
    mean = values.mean(axes, keepdims=True)
    result: Array = (values - mean) / np.sqrt(values.var(axes, ddof=ddof, keepdims=True) + eps)
    return result


@pytest.mark.parametrize("training", [True, False])
@every_layer_norm
def test_layer_norm_is_the_same_in_training_and_inference(
    factory: Factory, axes: tuple[int, ...], training: bool
) -> None:
    norm, values = factory().train(training), batch(LAYER_SHAPE)
    gamma, beta = state(norm, "weight"), state(norm, "bias")
    assert gamma.shape == beta.shape == tuple(LAYER_SHAPE[axis] for axis in axes)
    actual = run(norm, values)
    assert_equal(actual, layer_normalized(values, axes) * gamma + beta)
    assert_differ(actual, layer_normalized(values, axes, ddof=1) * gamma + beta)


@every_layer_norm
def test_layer_norm_of_a_sample_does_not_depend_on_the_batch(factory: Factory, axes: tuple[int, ...]) -> None:
    norm, values = factory(), batch(LAYER_SHAPE)
    assert_equal(run(norm, values)[3:5], run(norm, values[3:5]))


@every_layer_norm
def test_layer_norm_without_affine(factory: Factory, axes: tuple[int, ...]) -> None:
    norm, values = factory(elementwise_affine=False), batch(LAYER_SHAPE)
    assert list(norm.parameters()) == []
    assert_equal(run(norm, values), layer_normalized(values, axes))


@every_layer_norm
def test_layer_norm_without_bias(factory: Factory, axes: tuple[int, ...]) -> None:
    norm, values = factory(bias=False), batch(LAYER_SHAPE)
    assert set(norm.state_dict()) == {"weight"}
    assert_equal(run(norm, values), layer_normalized(values, axes) * state(norm, "weight"))


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
@every_layer_norm
def test_layer_norm_adds_eps_under_the_root(factory: Factory, axes: tuple[int, ...], eps: float) -> None:
    norm, values = factory(eps=eps), batch(LAYER_SHAPE)
    expected = layer_normalized(values, axes, eps) * state(norm, "weight") + state(norm, "bias")
    assert_equal(run(norm, values), expected)


@every_layer_norm
def test_layer_norm_of_a_constant_is_its_bias(factory: Factory, axes: tuple[int, ...]) -> None:
    norm = factory()
    expected = np.broadcast_to(state(norm, "bias"), LAYER_SHAPE)
    assert_equal(run(norm, np.full(LAYER_SHAPE, 3.0)), expected)


@pytest.mark.parametrize(
    "factory",
    [
        norms.batch_norm1d,
        norms.batch_norm2d,
        norms.batch_norm3d,
        norms.layer_norm_w,
        norms.layer_norm_hw,
        norms.layer_norm_chw,
    ],
)
def test_factories_repeat_themselves_far_from_the_identity(factory: Callable[[], norms.AnyNorm]) -> None:
    norm, again = factory(), factory()
    assert norm.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in norm.state_dict().items())
    statistics = set(norm.state_dict()) - {"num_batches_tracked"}
    fresh = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    assert all(np.abs(state(norm, name) - fresh[name]).max() > 0.2 for name in statistics)
    assert state(norm, "weight").min() < 0 < state(norm, "weight").max()
    again.reset_parameters()
    assert all((state(again, name) == fresh[name]).all() for name in statistics)
