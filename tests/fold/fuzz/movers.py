"""Draws operators that move, average, select or bend what they read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from graphs import Draw, Graph, Shape, Unfit, Value, broadcast, each
from onnx import TensorProto
from reals import pads_of, with_ceil
from weighted import convolved, is_image, need, window

# -- the same to every element ---------------------------------------------------------------------


def unchanged(g: Graph) -> Value:
    """Identity or inference Dropout."""
    v = g.pick()
    if g.d.odds(50):
        return g.emit("Identity", [v], v.shapes)
    attributes = {"ratio": 0.25} if g.opset < 12 and g.d.odds(50) else {}
    return g.emit("Dropout", [v], v.shapes, **attributes)


def cast(g: Graph) -> Value:
    """To the same or to another float type."""
    v = g.pick()
    kinds = [v.dtype, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16]
    kind = g.d.one(kinds + [TensorProto.BFLOAT16] * (g.opset >= 22))
    return g.emit("Cast", [v], v.shapes, dtypes=[kind], to=int(kind))


# -- axes are renamed ------------------------------------------------------------------------------


def reshape(g: Graph) -> Value:
    """Neighbouring axes merged, one split, ones put in or left out."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    kind = d.int(0, 3)
    if kind == 0 and v.rank >= 2:
        low = d.int(0, v.rank - 2)
        high = d.int(low + 2, v.rank)
        shapes = each(lambda s: (*s[:low], math.prod(s[low:high]), *s[high:]), v)
    elif kind == 1:
        axis = d.one([i for i in range(v.rank) if v.fixed(i)] or [0])
        factors = [n for n in range(1, 5) if (v.fixed(axis) or 1) % n == 0]
        few = d.one(factors)
        shapes = each(lambda s: (*s[:axis], few, s[axis] // few, *s[axis + 1 :]), v)
    elif kind == 2 or not v.is_fixed:
        axis = d.int(0, v.rank)
        shapes = each(lambda s: (*s[:axis], 1, *s[axis:]), v)
    else:
        shapes = each(lambda s: _shuffled(d, s), v)
        shapes = (shapes[0], shapes[0])
    return g.emit("Reshape", [v, g.ints(_target(d, v, *shapes))], shapes)


def _shuffled(d: Draw, shape: Shape) -> Shape:
    """Any factors of the number of elements."""
    rest, sizes = math.prod(shape), []
    for _ in range(d.int(0, 3)):
        sizes.append(d.one([n for n in range(1, 7) if rest % n == 0]))
        rest //= sizes[-1]
    return (*sizes, rest)


def _target(d: Draw, v: Value, here: Shape, there: Shape) -> list[int]:
    """The constant that means ``here`` at one setting and ``there`` at the other, with 0 and -1."""
    target, guessed = [], False
    for axis, size in enumerate(here):
        copied = axis < v.rank and all(s[axis] == t[axis] for s, t in zip(v.shapes, (here, there), strict=True))
        if size == there[axis] and not (copied and d.odds(20)):
            target.append(size)
        elif copied and (guessed or d.odds(50)):
            target.append(0)
        else:
            need(not guessed)
            target, guessed = [*target, -1], True
    if not guessed and d.odds(20):
        target[d.int(0, len(target) - 1)] = -1
    return target


def flatten(g: Graph) -> Value:
    """Flatten at any axis."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    axis = d.one([1, v.rank, 0, v.rank - 1])
    told = axis - v.rank if g.opset >= 11 and axis < v.rank and d.odds(30) else axis
    return g.emit("Flatten", [v], each(lambda s: (math.prod(s[:axis]), math.prod(s[axis:])), v), axis=told)


def unsqueeze(g: Graph) -> Value:
    """One or two new axes, now and then counted from the back."""
    d, v = g.d, g.pick()
    axes = sorted({d.int(0, v.rank) for _ in range(d.int(1, 2))})
    rank = v.rank + len(axes)
    need(rank <= 6)
    shapes = each(lambda s: np.expand_dims(np.empty(s), axes).shape, v)
    inputs: list[Any] = [v]
    return g.emit("Unsqueeze", inputs, shapes, **g.parameter(inputs, "axes", _signed(g, axes, rank), 13))


def squeeze(g: Graph) -> Value:
    """Some axes of size 1, or all of them unnamed."""
    d, v = g.d, g.pick(lambda v: any(v.fixed(axis) == 1 for axis in range(v.rank)))
    ones = [axis for axis in range(v.rank) if v.fixed(axis) == 1]
    if d.odds(20) and all(s.count(1) == len(ones) for s in v.shapes):
        return g.emit("Squeeze", [v], each(lambda s: [n for n in s if n != 1], v))
    axes = ones if d.odds(50) else [d.one(ones)]
    inputs: list[Any] = [v]
    told = g.parameter(inputs, "axes", _signed(g, axes, v.rank), 13)
    return g.emit("Squeeze", inputs, each(lambda s: np.squeeze(np.empty(s), tuple(axes)).shape, v), **told)


def _signed(g: Graph, axes: list[int], rank: int) -> list[int]:
    return [axis - rank for axis in axes] if g.opset >= 11 and g.d.odds(25) else axes


def transpose(g: Graph) -> Value:
    """Any permutation."""
    d, v = g.d, g.pick(lambda v: v.rank >= 2)
    perm = list(range(v.rank))
    for i in range(v.rank - 1):
        j = d.int(i, v.rank - 1)
        perm[i], perm[j] = perm[j], perm[i]
    if d.odds(10):
        return g.emit("Transpose", [v], each(lambda s: s[::-1], v))
    return g.emit("Transpose", [v], each(lambda s: [s[i] for i in perm], v), perm=perm)


def expand(g: Graph) -> Value:
    """Axes of size 1, or new ones, repeated."""
    need(g.opset >= 8)
    d, v = g.d, g.pick()
    sizes = [d.int(2, 3) if v.fixed(axis) == 1 and d.odds(70) else 1 for axis in range(v.rank)]
    sizes = [2, *sizes] if d.odds(20) else sizes
    return g.emit("Expand", [v, g.ints(sizes)], each(lambda s: np.broadcast_shapes(s, tuple(sizes)), v))


def tile(g: Graph) -> Value:
    """Every axis once or twice."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    repeats = d.ints(v.rank, 1, 2)
    return g.emit("Tile", [v, g.ints(repeats)], each(lambda s: [n * r for n, r in zip(s, repeats, strict=True)], v))


# -- elements are picked or laid side by side ------------------------------------------------------


def cut(g: Graph) -> Value:
    """Slice over one or two axes, with steps and negative numbers."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    axes = sorted({d.int(0, v.rank - 1) for _ in range(d.int(1, 2))})
    starts, ends, steps = [], [], []
    for _ in axes:
        back = g.opset >= 10 and d.odds(20)
        steps.append(-d.int(1, 2) if back else d.int(1, 2) if g.opset >= 10 and d.odds(25) else 1)
        starts.append(d.one([-1, 3, 100]) if back else d.one([0, 1, -2]))
        ends.append(d.one([0, -100, -(2**31)]) if back else d.one([100, 3, -1, 2**31 - 1]))

    def sliced(s: Shape) -> Shape:
        pieces = [slice(None)] * len(s)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            last = None if step < 0 and end < -s[axis] else end
            pieces[axis] = slice(start, last, step)
        return np.empty(s)[tuple(pieces)].shape

    shapes = each(sliced, v)
    plain = axes == list(range(len(axes))) and d.odds(20)
    if g.opset < 10:
        return g.emit("Slice", [v], shapes, starts=starts, ends=ends, axes=None if plain else axes)
    inputs: list[Any] = [v, g.ints(starts), g.ints(ends), None if plain else g.ints(axes)]
    if any(step != 1 for step in steps):
        inputs.append(g.ints(steps))
    return g.emit("Slice", inputs, shapes)


def split(g: Graph) -> Value:
    """Two or three parts, equal or not; sometimes one is not read."""
    d = g.d
    v = g.pick(lambda v: any((v.fixed(axis) or 0) > 1 for axis in range(v.rank)))
    axis = d.one([axis for axis in range(v.rank) if (v.fixed(axis) or 0) > 1])
    size = v.shapes[0][axis]
    first = d.int(1, size - 1)
    parts = [first, size - first]
    if parts[1] > 1 and d.odds(20):
        parts = [first, 1, size - first - 1]
    shapes = [each(lambda s, n=n: (*s[:axis], n, *s[axis + 1 :]), v) for n in parts]
    inputs: list[Any] = [v]
    if len(set(parts)) == 1 and g.opset >= 18 and d.odds(50):
        return g.emit("Split", inputs, *shapes, axis=axis, num_outputs=len(parts))
    told = g.parameter(inputs, "split", parts if len(set(parts)) > 1 or g.opset >= 13 else None, 13)
    return g.emit("Split", inputs, *shapes, axis=axis, **told)


def concat(g: Graph) -> Value:
    """A value with another one, itself or a constant beside it."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    axis = d.int(0, v.rank - 1) if d.odds(50) else min(1, v.rank - 1)
    fits = [u for u in g.values if u.dtype == v.dtype and u.rank == v.rank and beside(u, v, axis)]
    others = [d.one(fits)] if fits else []
    if all(v.fixed(i) for i in range(v.rank) if i != axis) and d.odds(30):
        others.append(g.weight(tuple(2 if i == axis else n for i, n in enumerate(v.shapes[0])), v.dtype))
    parts = [v, *others] if d.odds(50) else [*others, v]
    return side_by_side(g, parts, axis)


def side_by_side(g: Graph, parts: list[Value], axis: int) -> Value:
    """Concat."""
    shapes = each(lambda *s: (*s[0][:axis], sum(n[axis] for n in s), *s[0][axis + 1 :]), *parts)
    told = axis - parts[0].rank if g.opset >= 11 and g.d.odds(25) else axis
    return g.emit("Concat", parts, shapes, axis=told)


def beside(u: Value, v: Value, axis: int) -> bool:
    """Whether they differ along ``axis`` alone."""
    return all(a[:axis] == b[:axis] and a[axis + 1 :] == b[axis + 1 :] for a, b in zip(u.shapes, v.shapes, strict=True))


def gather(g: Graph) -> Value:
    """Constant indices: a scalar, a vector with repetitions, a matrix; now and then negative."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    axis = d.int(0, v.rank - 1)
    size = min(s[axis] for s in v.shapes)
    shape = d.one([(3,), (), (1,), (2, 2)])
    low = -size if g.opset >= 11 and d.odds(30) else 0
    index = np.array([d.int(low, size - 1) for _ in range(math.prod(shape))], np.int64).reshape(shape)
    if d.odds(25) and v.fixed(axis):
        index = g.rng().permutation(size)
    shapes = each(lambda s: (*s[:axis], *index.shape, *s[axis + 1 :]), v)
    return g.emit("Gather", [v, g.store(index, "i")], shapes, axis=axis or None)


def depth_to_space(g: Graph) -> Value:
    """Blocks of 2, in both orders; a 1x1 convolution makes the channels where they do not fit (pixel shuffle)."""
    v = g.pick(lambda v: v.rank == 4 and v.fixed(1))
    if v.shapes[0][1] % 4 or g.d.odds(30):
        v = convolved(g, v, [1, 1], {}, groups=1, outs=4 * g.d.int(1, 2))
    mode = g.d.one(["DCR", "CRD", None]) if g.opset >= 11 else None
    shapes = each(lambda s: (s[0], s[1] // 4, s[2] * 2, s[3] * 2), v)
    return g.emit("DepthToSpace", [v], shapes, blocksize=2, mode=mode)


def space_to_depth(g: Graph) -> Value:
    """Blocks of 2; where the cells are odd, the last ones are there twice."""
    v = g.pick(lambda v: v.rank == 4 and v.fixed(1) and all((a - b) % 2 == 0 for a, b in zip(*v.shapes, strict=True)))
    odd = [size % 2 for size in v.shapes[0][2:]]
    if any(odd):
        inputs: list[Any] = [v]
        pads = g.parameter(inputs, "pads", [0] * 6 + odd, 11)
        shapes = each(lambda s: (*s[:2], s[2] + odd[0], s[3] + odd[1]), v)
        v = g.emit("Pad", inputs, shapes, mode="edge", **pads)
    return g.emit("SpaceToDepth", [v], each(lambda s: (s[0], s[1] * 4, s[2] // 2, s[3] // 2), v), blocksize=2)


# -- averages and maxima ---------------------------------------------------------------------------


def pool(g: Graph) -> Value:
    """AveragePool and MaxPool with pads, ceil_mode, counted pads, indices."""
    d, v = g.d, g.pick(lambda v: 3 <= v.rank <= 5)
    kernel = d.ints(v.rank - 2, 1, 3)
    average = d.odds(50)
    found = window(d, kernel)
    if g.opset < (19 if average else 10):
        found.pop("dilations", None)
    if "pads" in found:
        found["pads"] = [min(p, k - 1) for p, k in zip(found["pads"], kernel * 2, strict=True)]
    if g.opset >= 10 and "auto_pad" not in found and d.odds(25):
        found["ceil_mode"] = 1
    if average and d.odds(40):
        found["count_include_pad"] = 1
        if "auto_pad" not in found:
            found["pads"] = [min(1, k - 1) for k in kernel * 2]
    shapes = each(lambda s: (*s[:2], *_pooled(s, kernel, found)), v)
    if average:
        return g.emit("AveragePool", [v], shapes, kernel_shape=kernel, **found)
    if g.opset >= 8 and d.odds(10):
        kinds = [v.dtype, TensorProto.INT64]
        return g.emit("MaxPool", [v], shapes, shapes, dtypes=kinds, kernel_shape=kernel, **found)
    return g.emit("MaxPool", [v], shapes, kernel_shape=kernel, **found)


def _pooled(shape: Shape, kernel: list[int], attributes: dict[str, Any]) -> list[int]:
    strides = attributes.get("strides", [1] * len(kernel))
    spans = [n * (k - 1) + 1 for n, k in zip(attributes.get("dilations", [1] * len(kernel)), kernel, strict=True)]
    pads = pads_of(shape[2:], spans, strides, attributes.get("auto_pad"), attributes.get("pads"))
    if attributes.get("ceil_mode"):
        plain = [
            -(-(a + n + b - span) // s) for (a, b), n, span, s in zip(pads, shape[2:], spans, strides, strict=True)
        ]
        pads = with_ceil(shape[2:], spans, strides, pads)
        # onnx's shape inference counts windows that start behind the last cell, which the specification excludes.
        need(plain == [(a + n + b - k) // s for (a, b), n, k, s in zip(pads, shape[2:], spans, strides, strict=True)])
    # A window of nothing but padding has no largest cell, and no average.
    need(all(a < span and b < span for (a, b), span in zip(pads, spans, strict=True)))
    need(all(n >= span for n, span in zip(shape[2:], spans, strict=True)))
    return [(a + n + b - span) // s + 1 for (a, b), n, span, s in zip(pads, shape[2:], spans, strides, strict=True)]


def global_pool(g: Graph) -> Value:
    """One cell a channel."""
    v = g.pick(lambda v: v.rank >= 3)
    op = g.d.one(["GlobalAveragePool", "GlobalMaxPool"])
    return g.emit(op, [v], each(lambda s: (*s[:2], *[1] * (len(s) - 2)), v))


def reduce_mean(g: Graph) -> Value:
    """A mean over any axes, kept or not."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    op = "ReduceMean" if d.odds(85) else "ReduceMax" if g.opset >= 11 else "ReduceMean"
    axes = sorted({d.int(0, v.rank - 1) for _ in range(d.int(1, 2))})
    keep = d.odds(50)
    told = None if d.odds(10) else _signed(g, axes, v.rank)
    gone = range(v.rank) if told is None else axes
    shapes = each(lambda s: [1 if i in gone else n for i, n in enumerate(s) if keep or i not in gone], v)
    inputs: list[Any] = [v]
    extra = g.parameter(inputs, "axes", told, 18)
    return g.emit(op, inputs, shapes, keepdims=None if keep else 0, **extra)


def resize(g: Graph) -> Value:
    """Resize in all its modes, Upsample before it."""
    d, v = g.d, g.pick(lambda v: is_image(v) and v.rank == 4)
    scales = [1.0, 1.0, *[d.one([2.0, 1.0, 0.5, 1.5, 1.2, 3.0]) for _ in range(2)]]
    if d.odds(5):
        scales[1] = 2.0
    shapes = each(lambda s: [math.floor(n * f) for n, f in zip(s, scales, strict=True)], v)
    if g.opset < 11:
        return _old_resize(g, v, scales, shapes)
    mode = d.one(["nearest", "linear", "cubic"])
    found: dict[str, Any] = {"mode": mode}
    found["coordinate_transformation_mode"] = d.one([None, "asymmetric", "align_corners", "pytorch_half_pixel"])
    if mode == "cubic" and d.odds(30):
        found["exclude_outside"] = 1
    if mode != "nearest" and g.opset >= 18 and min(scales) < 1 and d.odds(50):
        found["antialias"] = 1
        found["coordinate_transformation_mode"] = None
    empty = None if g.opset >= 13 else g.store(np.zeros(0, np.float32), "roi")
    if d.odds(50) and shapes[0] == shapes[1] and g.opset >= 13:
        return g.emit("Resize", [v, None, None, g.ints(shapes[0])], shapes, **found)
    return g.emit("Resize", [v, empty, g.store(np.array(scales, np.float32), "scales")], shapes, **found)


def _old_resize(g: Graph, v: Value, scales: list[float], shapes: Any) -> Value:
    need(min(scales) >= 1)
    mode = g.d.one(["nearest", "linear"])
    if g.opset < 9:
        return g.emit("Upsample", [v], shapes, mode=mode, scales=scales)
    op = "Upsample" if g.opset == 9 else "Resize"
    return g.emit(op, [v, g.store(np.array(scales, np.float32), "scales")], shapes, mode=mode)


def pad(g: Graph) -> Value:
    """Constants, reflections, edges, wraps, and cells cut off."""
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    mode = d.one(["constant", "reflect", "edge"] + ["wrap"] * (g.opset >= 19))
    axes = sorted({max(v.rank - 1 - d.int(0, 2), 0) for _ in range(2)})
    lows, highs = ([d.int(-1 if mode == "constant" and d.odds(20) else 0, 2) for _ in axes] for _ in range(2))
    small = min(s[axis] for s in v.shapes for axis in axes)
    need(mode == "constant" or max(*lows, *highs) < small)
    before, after = [0] * v.rank, [0] * v.rank
    for axis, low, high in zip(axes, lows, highs, strict=True):
        before[axis], after[axis] = low, high
    shapes = each(lambda s: [a + n + b for a, n, b in zip(before, s, after, strict=True)], v)
    number = d.one([None, 0.0, 1.5]) if mode == "constant" else None
    told = None if mode == "constant" and d.odds(50) else mode
    if g.opset < 11:
        return g.emit("Pad", [v], shapes, pads=before + after, value=number, mode=told)
    value = None if number is None else g.scalar(number, v.dtype)
    if g.opset >= 18 and d.odds(30):
        return g.emit("Pad", [v, g.ints(lows + highs), value, g.ints(axes)], shapes, mode=told)
    return g.emit("Pad", [v, g.ints(before + after), value], shapes, mode=told)


# -- sums of branches ------------------------------------------------------------------------------


def total(g: Graph) -> Value:
    """Two or three values, one perhaps broadcast."""
    d, v = g.d, g.pick()
    fits = [u for u in g.values if u.dtype == v.dtype and adds(u, v)]
    others = [d.one(fits) for _ in range(d.int(1, 2))]
    op = d.one(["Add", "Sub", "Sum"])
    if op == "Sum":
        need(g.opset >= 8 or all(u.shapes == v.shapes for u in others))
        return g.emit("Sum", [v, *others], broadcast(v, *others))
    pair = [v, others[0]] if d.odds(50) else [others[0], v]
    return g.emit(op, pair, broadcast(*pair))


def adds(u: Value, v: Value) -> bool:
    """Whether they broadcast."""
    try:
        broadcast(u, v)
    except Unfit:
        return False
    return True


# -- what no map passes ----------------------------------------------------------------------------


def kinked(g: Graph) -> Value:
    """Relu, LeakyRelu or PRelu, which a positive scale passes."""
    v = g.pick()
    if g.d.odds(25):
        return prelu(g, v)
    slope = g.d.one([None, 0.25, 0.01])
    return g.emit("LeakyRelu", [v], v.shapes, alpha=slope) if g.d.odds(40) else g.emit("Relu", [v], v.shapes)


def prelu(g: Graph, v: Value) -> Value:
    """PRelu with one slope, a slope for each channel or element, or another value for a slope."""
    need(v.rank)
    channels = (v.fixed(1) or 1, *[1] * (v.rank - 2)) if v.rank > 1 else (1,)
    others = [u for u in g.values if u.dtype == v.dtype and adds(u, v) and broadcast(u, v) == v.shapes]
    if others and g.d.odds(15):
        slope = g.d.one(others)
    else:
        slope = g.weight(g.d.one([channels, (1,), v.shapes[0] if v.is_fixed else channels, (1, *channels)]), v.dtype)
    need(broadcast(v, slope) == v.shapes)
    return g.emit("PRelu", [v, slope], v.shapes)


def bent(g: Graph) -> Value:
    """What has another kink, or none."""
    d, v = g.d, g.pick()
    op = d.one(["Clip", "Sigmoid", "Tanh", "Softmax"])
    if op == "Clip":
        if g.opset < 11:
            return g.emit(op, [v], v.shapes, min=0.0, max=6.0)
        return g.emit(op, [v, g.scalar(0.0, v.dtype), g.scalar(6.0, v.dtype)], v.shapes)
    need(op != "Softmax" or v.rank >= 2)
    return g.emit(op, [v], v.shapes, **({"axis": 1} if op == "Softmax" else {}))


def gate(g: Graph) -> Value:
    """Two values multiplied, or divided by something positive."""
    d, v = g.d, g.pick()
    other = d.one([u for u in g.values if u.dtype == v.dtype and adds(u, v)])
    if d.odds(20):
        bounded = g.emit("Sigmoid", [other], other.shapes)
        return g.emit("Div", [v, bounded], broadcast(v, bounded))
    return g.emit("Mul", [v, other], broadcast(v, other))


def normalized(g: Graph) -> Value:
    """A value beside what is measured of it, expanded to its sizes: ``x / norm.expand_as(x)``, or Mul, Add, Sub."""
    need(g.opset >= 8)
    d, v = g.d, g.pick(lambda v: v.rank >= 1)
    first = d.int(0, v.rank - 1)
    axes = list(range(first, v.rank)) if d.odds(70) else [first]
    keep, shapes = d.odds(50), each(lambda s: [1 if i in axes else n for i, n in enumerate(s)], v)
    inputs: list[Any] = [v]
    told = g.parameter(inputs, "axes", _signed(g, axes, v.rank), 18)
    dropped = shapes if keep else each(lambda s: [n for i, n in enumerate(s) if i not in axes], v)
    small = g.emit("ReduceMean", inputs, dropped, keepdims=None if keep else 0, **told)
    if not keep:
        inputs = [small]
        back = g.parameter(inputs, "axes", _signed(g, axes, v.rank), 13)
        small = g.emit("Unsqueeze", inputs, shapes, **back)
    bounded = g.emit("Sigmoid", [small], shapes)
    sizes = g.ints(v.shapes[0])
    if not v.is_fixed:
        sizes = g.emit("Shape", [v], each(lambda s: [len(s)], v), dtypes=[TensorProto.INT64])
        g.exposed.remove(sizes)
    wide = g.emit("Expand", [bounded, sizes], v.shapes)
    op, other = d.one(["Div", "Mul", "Add", "Sub"]), d.one([v, v, wide])
    return g.emit(op, [other, wide] if op == "Div" or d.odds(50) else [wide, other], v.shapes)


def quantized(g: Graph) -> Value:
    """QuantizeLinear and DequantizeLinear between."""
    v = g.pick(lambda v: v.dtype == TensorProto.FLOAT and v.rank >= 1)
    need(g.opset >= 10)
    scale, zero = g.scalar(0.0371, v.dtype), g.store(np.array(3, np.int8), "zero")
    codes = g.emit("QuantizeLinear", [v, scale, zero], v.shapes, dtypes=[TensorProto.INT8])
    g.exposed.remove(codes)
    return g.emit("DequantizeLinear", [codes, scale, zero], v.shapes, dtypes=[v.dtype])


def statistics_of_data(g: Graph) -> Value:
    """Norms that divide by what they measure, often with a scale or shift behind them."""
    kinds = {"InstanceNormalization": 7, "LayerNormalization": 17, "RMSNormalization": 23, "GroupNormalization": 21}
    op = g.d.one([name for name, since in kinds.items() if g.opset >= since])
    if op in ("InstanceNormalization", "GroupNormalization"):
        v = _norm_of_channels(g, op)
        tail: Shape = (v.shapes[0][1], *[1] * (v.rank - 2))
    else:
        v = _norm_of_tokens(g, op)
        tail = v.shapes[0][-1:]
    if g.d.odds(50):
        v = g.emit(g.d.one(["Mul", "Add"]), [v, g.weight(tail, v.dtype)], v.shapes)
    return v


def _norm_of_channels(g: Graph, op: str) -> Value:
    v = g.pick(lambda v: v.rank >= 3 and v.fixed(1) and all(math.prod(s[2:]) > 2 for s in v.shapes))
    size, extra = v.shapes[0][1], {}
    if op == "GroupNormalization":
        extra["num_groups"] = g.d.one([n for n in (1, 2, 3) if size % n == 0])
    return g.emit(op, [v, g.weight((size,), v.dtype), g.weight((size,), v.dtype)], v.shapes, epsilon=1e-2, **extra)


def _norm_of_tokens(g: Graph, op: str) -> Value:
    v = g.pick(lambda v: v.rank >= 2 and (v.fixed(v.rank - 1) or 0) > 1)
    size = v.shapes[0][-1:]
    shift = [g.weight(size, v.dtype)] if op == "LayerNormalization" and g.d.odds(70) else []
    return g.emit(op, [v, g.weight(size, v.dtype), *shift], v.shapes, epsilon=1e-2)


def spelled_layer_norm(g: Graph) -> Value:
    """LayerNorm as exporters spelled it before there was an operator, feeding a Linear."""
    v = g.pick(lambda v: v.rank >= 2 and (v.fixed(v.rank - 1) or 0) > 1)
    size = v.shapes[0][-1:]
    centred = g.emit("Sub", [v, _mean(g, v)], v.shapes)
    squares = g.emit("Mul", [centred, centred], v.shapes)
    variance = _mean(g, squares)
    shifted = g.emit("Add", [variance, g.scalar(0.0625, v.dtype)], variance.shapes)
    root = g.emit("Sqrt", [shifted], shifted.shapes)
    result = g.emit("Div", [centred, root], v.shapes)
    for op in ("Mul", "Add"):
        if g.d.odds(80):
            result = g.emit(op, [result, g.weight(size, v.dtype)], v.shapes)
    if g.d.odds(50):
        result = g.emit("MatMul", [result, g.weight((*size, 3), v.dtype)], each(lambda s: (*s[:-1], 3), v))
    return result


def _mean(g: Graph, v: Value) -> Value:
    inputs: list[Any] = [v]
    told = g.parameter(inputs, "axes", [-1 if g.opset >= 11 else v.rank - 1], 18)
    return g.emit("ReduceMean", inputs, each(lambda s: (*s[:-1], 1), v), **told)
