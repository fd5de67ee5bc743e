"""Elementwise operators, comparisons and reductions in float64, by NumPy.

Formulas are those of the ONNX operator specification; ``erf`` is PyTorch's, which NumPy has not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from normdeploy.runtime.float64.step import Array, Step

Rule = Callable[..., Any]


def erf(x: Array) -> Array:
    """Return the error function of ``x``."""
    return np.asarray(torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()).reshape(x.shape)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow, so that a large negative ``x`` keeps its digits."""
    small = np.exp(-np.abs(x))
    result: Array = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return result


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x)) without overflow."""
    result: Array = np.logaddexp(0.0, x)
    return result


def _gelu(step: Step, x: Array) -> Array:
    if step.attribute("approximate", "none") == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)))
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def _clip(step: Step, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low = step.attribute("min", None) if low is None else low
    high = step.attribute("max", None) if high is None else high
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


def _pow(step: Step, x: Array, exponent: Array) -> Array:
    del step
    return np.asarray(np.power(x, exponent)).astype(x.dtype, copy=False)


def _div(step: Step, a: Array, b: Array) -> Array:
    """Integers are divided towards zero, as in C."""
    del step
    if a.dtype.kind == "i":
        quotient = np.floor_divide(np.abs(a), np.abs(b))
        return np.asarray(np.where((a < 0) ^ (b < 0), -quotient, quotient)).astype(a.dtype)
    return np.asarray(np.floor_divide(a, b) if a.dtype.kind == "u" else np.true_divide(a, b))


def _mod(step: Step, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if step.attribute("fmod", 0) else np.mod(a, b))


def _is_inf(step: Step, x: Array) -> Array:
    wanted = np.zeros(x.shape, bool)
    if step.attribute("detect_positive", 1):
        wanted |= np.isposinf(x)
    if step.attribute("detect_negative", 1):
        wanted |= np.isneginf(x)
    return wanted


def _elu(step: Step, x: Array) -> Array:
    return np.asarray(np.where(x > 0, x, step.attribute("alpha", 1.0) * np.expm1(np.minimum(x, 0.0))))


def _celu(step: Step, x: Array) -> Array:
    alpha = step.attribute("alpha", 1.0)
    return np.asarray(np.maximum(x, 0.0) + np.minimum(0.0, alpha * np.expm1(np.minimum(x, 0.0) / alpha)))


def _selu(step: Step, x: Array) -> Array:
    alpha, gamma = step.attribute("alpha", 1.6732632423543772), step.attribute("gamma", 1.0507009873554805)
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))))


def _leaky_relu(step: Step, x: Array) -> Array:
    return np.asarray(np.where(x < 0, step.attribute("alpha", 0.01) * x, x))


def _prelu(step: Step, x: Array, slope: Array) -> Array:
    del step
    return np.asarray(np.where(x < 0, slope * x, x))


def _hard_sigmoid(step: Step, x: Array) -> Array:
    return np.asarray(np.clip(step.attribute("alpha", 0.2) * x + step.attribute("beta", 0.5), 0.0, 1.0))


def _hard_swish(step: Step, x: Array) -> Array:
    del step
    return np.asarray(x * np.clip(x / 6 + 0.5, 0.0, 1.0))


def _thresholded_relu(step: Step, x: Array) -> Array:
    return np.asarray(np.where(x > step.attribute("alpha", 1.0), x, 0.0))


def _shrink(step: Step, x: Array) -> Array:
    bias, lambd = step.attribute("bias", 0.0), step.attribute("lambd", 0.5)
    result: Array = np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, np.zeros_like(x)))
    return result.astype(x.dtype)


def _swish(step: Step, x: Array) -> Array:
    return np.asarray(x * sigmoid(step.attribute("alpha", 1.0) * x))


def _where(step: Step, condition: Array, a: Array, b: Array) -> Array:
    del step
    return np.where(condition, a, b)


def _softmax(step: Step, x: Array, *, log: bool = False) -> Array:
    """Softmax over one axis; before opset 13 over all axes from the given one on."""
    shape = x.shape
    if step.opset < 13:
        axis = step.attribute("axis", 1) % max(x.ndim, 1)
        x = x.reshape(math.prod(shape[:axis]), -1)
        axis = 1
    else:
        axis = step.attribute("axis", -1)
    shifted = x - x.max(axis=axis, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=axis, keepdims=True)
    y = shifted - np.log(total) if log else exponentials / total
    return np.asarray(y).reshape(shape)


def _log_sum_exp(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    finite = np.where(np.isfinite(top), top, 0.0)
    total = np.log(np.exp(x - finite).sum(axis=axis, keepdims=True)) + finite
    return np.asarray(total if keepdims else total.reshape(np.sum(x, axis=axis).shape))


def _extreme(pick: Any, worst: Callable[[np.dtype[Any]], Any]) -> Callable[..., Array]:
    """Reduce by ``pick``; an empty reduction gives the least (or largest) number of the type."""

    def reduce(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
        if x.dtype.kind == "b":
            found = pick.reduce(x.astype(np.uint8), axis=axis, keepdims=keepdims, initial=int(pick is np.minimum))
            return np.asarray(found).astype(bool)
        return np.asarray(pick.reduce(x, axis=axis, keepdims=keepdims, initial=worst(x.dtype)))

    return reduce


def _least(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _largest(dtype: np.dtype[Any]) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "ReduceSum": lambda x, axis, keep: np.asarray(x.sum(axis=axis, keepdims=keep, dtype=x.dtype)),
    "ReduceMean": lambda x, axis, keep: np.asarray(x.mean(axis=axis, keepdims=keep)).astype(x.dtype),
    "ReduceProd": lambda x, axis, keep: np.asarray(x.prod(axis=axis, keepdims=keep, dtype=x.dtype)),
    "ReduceMax": _extreme(np.maximum, _least),
    "ReduceMin": _extreme(np.minimum, _largest),
    "ReduceL1": lambda x, axis, keep: np.asarray(np.abs(x).sum(axis=axis, keepdims=keep, dtype=x.dtype)),
    "ReduceL2": lambda x, axis, keep: np.asarray(np.sqrt((x * x).sum(axis=axis, keepdims=keep))).astype(x.dtype),
    "ReduceSumSquare": lambda x, axis, keep: np.asarray((x * x).sum(axis=axis, keepdims=keep, dtype=x.dtype)),
    "ReduceLogSum": lambda x, axis, keep: np.asarray(np.log(x.sum(axis=axis, keepdims=keep))),
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduce(step: Step, x: Array, axes: Array | None = None) -> Array:
    named = step.attribute("axes", None) if axes is None else axes.tolist()
    if not named and step.attribute("noop_with_empty_axes", 0):
        return {"ReduceL1": np.abs, "ReduceL2": np.abs, "ReduceSumSquare": np.square, "ReduceLogSum": np.log}.get(
            step.op_type, np.asarray
        )(x)
    axis = tuple(int(a) for a in named) if named else None
    return _REDUCTIONS[step.op_type](x, axis, bool(step.attribute("keepdims", 1)))


def _arg(step: Step, x: Array) -> Array:
    pick = np.argmax if step.op_type == "ArgMax" else np.argmin
    axis = step.attribute("axis", 0)
    if step.attribute("select_last_index", 0):
        found = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis, keepdims=True)
    else:
        found = pick(x, axis=axis, keepdims=True)
    return np.asarray(found if step.attribute("keepdims", 1) else np.squeeze(found, axis)).astype(np.int64)


def _cum_sum(step: Step, x: Array, axis_: Array) -> Array:
    axis = int(np.asarray(axis_).reshape(()))
    x = np.flip(x, axis) if step.attribute("reverse", 0) else x
    y = np.cumsum(x, axis=axis, dtype=x.dtype)
    if step.attribute("exclusive", 0):
        y = y - x if x.dtype.kind != "f" else _shifted(y, axis)
    return np.asarray(np.flip(y, axis) if step.attribute("reverse", 0) else y)


def _shifted(y: Array, axis: int) -> Array:
    """``y`` one further along ``axis``, a zero in front: exact, where y - x would round."""
    moved = np.roll(y, 1, axis)
    first = tuple(slice(0, 1) if index == axis % y.ndim else slice(None) for index in range(y.ndim))
    moved[first] = 0
    return moved


def _fold(function: Any) -> Rule:
    return lambda step, *xs: np.asarray(functools.reduce(function, xs))


def _plain(function: Any) -> Rule:
    return lambda step, *xs: np.asarray(function(*xs))


def _mean(step: Step, *xs: Array) -> Array:
    del step
    return np.asarray(functools.reduce(np.add, xs) / len(xs))


def _bit_shift(step: Step, a: Array, b: Array) -> Array:
    return np.asarray(np.left_shift(a, b) if step.attribute("direction", "") == "LEFT" else np.right_shift(a, b))


ELEMENTWISE: dict[str, Rule] = {
    **{name: _plain(getattr(np, name.lower())) for name in ("Abs", "Exp", "Log", "Sqrt", "Floor", "Ceil", "Sign")},
    **{name: _plain(getattr(np, name.lower())) for name in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh")},
    **{f"A{name}": _plain(getattr(np, f"arc{name}")) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "Neg": _plain(np.negative),
    "Reciprocal": _plain(lambda x: 1.0 / x),
    "Round": _plain(np.round),
    "Erf": _plain(erf),
    "Sigmoid": _plain(sigmoid),
    "Softplus": _plain(softplus),
    "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "Mish": _plain(lambda x: x * np.tanh(softplus(x))),
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "Gelu": _gelu,
    "Swish": _swish,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink,
    "Clip": _clip,
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Min": _fold(np.minimum),
    "Max": _fold(np.maximum),
    "Sum": _fold(np.add),
    "Mean": _mean,
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Xor": _plain(np.logical_xor),
    "Not": _plain(np.logical_not),
    "BitwiseAnd": _plain(np.bitwise_and),
    "BitwiseOr": _plain(np.bitwise_or),
    "BitwiseXor": _plain(np.bitwise_xor),
    "BitwiseNot": _plain(np.bitwise_not),
    "BitShift": _bit_shift,
    "Equal": _plain(np.equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "IsNaN": _plain(np.isnan),
    "IsInf": _is_inf,
    "Where": _where,
    "Softmax": _softmax,
    "LogSoftmax": functools.partial(_softmax, log=True),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "CumSum": _cum_sum,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}


def axes_of(step: Step, axes: Array | None) -> Sequence[int]:
    """Return the axes of an operator that takes them as an input or, in older opsets, as an attribute."""
    named = step.attribute("axes", None) if axes is None else np.asarray(axes).reshape(-1).tolist()
    return [] if named is None else [int(axis) for axis in named]
