"""Operators that move, pick, count or convert elements; none of them rounds, but quantization, which is meant to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.runtime.float64.elementwise import axes_of
from normdeploy.runtime.float64.step import Array, Step, wide

_REAL = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Types whose rounding float64 leaves out."""


def _cast(step: Step, x: Array) -> Array:
    return convert(x, ir.DataType(step.attributes["to"]))


def _cast_like(step: Step, x: Array, like: Array) -> Array:
    del step
    return np.asarray(x.astype(like.dtype))


def convert(x: Array, dtype: ir.DataType) -> Array:
    """Return ``x`` as ``dtype``, as float64 where that is a real type. Raises TypeError for text and 8-bit floats."""
    if dtype == ir.DataType.STRING or x.dtype.kind in "OUS":
        raise TypeError("text is not converted")
    target = dtype.numpy()
    if target.name in _REAL:
        return x.astype(np.float64)
    if target.name.startswith("float"):
        raise TypeError(f"{target.name} has no float64")
    if target.kind in "iu" and x.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            return np.asarray(np.trunc(x)).astype(target)
    return np.asarray(x.astype(np.complex128 if target.kind == "c" else target))


def _constant(step: Step) -> Any:
    name, value = next(iter(step.attributes.items()))
    if name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return np.asarray(value, np.float64) if name in ("value_float", "value_floats") else value


def _constant_of_shape(step: Step, shape: Array) -> Array:
    value = np.asarray(step.attribute("value", np.zeros(1))).reshape(-1)
    return np.full(tuple(shape.tolist()), value[0], value.dtype)


def _range(step: Step, start: Array, limit: Array, delta: Array) -> Array:
    """Return start + i * delta, as the specification counts it."""
    del step
    begin, end, by = (item.reshape(()) for item in (start, limit, delta))
    number = max(math.ceil((end - begin) / by), 0)
    return np.asarray(begin + np.arange(number) * by).astype(begin.dtype)


def _shape(step: Step, x: Array) -> Array:
    return np.array(np.shape(x)[slice(step.attribute("start", 0), step.attribute("end", None))], np.int64)


def _reshape(step: Step, x: Array, shape: Array | None = None) -> Array:
    wanted = step.attributes["shape"] if shape is None else shape.tolist()
    keep_zero = step.attribute("allowzero", 0)
    sizes = [x.shape[axis] if size == 0 and not keep_zero else int(size) for axis, size in enumerate(wanted)]
    return x.reshape(sizes)


def _flatten(step: Step, x: Array) -> Array:
    axis = step.attribute("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(step: Step, x: Array, axes: Array | None = None) -> Array:
    named = axes_of(step, axes)
    return np.squeeze(x, tuple(named) if named or axes is not None else None)


def _unsqueeze(step: Step, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, tuple(axes_of(step, axes)))


def _transpose(step: Step, x: Array) -> Array:
    return np.transpose(x, step.attribute("perm", None))


def _concat(step: Step, *xs: Array) -> Array:
    return np.concatenate(xs, step.attribute("axis", 1))


def _parts(step: Step, size: int, split: Array | None, count: int) -> list[int]:
    named = step.attribute("split", None) if split is None else np.asarray(split).reshape(-1).tolist()
    if named is not None:
        return [int(part) for part in named]
    part = -(-size // count)
    return [part] * (count - 1) + [size - part * (count - 1)]


def _split(step: Step, x: Array, split: Array | None = None) -> tuple[Array, ...]:
    axis = step.attribute("axis", 0)
    parts = _parts(step, x.shape[axis], split, step.attribute("num_outputs", step.outputs))
    return tuple(np.split(x, np.cumsum(parts)[:-1].tolist(), axis))


def _slice(step: Step, x: Array, *inputs: Array | None) -> Array:
    starts, ends, axes, steps = (*inputs, None, None, None, None)[:4]
    begins = step.attributes["starts"] if starts is None else starts.tolist()
    limits = step.attributes["ends"] if ends is None else ends.tolist()
    named = step.attribute("axes", None) if axes is None else axes.tolist()
    strides = [1] * len(begins) if steps is None else steps.tolist()
    cells = [slice(None)] * x.ndim
    for axis, begin, end, by in zip(named or range(len(begins)), begins, limits, strides, strict=True):
        cells[axis] = _cells(int(begin), int(end), int(by), x.shape[axis])
    return x[tuple(cells)]


def _cells(begin: int, end: int, by: int, size: int) -> slice:
    """Return the slice of the specification, whose ends are clamped before anything is counted."""
    begin, end = (place + size if place < 0 else place for place in (begin, end))
    if by > 0:
        return slice(min(max(begin, 0), size), min(max(end, 0), size), by)
    begin, end = min(max(begin, 0), size - 1), min(max(end, -1), size - 1)
    return slice(begin, None if end == -1 else end, by)


def _gather(step: Step, x: Array, indices: Array) -> Array:
    return np.take(x, indices, axis=step.attribute("axis", 0))


def _gather_elements(step: Step, x: Array, indices: Array) -> Array:
    axis = step.attribute("axis", 0)
    cells: list[Any] = list(np.indices(indices.shape, sparse=True))
    cells[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return np.asarray(x[tuple(cells)])


def _gather_nd(step: Step, x: Array, indices: Array) -> Array:
    batch = step.attribute("batch_dims", 0)
    leading: tuple[Any, ...] = np.indices(indices.shape[:batch], sparse=True)
    rest = indices.ndim - 1 - batch
    cells = [axis.reshape(*axis.shape, *[1] * rest) for axis in leading]
    return np.asarray(x[(*cells, *np.moveaxis(indices, -1, 0))])


_COMBINE: dict[str, Callable[..., Any]] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(x: Array, cells: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    result = x.copy()
    if reduction == "none":
        result[cells] = updates
    else:
        _COMBINE[reduction].at(result, cells, updates)  # type: ignore[attr-defined]  # a ufunc
    return result


def _scatter_nd(step: Step, x: Array, indices: Array, updates: Array) -> Array:
    return _scatter(x, tuple(np.moveaxis(indices, -1, 0)), updates, step.attribute("reduction", "none"))


def _scatter_elements(step: Step, x: Array, indices: Array, updates: Array) -> Array:
    axis = step.attribute("axis", 0)
    cells: list[Any] = list(np.indices(indices.shape, sparse=True))
    cells[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return _scatter(x, tuple(np.broadcast_arrays(*cells)), updates, step.attribute("reduction", "none"))


def _expand(step: Step, x: Array, shape: Array) -> Array:
    del step
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _tile(step: Step, x: Array, repeats: Array) -> Array:
    del step
    return np.tile(x, repeats.tolist())


def _depth_to_space(step: Step, x: Array) -> Array:
    n, c, h, w = x.shape
    b = step.attributes["blocksize"]
    if step.attribute("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(step: Step, x: Array) -> Array:
    n, c, h, w = x.shape
    b = step.attributes["blocksize"]
    order = (0, 3, 5, 1, 2, 4) if step.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(order)
    return y.reshape(n, c * b * b, h // b, w // b)


def _non_zero(step: Step, x: Array) -> Array:
    del step
    return np.array(np.nonzero(np.atleast_1d(x)), np.int64)[: max(x.ndim, 1)]


def _trilu(step: Step, x: Array, k: Array | None = None) -> Array:
    offset = 0 if k is None else int(np.asarray(k).reshape(()))
    return np.triu(x, offset) if step.attribute("upper", 1) else np.tril(x, offset)


def _eye_like(step: Step, x: Array) -> Array:
    number = step.attribute("dtype", None)
    eye = np.eye(x.shape[0], x.shape[1], k=step.attribute("k", 0))
    return convert(eye, ir.DataType(number)) if number is not None else eye.astype(x.dtype)


def _one_hot(step: Step, indices: Array, depth: Array, values: Array) -> Array:
    count, axis = int(np.asarray(depth).reshape(-1)[0]), step.attribute("axis", -1)
    place = np.mod(np.where((indices < -count) | (indices >= count), -count - 1, indices), count).astype(np.int64)
    outside = (indices < -count) | (indices >= count)
    hot: Array = np.expand_dims(place, axis) == _along(np.arange(count), axis, indices.ndim + 1)
    hot &= ~np.expand_dims(outside, axis)
    return np.asarray(np.where(hot, values[1], values[0]))


def _along(values: Array, axis: int, ndim: int) -> Array:
    """Return the vector ``values`` shaped to lie along ``axis``; a scalar or an array of ``ndim`` axes as it is."""
    if values.ndim != 1:
        return values
    return values.reshape([-1 if index == axis % ndim else 1 for index in range(ndim)])


# -- quantization: a rounding that the model itself asks for ------------------------------------

_QUANTIZED = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_QUANTIZED |= {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3), "int32": (-(2**31), 2**31 - 1)}


def _block(step: Step, values: Array, shape: Sequence[int]) -> Array:
    """Return scales or zero points, one a tensor, an index of an axis, or a block, as they meet data of ``shape``."""
    axis, size = step.attribute("axis", 1), step.attribute("block_size", 0)
    if not size:
        values = values.reshape(()) if values.size == 1 and values.ndim < 2 else values
        return _along(values, axis, len(shape))
    return np.repeat(values, size, axis=axis).take(range(shape[axis]), axis=axis)


def _quantize(step: Step, x: Array, scale: Array, zero: Array | None = None) -> Array:
    number = step.attribute("output_dtype", 0)
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    dtype = ir.DataType(number).numpy() if number and zero is None else dtype
    if dtype.name == "float8_e4m3fn" and not (zero is not None and zero.any()) and step.attribute("saturate", 1):
        return np.asarray(np.clip(x / _block(step, scale, x.shape), -448, 448).astype(dtype))
    if dtype.name not in _QUANTIZED:
        raise TypeError(f"{dtype.name} has no float64")
    low, high = _QUANTIZED[dtype.name]
    shift = 0 if zero is None else _block(step, zero.astype(np.int64), x.shape)
    codes = np.clip(np.rint(x / _block(step, scale, x.shape)) + shift, low, high)
    return np.asarray(codes).astype(np.int8 if dtype.kind == "V" else dtype)


def _dequantize(step: Step, codes: Array, scale: Array, zero: Array | None = None) -> Array:
    shifted = codes.astype(np.float64)
    if zero is not None:
        shifted = shifted - _block(step, zero.astype(np.float64), codes.shape)
    return np.asarray(shifted * _block(step, wide(scale), codes.shape))


# -- sequences and optional values -------------------------------------------------------------


def _place(position: Array | None, length: int) -> int:
    index = length if position is None else int(np.asarray(position).reshape(()))
    return index + length if index < 0 else index


def _sequence_insert(step: Step, items: list[Any], item: Any, position: Array | None = None) -> list[Any]:
    del step
    index = _place(position, len(items))
    return [*items[:index], item, *items[index:]]


def _sequence_erase(step: Step, items: list[Any], position: Array | None = None) -> list[Any]:
    del step
    index = len(items) - 1 if position is None else _place(position, len(items))
    return [*items[:index], *items[index + 1 :]]


def _concat_sequence(step: Step, items: list[Array]) -> Array:
    join = np.stack if step.attribute("new_axis", 0) else np.concatenate
    return np.asarray(join(items, axis=step.attributes["axis"]))


def _split_to_sequence(step: Step, x: Array, split: Array | None = None) -> list[Array]:
    axis = step.attribute("axis", 0)
    size = x.shape[axis]
    if split is None:
        parts = np.split(x, size, axis)
        return parts if step.attribute("keepdims", 1) else [np.squeeze(part, axis) for part in parts]
    ends = np.cumsum(split) if split.ndim else np.arange(int(split), size + int(split), int(split))
    return np.split(x, [int(end) for end in ends[:-1]], axis)


INDEXING: dict[str, Callable[..., Any]] = {
    "Identity": lambda step, x: x,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Shape": _shape,
    "Size": lambda step, x: np.asarray(np.size(x), np.int64),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "NonZero": _non_zero,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "EyeLike": _eye_like,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "SequenceConstruct": lambda step, *items: list(items),
    "SequenceEmpty": lambda step: [],
    "SequenceAt": lambda step, items, position: items[int(np.asarray(position).reshape(()))],
    "SequenceLength": lambda step, items: np.asarray(len(items), np.int64),
    "SequenceInsert": _sequence_insert,
    "SequenceErase": _sequence_erase,
    "ConcatFromSequence": _concat_sequence,
    "SplitToSequence": _split_to_sequence,
    "Optional": lambda step, item=None: item,
    "OptionalGetElement": lambda step, item: item,
    "OptionalHasElement": lambda step, item=None: np.asarray(item is not None),
}
