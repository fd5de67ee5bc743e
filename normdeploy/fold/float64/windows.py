"""Float64 executors of the operators that slide a window: convolutions and pools.

onnx.reference has no grouped ConvTranspose, confuses the axes of pads in MaxPool, and is slow on all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normdeploy.fold.affine import Array
from normdeploy.fold.float64 import products

Attributes = Mapping[str, Any]
Pads = list[tuple[int, int]]
"""Cells added before and after each spatial axis."""


def conv(attributes: Attributes, x: Array, weight: np.ndarray, bias: Array | None = None) -> Array:
    """Evaluate by the ONNX specification, Conv-11: correlation, as one matrix product a group over sliding windows."""
    kernel, groups = weight.shape[2:], attributes.get("group", 1)
    pads = _pads(attributes, x.shape[2:], kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *pads]) if np.any(pads) else x
    windows = _windows(attributes, padded, kernel)
    batch, cells = x.shape[0], windows.shape[2 : 2 + len(kernel)]
    # (batch, group, in, cells..., kernel...) -> (group, batch * cells, in * kernel)
    rows = windows.reshape(batch, groups, x.shape[1] // groups, math.prod(cells), math.prod(kernel))
    rows = rows.transpose(1, 0, 3, 2, 4).reshape(groups, batch * math.prod(cells), -1)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = products.by_kernels(rows, kernels).reshape(groups, batch, math.prod(cells), -1).transpose(1, 0, 3, 2)
    return _biased(y.reshape(batch, weight.shape[0], *cells), bias)


def conv_transpose(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Evaluate by the ONNX specification, ConvTranspose-11: every input cell adds its kernel, strided, then the pads
    are cut off.
    """
    groups, spatial = attributes.get("group", 1), x.ndim - 2
    kernel, sizes = weight.shape[2:], x.shape[2:]
    strides, dilations = (_each(attributes, name, spatial) for name in ("strides", "dilations"))
    extra = attributes.get("output_padding") or [0] * spatial
    full = [
        s * (n - 1) + span + o for s, n, span, o in zip(strides, sizes, _spans(attributes, kernel), extra, strict=True)
    ]
    cuts = _transpose_cuts(attributes, sizes, full, strides)
    # An output_shape beyond the last cell that any kernel reaches is filled with zeros: the last cut is negative.
    y = np.zeros(
        (x.shape[0], groups * weight.shape[1], *(n + max(-b, 0) for n, (_, b) in zip(full, cuts, strict=True)))
    )
    grouped_x = x.reshape(x.shape[0], groups, -1, *sizes)
    grouped_w = weight.reshape(groups, -1, weight.shape[1], math.prod(kernel))
    for index, tap in enumerate(itertools.product(*(range(k) for k in kernel))):
        part = np.einsum("bgi...,gio->bgo...", grouped_x, grouped_w[..., index])
        cells = tuple(slice(d * t, d * t + s * n, s) for d, t, s, n in zip(dilations, tap, strides, sizes, strict=True))
        y[(slice(None), slice(None), *cells)] += part.reshape(x.shape[0], -1, *sizes)
    kept = (slice(a, n - b) for (a, b), n in zip(cuts, full, strict=True))
    return _biased(y[(slice(None), slice(None), *kept)], bias)


def max_pool(attributes: Attributes, x: Array) -> tuple[Array, np.ndarray]:
    """Evaluate by the ONNX specification, MaxPool-12: the largest cell of each window, and where in ``x`` it lies."""
    kernel, spatial = attributes["kernel_shape"], x.shape[2:]
    pads = [(0, 0), (0, 0), *_pool_pads(attributes, spatial, kernel)]
    by_column = attributes.get("storage_order", 0)
    place = np.arange(math.prod(spatial)).reshape(spatial, order="F" if by_column else "C")
    places = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(spatial)) * place.size + place
    rank = x.ndim
    windows = _windows(attributes, np.pad(x, pads, constant_values=-np.inf), kernel)
    where = _windows(attributes, np.pad(places, pads), kernel)
    windows, where = (a.reshape(*a.shape[:rank], -1) for a in (windows, where))
    best = windows.argmax(axis=-1)[..., None]
    return tuple(np.take_along_axis(a, best, axis=-1)[..., 0] for a in (windows, where))  # type: ignore[return-value]


def average_pool(attributes: Attributes, x: Array) -> Array:
    """Evaluate by the ONNX specification, AveragePool-19; cells that only ceil_mode adds are never counted."""
    kernel, spatial = attributes["kernel_shape"], x.shape[2:]
    pads = _pool_pads(attributes, spatial, kernel)
    named = _pads(attributes, spatial, kernel)
    beyond = [(a - c, b - d) for (a, b), (c, d) in zip(pads, named, strict=True)]
    counted = np.pad(np.ones(spatial), named, constant_values=float(attributes.get("count_include_pad", 0)))
    counts = np.pad(counted, beyond)[None, None]
    sums, numbers = (
        _windows(attributes, a, kernel).sum(axis=tuple(range(-len(kernel), 0)))
        for a in (np.pad(x, [(0, 0), (0, 0), *pads]), counts)
    )
    return np.asarray(sums / numbers)


# -- windows ---------------------------------------------------------------------------------------


def _each(attributes: Attributes, name: str, spatial: int) -> Sequence[int]:
    return attributes.get(name) or [1] * spatial


def _spans(attributes: Attributes, kernel: Sequence[int]) -> list[int]:
    """Return how many cells a dilated kernel covers along each axis."""
    return [d * (k - 1) + 1 for d, k in zip(_each(attributes, "dilations", len(kernel)), kernel, strict=True)]


def _windows(attributes: Attributes, x: np.ndarray, kernel: Sequence[int]) -> np.ndarray:
    """Return all windows of ``x`` (padded): (batch, channel, cells..., kernel...)."""
    spatial = len(kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, _spans(attributes, kernel), axis=tuple(range(2, 2 + spatial)))
    steps = (*_each(attributes, "strides", spatial), *_each(attributes, "dilations", spatial))
    picked: np.ndarray = windows[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
    return picked


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * (y.ndim - 2))


# -- pads ------------------------------------------------------------------------------------------


def _pads(attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return [(0, 0)] * len(sizes)
    if auto_pad == "NOTSET":
        pads = attributes.get("pads") or [0] * 2 * len(sizes)
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    strides, spans = _each(attributes, "strides", len(sizes)), _spans(attributes, kernel)
    totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(sizes, spans, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if auto_pad == "SAME_UPPER" else [(high, low) for low, high in halves]


def _pool_pads(attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
    """Return the pads: with ceil_mode a last window may reach past the end, if it starts inside the cells or pads."""
    pads = _pads(attributes, sizes, kernel)
    if not attributes.get("ceil_mode", 0):
        return pads
    strides, spans = _each(attributes, "strides", len(sizes)), _spans(attributes, kernel)
    result = []
    for (low, high), n, s, span in zip(pads, sizes, strides, spans, strict=True):
        windows = -(-(low + n + high - span) // s) + 1
        windows -= (windows - 1) * s >= n + low
        result.append((low, max(high, (windows - 1) * s + span - n - low)))
    return result


def _transpose_cuts(attributes: Attributes, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int]) -> Pads:
    wanted = attributes.get("output_shape")
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if wanted is None and auto_pad in ("NOTSET", "VALID"):
        pads = attributes.get("pads") or [0] * 2 * len(sizes)
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    wanted = list(wanted or [n * s for n, s in zip(sizes, strides, strict=True)])[-len(sizes) :]
    totals = [n - want for n, want in zip(full, wanted, strict=True)]
    lows = [max(total, 0) // 2 if auto_pad == "SAME_UPPER" else max(total, 0) - max(total, 0) // 2 for total in totals]
    return [(low, total - low) for low, total in zip(lows, totals, strict=True)]
