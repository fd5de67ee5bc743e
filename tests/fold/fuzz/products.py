"""Draws Einsum, Attention, MultiHeadAttention, GridSample and DeformConv."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from graphs import Graph, Value, each, numpy_dtype
from onnx import TensorProto
from weighted import is_image, matrix, need


def einsum(g: Graph) -> Value:
    """One value by one weight, any letters summed, shared or kept, the result in any order."""
    d = g.d
    need(g.opset >= 12)
    v = g.pick(lambda v: 1 <= v.rank <= 4 and v.dtype != TensorProto.BFLOAT16)
    data = "abcd"[: v.rank]
    shared = [x for axis, x in enumerate(data) if v.fixed(axis) and d.odds(50)]
    new = "xy"[: d.int(0, 2)]
    weight = "".join(_shuffled(g, [*shared, *new]))
    need(weight)
    sizes = {x: v.shapes[0][i] for i, x in enumerate(data)} | {x: d.int(2, 4) for x in new}
    kept = [x for x in (*data, *new) if x not in shared or d.odds(40)]
    result = "".join(_shuffled(g, kept))
    w = matrix(g, tuple(sizes[x] for x in weight), v.dtype)

    def shape(s: tuple[int, ...]) -> list[int]:
        here = {**sizes, **dict(zip(data, s, strict=True))}
        return [here[x] for x in result]

    first = d.odds(50)
    terms, operands = (f"{data},{weight}", [v, w]) if first else (f"{weight},{data}", [w, v])
    return g.emit("Einsum", operands, each(shape, v), equation=f"{terms}->{result}")


def _shuffled(g: Graph, letters: list[str]) -> list[str]:
    return [letters[i] for i in g.rng().permutation(len(letters))]


def attention(g: Graph) -> Value:
    """Queries, keys and values projected from one value, or the value itself; heads, groups, masks."""
    d = g.d
    need(g.opset >= 23)
    v = g.pick(lambda v: v.rank == 3 and v.fixed(2))
    size, share = v.shapes[0][2], d.one([1, 2])
    keys, width, values = d.int(1, 2), d.int(1, 2), d.int(1, 3)
    sizes = (keys * share * width, keys * width, keys * values)
    q, k, u = (g.emit("MatMul", [v, matrix(g, (size, n), v.dtype)], each(lambda s, n=n: (*s[:2], n), v)) for n in sizes)
    if d.odds(40):
        u = g.emit(d.one(["Mul", "Add"]), [u, g.weight((sizes[2],), v.dtype)], u.shapes)
    if d.odds(40):
        q = g.emit("Mul", [q, g.scalar(d.one([0.5, 2.0, -1.0]), v.dtype)], q.shapes)
    inputs: list[Any] = [q, k, u]
    extra: dict[str, Any] = {"is_causal": 1} if d.odds(30) else {}
    if d.odds(30) and v.is_fixed:
        tokens = v.shapes[0][1]
        inputs.append(g.store(g.rng().random((tokens, tokens)) < 0.7, "mask"))
    extra["scale"] = d.one([None, 0.5])
    heads = {"q_num_heads": keys * share, "kv_num_heads": keys}
    return g.emit("Attention", inputs, each(lambda s: (*s[:2], keys * share * values), v), **heads, **extra)


def multi_head_attention(g: Graph) -> Value:
    """ONNX Runtime's operator: queries, keys and values projected, with a scale on some, with biases inside or not."""
    d = g.d
    v = g.pick(lambda v: v.rank == 3 and v.fixed(2) and v.dtype != TensorProto.BFLOAT16)
    size, heads, width, values = v.shapes[0][2], d.int(1, 2), d.int(1, 2), d.int(1, 3)
    sizes = (heads * width, heads * width, heads * values)
    parts = [g.emit("MatMul", [v, matrix(g, (size, n), v.dtype)], each(lambda s, n=n: (*s[:2], n), v)) for n in sizes]
    for index, part in enumerate(parts):
        if d.odds(40):
            constant = g.scalar(d.one([0.5, 2.0, -1.0]), v.dtype) if d.odds(40) else g.weight((sizes[index],), v.dtype)
            parts[index] = g.emit(d.one(["Mul", "Add"]), [part, constant], part.shapes)
    inputs: list[Any] = [*parts, g.weight((sum(sizes),), v.dtype)] if d.odds(40) else list(parts)
    g.domains.add("com.microsoft")
    extra = {"num_heads": heads, "scale": d.one([None, 0.5])}
    shapes = each(lambda s: (*s[:2], heads * values), v)
    y = g.emit("MultiHeadAttention", inputs, shapes, domain="com.microsoft", **extra)
    if not g.depth:
        g.declared.append(y)
    return g.emit("MatMul", [y, matrix(g, (heads * values, 3), v.dtype)], each(lambda s: (*s[:2], 3), y))


def grid_sample(g: Graph) -> Value:
    """An image, read at stored places, some of them outside."""
    d = g.d
    need(g.opset >= 16)
    v = g.pick(lambda v: is_image(v) and v.rank == 4 and v.fixed(0) and v.dtype != TensorProto.BFLOAT16)
    cells = d.ints(2, 2, 4)
    grid = g.store(
        np.asarray(g.rng().uniform(-1.5, 1.5, (v.shapes[0][0], *cells, 2))).astype(numpy_dtype(v.dtype)), "grid"
    )
    modes = ["linear", "nearest", "cubic"] if g.opset >= 20 else ["bilinear", "nearest", "bicubic"]
    told = {"mode": d.one(modes), "padding_mode": d.one(["border", "zeros", "reflection"])}
    shapes = each(lambda s: (*s[:2], *cells), v)
    return g.emit("GridSample", [v, grid], shapes, **told, align_corners=d.int(0, 1))


def deform_conv(g: Graph) -> Value:
    """A convolution whose taps are moved by stored offsets."""
    d = g.d
    need(g.opset >= 19)
    v = g.pick(lambda v: is_image(v) and v.rank == 4 and v.is_fixed and v.dtype != TensorProto.BFLOAT16)
    kernel, channels, outs = d.ints(2, 1, 2), v.shapes[0][1], d.int(1, 3)
    batch, _, *sizes = v.shapes[0]
    cells = [n - k + 1 for n, k in zip(sizes, kernel, strict=True)]
    need(min(cells) > 0)
    count = math.prod(kernel)
    offset = g.store(
        np.asarray(g.rng().standard_normal((batch, 2 * count, *cells))).astype(numpy_dtype(v.dtype)), "offset"
    )
    inputs: list[Any] = [v, matrix(g, (outs, channels, *kernel), v.dtype), offset]
    inputs.append(g.weight((outs,), v.dtype) if d.odds(50) else None)
    return g.emit("DeformConv", inputs, each(lambda s: (s[0], outs, *cells), v), kernel_shape=kernel)
