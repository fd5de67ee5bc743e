"""Float64 executors of the operators that read an image at computed places: GridSample and DeformConv."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normdeploy.fold.affine import Array
from normdeploy.fold.float64 import products

Tap = tuple[np.ndarray, Array]
"""Which cell is read along an axis at each place, and its weight."""


def grid_sample(attributes: Mapping[str, Any], x: Array, grid: Array) -> Array:
    """Evaluate by the ONNX specification, GridSample-22, over any number of axes; the reference interpolates in
    float32.
    """
    mode = str(attributes.get("mode", "linear")).removeprefix("bi")
    padding, aligned = attributes.get("padding_mode", "zeros"), attributes.get("align_corners", 0)
    taps = [
        _taps(_denormalized(grid[..., -1 - axis], size, aligned), size, mode, padding, aligned)
        for axis, size in enumerate(x.shape[2:])
    ]
    return _read(x, taps)


def deform_conv(
    attributes: Mapping[str, Any],
    x: Array,
    weight: np.ndarray,
    offset: Array,
    bias: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Evaluate by the ONNX specification, DeformConv-22 (Dai et al. 2017, arXiv 1703.06211): cells outside the image
    are 0.
    """
    kernel, cells, batch = weight.shape[2:], offset.shape[2:], x.shape[0]
    groups, sets, count = attributes.get("group", 1), attributes.get("offset_group", 1), math.prod(kernel)
    steps = [attributes.get(name) or [1] * len(kernel) for name in ("strides", "dilations")]
    pads = attributes.get("pads") or [0] * 2 * len(kernel)
    # every sample and set of offsets by itself: (batch * sets, channels of a set, sizes...)
    images = x.reshape(batch * sets, -1, *x.shape[2:])
    moved = offset.reshape(batch * sets, count, len(kernel), *cells)
    taps = []
    for axis, size in enumerate(x.shape[2:]):
        at = steps[0][axis] * np.arange(cells[axis]) - pads[axis]
        within = np.indices(kernel).reshape(len(kernel), count)[axis] * steps[1][axis]
        base = within.reshape(-1, *[1] * len(cells)) + at.reshape([-1 if i == axis else 1 for i in range(len(cells))])
        taps.append(_taps(base + moved[:, :, axis], size, "linear", "zeros", 0))
    read = _read(images, taps)  # (batch * sets, channels of a set, taps of the kernel, cells...)
    if mask is not None:
        read = read * mask.reshape(batch * sets, 1, count, *cells)
    rows = read.reshape(batch, groups, x.shape[1] // groups, count, -1).transpose(1, 0, 4, 2, 3)
    rows = rows.reshape(groups, batch * math.prod(cells), -1)
    y = products.by_kernels(rows, weight.reshape(groups, weight.shape[0] // groups, -1))
    y = y.reshape(groups, batch, math.prod(cells), -1).transpose(1, 0, 3, 2).reshape(batch, weight.shape[0], *cells)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(cells))


def _denormalized(place: Array, size: int, aligned: int) -> Array:
    """Return places from -1 to 1 as cells of an axis."""
    return (place + 1.0) / 2.0 * (size - 1) if aligned else ((place + 1.0) * size - 1.0) / 2.0


def _taps(place: Array, size: int, mode: str, padding: str, aligned: int) -> list[Tap]:
    """Return the cells along an axis that are read at each place."""
    if mode != "cubic" and padding == "border":
        place = np.clip(place, 0.0, size - 1.0)
    if mode != "cubic" and padding == "reflection":
        place = _reflected(place, size, aligned)
    first = np.rint(place) if mode == "nearest" else np.floor(place)
    found = []
    for index, weight in _weights(mode, place - first):
        cell = first + index
        if padding == "zeros":
            weight = weight * ((cell >= 0) & (cell < size))
        elif padding == "reflection":
            cell = np.rint(_reflected(cell, size, aligned))
        found.append((np.clip(cell, 0, size - 1).astype(np.int64), weight))
    return found


def _weights(mode: str, rest: Array) -> list[tuple[int, Array]]:
    """Return the neighbours of a cell, by their distance from it, with the weight at ``rest`` behind it."""
    if mode == "nearest":
        return [(0, np.ones(rest.shape))]
    if mode == "linear":
        return [(0, 1.0 - rest), (1, rest)]
    return [(-1, _far(rest + 1.0)), (0, _near(rest)), (1, _near(1.0 - rest)), (2, _far(2.0 - rest))]


def _near(d: Array) -> Array:
    """Return the weight of a cell less than one cell away, of cubic convolution with a = -3/4 (Keys 1981)."""
    return (1.25 * d - 2.25) * d * d + 1.0


def _far(d: Array) -> Array:
    """Return the weight of a cell between one and two cells away."""
    return ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0


def _reflected(place: Array, size: int, aligned: int) -> Array:
    """Return places mirrored at the borders of the image until they lie inside."""
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    if high == low:
        return np.zeros(place.shape)
    far = np.abs(place - low) % (2.0 * (high - low))
    return np.clip(low + np.minimum(far, 2.0 * (high - low) - far), 0.0, size - 1.0)


def _read(x: Array, taps: Sequence[list[Tap]]) -> Array:
    """Return the sums of weighted cells: (batch, channels, sizes...) at places (batch, ...) to (batch, channels,
    ...).
    """
    sizes, flat = x.shape[2:], x.reshape(*x.shape[:2], -1)
    total: Array | float = 0.0
    for each in itertools.product(*taps):
        cell = np.ravel_multi_index([index for index, _ in each], sizes)
        weight = math.prod((weight for _, weight in each), start=1.0)
        read = np.take_along_axis(flat, cell.reshape(cell.shape[0], 1, -1), axis=2)
        total = total + read.reshape(*x.shape[:2], *cell.shape[1:]) * np.expand_dims(weight, 1)
    return np.asarray(total)
