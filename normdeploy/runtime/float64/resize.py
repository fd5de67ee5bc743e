"""Resize in float64: one matrix of weights an axis, by the formulas of ONNX's Resize-19.

Which cell is the nearest is decided in float32, in which the operator has its scales and runtimes count: see
:mod:`normdeploy.runtime.float64.decisions`. How cells are mixed is computed in float64.

onnx.reference interpolates point by point in Python, minutes for an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from normdeploy.runtime.float64.step import Array, Step


def resize(step: Step, x: Array, *inputs: Array | None) -> Array:
    """Return ``x`` with each axis resized. Raises ValueError for a mode that the specification does not have."""
    roi, scales, sizes = _given(step, inputs)
    axes = [axis % x.ndim for axis in step.attribute("axes", None) or range(x.ndim)]
    by, lengths = _targets(step, [x.shape[axis] for axis in axes], scales, sizes)
    outside = np.zeros((), bool)
    for place, axis in enumerate(axes):
        if lengths[place] == x.shape[axis] and by[place] == 1.0 and not _crops(step):
            continue
        corners = (0.0, 1.0) if roi is None else (float(roi[place]), float(roi[place + len(axes)]))
        at = _coordinates(step, lengths[place], x.shape[axis], by[place], corners)
        weights = _weights(step, at, x.shape[axis], by[place])
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
        if _crops(step):
            out = (at < 0) | (at > weights.shape[1] - 1)
            outside = outside | out.reshape([-1 if index == axis else 1 for index in range(x.ndim)])
    return np.where(outside, step.attribute("extrapolation_value", 0.0), x) if _crops(step) else x


def _crops(step: Step) -> bool:
    return bool(step.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize")


def _given(step: Step, inputs: Sequence[Array | None]) -> tuple[Array | None, Array | None, Array | None]:
    """Return roi, scales and sizes; Resize-10 and Upsample have scales alone."""
    if step.op_type == "Upsample" or step.opset < 11:
        return None, inputs[0] if inputs else np.asarray(step.attributes["scales"], np.float64), None
    roi, scales, sizes = (item if item is not None and item.size else None for item in (*inputs, None, None, None)[:3])
    return roi, scales, sizes


def _targets(
    step: Step, before: Sequence[int], scales: Array | None, sizes: Array | None
) -> tuple[list[float], list[int]]:
    """Return the scale and the new length of each axis."""
    if sizes is None:
        by = [float(scale) for scale in np.asarray(scales).reshape(-1)]
        return by, [math.floor(size * scale) for size, scale in zip(before, by, strict=True)]
    lengths = [int(size) for size in sizes]
    policy = step.attribute("keep_aspect_ratio_policy", "stretch")
    ratios = [new / old for new, old in zip(lengths, before, strict=True)]
    if policy == "stretch":
        return ratios, lengths
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [scale] * len(before), [math.floor(scale * old + 0.5) for old in before]


def _coordinates(step: Step, new: int, old: int, scale: float, corners: tuple[float, float]) -> Array:
    """Return where each new cell lies among the old ones."""
    mode = step.attribute("coordinate_transformation_mode", "half_pixel")
    if step.op_type == "Upsample" or step.opset < 11:
        mode = "asymmetric"
    real: Any = np.float32 if step.attribute("mode", "nearest") == "nearest" else np.float64
    index: Array = np.arange(new, dtype=real)
    scale = real(scale)
    if mode == "asymmetric":
        return np.asarray(index / scale)
    if mode == "align_corners":
        return np.asarray(index * (old - 1) / (new - 1) if new > 1 else index * 0.0)
    if mode == "pytorch_half_pixel":
        return np.asarray((index + 0.5) / scale - 0.5 if new > 1 else index * 0.0)
    if mode == "tf_crop_and_resize":
        start, end = corners
        if new > 1:
            return np.asarray(start * (old - 1) + index * (end - start) * (old - 1) / (new - 1))
        return np.full(new, 0.5 * (start + end) * (old - 1))
    if mode == "half_pixel_symmetric":
        adjustment = new / (scale * old)
        centre = old / 2
        return np.asarray(centre * (1 - adjustment) + (index + 0.5) / scale - 0.5)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((index + 0.5) / scale)
    if mode != "half_pixel":
        raise ValueError(f"no coordinate_transformation_mode {mode}")
    return np.asarray((index + 0.5) / scale - 0.5)


def _weights(step: Step, at: Array, old: int, scale: float) -> Array:
    """Return the weight of each old cell (axis 1) in each new one (axis 0)."""
    mode = step.attribute("mode", "nearest")
    if mode == "nearest":
        return np.asarray(np.eye(old)[_nearest(step, at, old)])
    filter_scale = min(scale, 1.0) if step.attribute("antialias", 0) else 1.0
    reach = (1 if mode == "linear" else 2) / filter_scale
    if step.attribute("antialias", 0):
        taps = np.arange(-math.ceil(reach), math.ceil(reach) + 1) + np.floor(at)[:, None]
    else:
        taps = np.arange(*((0, 2) if mode == "linear" else (-1, 3))) + np.floor(at)[:, None]
    kernel = _tent if mode == "linear" else _cubic(step.attribute("cubic_coeff_a", -0.75))
    share = kernel((taps - at[:, None]) * filter_scale)
    inside = (taps >= 0) & (taps < old)
    if step.attribute("exclude_outside", 0):
        share = np.where(inside, share, 0.0)
    if step.attribute("exclude_outside", 0) or step.attribute("antialias", 0):
        share = share / share.sum(axis=1, keepdims=True)
    weights = np.zeros((len(at), old))
    np.add.at(weights, (np.arange(len(at))[:, None], np.clip(taps, 0, old - 1).astype(np.int64)), share)
    return weights


def _tent(distance: Array) -> Array:
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(distance)))


def _cubic(a: float) -> Any:
    """Return Keys' kernel (1981) with coefficient ``a``."""

    def kernel(distance: Array) -> Array:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel


def _nearest(step: Step, at: Array, old: int) -> Array:
    mode = step.attribute("nearest_mode", "round_prefer_floor")
    if step.op_type == "Upsample" or step.opset < 11:
        mode = "floor"
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[mode]
    return np.clip(rounded, 0, old - 1).astype(np.int64)


RESIZE: dict[str, Callable[..., Any]] = {"Resize": resize, "Upsample": resize}
