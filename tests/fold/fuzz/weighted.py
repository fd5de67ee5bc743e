"""Draws operators with weights, the sources of maps, and the shapes they take together in real networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from graphs import Draw, Graph, Shape, Unfit, Value, broadcast, each, numpy_dtype
from onnx import TensorProto
from reals import pads_of

# -- convolutions ----------------------------------------------------------------------------------


def is_image(v: Value) -> bool:
    """Whether a convolution can read ``v``."""
    return 3 <= v.rank <= 5 and v.fixed(1) is not None


def window(d: Draw, kernel: Sequence[int]) -> dict[str, Any]:
    """The attributes of a window, the defaults left out."""
    count = len(kernel)
    found: dict[str, Any] = {}
    if d.odds(25):
        found["strides"] = d.ints(count, 1, 2)
    if d.odds(20):
        found["dilations"] = d.ints(count, 1, 2)
    if d.odds(15):
        found["auto_pad"] = d.one(["VALID", "SAME_UPPER", "SAME_LOWER"])
    elif d.odds(50):
        found["pads"] = _centred(kernel, found) if d.odds(50) else d.ints(2 * count, 0, 1)
    return found


def _centred(kernel: Sequence[int], attributes: dict[str, Any]) -> list[int]:
    dilations = attributes.get("dilations", [1] * len(kernel))
    return [n * (k - 1) // 2 for n, k in zip(dilations, kernel, strict=True)] * 2


def windows(shape: Shape, kernel: Sequence[int], attributes: dict[str, Any]) -> list[int]:
    """How many windows fit along each spatial axis."""
    strides = attributes.get("strides", [1] * len(kernel))
    spans = [n * (k - 1) + 1 for n, k in zip(attributes.get("dilations", [1] * len(kernel)), kernel, strict=True)]
    pads = pads_of(shape[2:], spans, strides, attributes.get("auto_pad"), attributes.get("pads"))
    return [(a + n + b - span) // s + 1 for (a, b), n, span, s in zip(pads, shape[2:], spans, strides, strict=True)]


def matrix(g: Graph, shape: Shape, dtype: int) -> Value:
    """The weight of a heavy operator: stored, quantized, now and then not constant at all."""
    kind = g.d.int(0, 29)
    if kind == 29 and all(shape):
        return g.input((shape, shape), shape, dtype)
    if kind >= 26 and dtype == TensorProto.FLOAT and g.opset >= 10:
        return g.quantized(shape)
    return g.weight(shape, dtype)


def bias(g: Graph, size: int, dtype: int, odds: int = 50) -> Value | None:
    """A vector, now and then of integers, or none."""
    if dtype == TensorProto.FLOAT and g.opset >= 13 and g.d.odds(8):
        return g.quantized_bias(size)
    return g.weight((size,), dtype) if g.d.odds(odds) else None


def conv(g: Graph) -> Value:
    """Conv over 1, 2 or 3 axes, with groups, pads, strides and dilations."""
    v = g.pick(is_image)
    return convolved(g, v, g.d.ints(v.rank - 2, 1, 3))


def convolved(g: Graph, v: Value, kernel: list[int], attributes: dict[str, Any] | None = None, **known: int) -> Value:
    """Conv of ``v``; ``known`` may say the groups and the output channels."""
    d, channels = g.d, v.shapes[0][1]
    groups = known.get("groups") or (
        d.one([n for n in range(1, channels + 1) if channels % n == 0]) if d.odds(30) else 1
    )
    outs = known.get("outs") or groups * (d.int(1, 3) if groups > 1 else d.one([3, 2, channels, 4, 6, 8, 1]))
    found = window(d, kernel) if attributes is None else attributes
    shapes = each(lambda s: (s[0], outs, *windows(s, kernel, found)), v)
    weight = matrix(g, (outs, channels // groups, *kernel), v.dtype)
    named = {"kernel_shape": kernel} if d.odds(50) else {}
    inputs = [v, weight, bias(g, outs, v.dtype)]
    return g.emit("Conv", inputs, shapes, group=groups if groups > 1 else None, **found, **named)


def conv_transpose(g: Graph) -> Value:
    """ConvTranspose with groups, pads up to the whole kernel, strides and output_padding."""
    d, v = g.d, g.pick(is_image)
    count, channels = v.rank - 2, v.shapes[0][1]
    kernel = d.ints(count, 1, 3)
    groups = d.one([n for n in range(1, channels + 1) if channels % n == 0]) if d.odds(30) else 1
    per_group = d.int(1, 3)
    strides, dilations = ([1] * count, [1] * count) if d.odds(50) else (d.ints(count, 1, 2), d.ints(count, 1, 2))
    reach = [n * (k - 1) for n, k in zip(dilations, kernel, strict=True)]
    pads = reach * 2 if d.odds(30) else [d.int(0, min(n, 1)) for n in reach * 2]
    extra = [d.int(0, s - 1) for s in strides] if d.odds(40) else [0] * count

    def sizes(s: Shape) -> list[int]:
        full = zip(strides, s[2:], reach, pads, pads[count:], extra, strict=False)
        return [st * (n - 1) + span + 1 - a - b + e for st, n, span, a, b, e in full]

    shapes = each(lambda s: (s[0], groups * per_group, *sizes(s)), v)
    inputs = [v, matrix(g, (channels, per_group, *kernel), v.dtype), bias(g, groups * per_group, v.dtype)]
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra}
    told = {name: value for name, value in attributes.items() if len(set(value)) > 1 or value[0] != (name[-1:] == "s")}
    told |= {"pads": pads}
    return g.emit("ConvTranspose", inputs, shapes, group=groups if groups > 1 else None, **told)


# -- matrix products -------------------------------------------------------------------------------


def gemm(g: Graph) -> Value:
    """Gemm with every transposition, factor and shape of C."""
    d = g.d
    across = int(d.odds(25))
    v = g.pick(lambda v: v.rank == 2 and v.fixed(1 - across))
    inner, columns, rows = v.shapes[0][1 - across], d.one([3, 2, 5, 4, 1]), v.fixed(across)
    transposed = d.odds(50)
    weight = matrix(g, (columns, inner) if transposed else (inner, columns), v.dtype)
    c_shapes: list[Shape] = [(columns,), (), (1,), (1, 1), (1, columns)]
    c_shapes += [(rows, 1), (rows, columns)] if rows is not None else []
    c = g.weight(d.one(c_shapes), v.dtype) if d.odds(60) else None
    factors = {"alpha": d.one([0.5, -2.0]), "beta": d.one([0.5, -2.0, 0.0])} if d.odds(30) else {}
    shapes = each(lambda s: (s[across], columns), v)
    turns = {"transA": across or None, "transB": int(transposed) or None}
    # Before opset 11 C was required.
    c = g.weight((columns,), v.dtype) if c is None and g.opset < 11 else c
    return g.emit("Gemm", [v, weight, c], shapes, **turns, **factors)


def matmul(g: Graph) -> Value:
    """MatMul with the weight on the right or the left, batched, a vector, or another value."""
    d = g.d
    if d.odds(20):
        return product_of_two(g)
    left = d.odds(35)
    v = g.pick(lambda v: v.rank >= 1 and v.fixed(-2 if left and v.rank > 1 else -1))
    axis = -2 if left and v.rank > 1 else -1
    inner, other = v.shapes[0][axis], d.one([3, 2, 5, 4, 1])
    shape: Shape = (other, inner) if left else (inner, other)
    if v.rank > 2 and d.odds(20):
        shape = (*_some(d, v, range(v.rank - 2)), *shape)
    elif d.odds(5):
        shape = (inner,)
    weight = matrix(g, shape, v.dtype)
    inputs = [weight, v] if left else [v, weight]
    return g.emit("MatMul", inputs, each(_matmul_shape, *inputs))


def _some(d: Draw, v: Value, axes: Sequence[int]) -> Shape:
    """The sizes of ``axes``, some of them 1."""
    return tuple(size if (size := v.fixed(axis)) is not None and d.odds(60) else 1 for axis in axes)


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    return np.matmul(np.zeros(a), np.zeros(b)).shape


def product_of_two(g: Graph) -> Value:
    """Two values multiplied as matrices: ``v v'^T``."""
    v = g.pick(lambda v: v.rank >= 2)
    perm = [*range(v.rank - 2), v.rank - 1, v.rank - 2]
    turned = g.emit("Transpose", [v], each(lambda s: [s[i] for i in perm], v), perm=perm)
    return g.emit("MatMul", [v, turned], each(_matmul_shape, v, turned))


def embedding(g: Graph) -> Value:
    """Rows gathered from a table by indices that are an input."""
    d = g.d
    table = g.weight((d.int(3, 6), d.int(2, 5)), g.dtype)
    shape = tuple(d.ints(d.int(1, 2), 2, 4))
    indices = g.input((shape, shape), shape, TensorProto.INT64)
    return g.emit("Gather", [table, indices], each(lambda t, i: (*i, t[1]), table, indices))


# -- sources of maps -------------------------------------------------------------------------------


def batch_norm(g: Graph) -> Value:
    """BatchNormalization with ordinary and degenerate statistics."""
    return normalized(g, g.pick(lambda v: v.rank >= 2 and v.fixed(1)))


def normalized(g: Graph, v: Value) -> Value:
    """BatchNormalization of ``v``."""
    d, size = g.d, v.shapes[0][1]
    wide = v.dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16) and g.opset >= 15 and d.odds(50)
    statistics = TensorProto.FLOAT if wide else v.dtype
    gamma, beta, mean, var, eps = _statistics(g, size, v.dtype)
    parameters = [_vector(g, gamma, v.dtype), _vector(g, beta, v.dtype)]
    parameters += [_vector(g, mean, statistics), _vector(g, var, statistics, positive=True)]
    if d.odds(2):
        parameters[d.int(0, 1)] = g.input(((size,), (size,)), (size,), v.dtype)
    if g.opset >= 14 and d.odds(1):
        return _in_training(g, v, parameters)
    return g.emit("BatchNormalization", [v, *parameters], v.shapes, epsilon=eps)


def _in_training(g: Graph, v: Value, parameters: list[Value]) -> Value:
    shapes = [parameter.shapes for parameter in parameters[2:]]
    kinds = [v.dtype, *[parameter.dtype for parameter in parameters[2:]]]
    result = g.emit("BatchNormalization", [v, *parameters], v.shapes, *shapes, dtypes=kinds, training_mode=1)
    g.values.remove(result)
    g.values.append(result)
    return result


def _statistics(g: Graph, size: int, dtype: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float | None]:
    d, rng = g.d, g.rng()
    narrow = dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    gamma, beta, mean = (np.round(rng.standard_normal(size), 2) for _ in range(3))
    var, eps = np.round(rng.uniform(0.5, 2.0, size), 2), None
    kind = d.int(0, 15)
    if kind == 8:
        gamma = np.abs(gamma) + 0.1
    elif kind == 9:
        gamma[rng.integers(0, size)] = 0.0
    elif kind == 10:
        gamma *= 1e-3 if narrow else 1e-6
    elif kind == 11:
        gamma *= 1e2 if narrow else 1e6
    elif kind == 12:
        var[rng.integers(0, size)], eps = 0.0, 1e-3
    elif kind == 13:
        var[:], eps = (1e-4 if narrow else 1e-10), d.one([1e-5, 1e-12])
    elif kind == 14:
        beta[:], mean[:] = 0.0, 0.0
        gamma = np.abs(gamma) + 0.1
    elif kind == 15:
        mean, eps = mean * 100, 0.0
    if g.positive:
        gamma = np.abs(gamma)
    return gamma, beta, mean, var, eps


def _vector(g: Graph, array: np.ndarray, dtype: int, *, positive: bool = False) -> Value:
    same = [w for w in g.weights if w.shapes[0] == array.shape and w.dtype == dtype]
    if same and not positive and g.d.odds(10):
        return g.d.one(same)
    value = g.store(array.astype(numpy_dtype(dtype)))
    if not positive:
        g.weights.append(value)
    return value


def constant_map(g: Graph) -> Value:
    """Mul, Add, Sub or Div with a constant: per channel, per token, of one number, enlarging, ..."""
    d, v = g.d, g.pick()
    op = d.one(["Mul", "Add", "Sub", "Div"])
    first = d.odds(30) and op != "Div"
    shape = _operand_shape(g, v)
    numbers = g.numbers(shape)
    if d.odds(50) or op == "Div" or g.positive:
        numbers = np.abs(numbers) + 0.25
    if d.odds(5):
        numbers = np.full(shape, float(op in ("Mul", "Div")))
    constant = _constant(g, numbers, v.dtype, first or op != "Div")
    inputs = [constant, v] if first else [v, constant]
    return g.emit(op, inputs, broadcast(v, constant))


def _constant(g: Graph, numbers: np.ndarray, dtype: int, shared: bool) -> Value:
    same = [w for w in g.weights if shared and w.shapes[0] == numbers.shape and w.dtype == dtype]
    if same and g.d.odds(15):
        return g.d.one(same)
    value = g.store(numbers.astype(numpy_dtype(dtype)), "k")
    if shared:
        g.weights.append(value)
    return value


def _operand_shape(g: Graph, v: Value) -> Shape:
    """Mostly per channel; else what nearly is, or is not at all."""
    d, kind = g.d, g.d.int(0, 9)
    if v.rank == 0 or kind == 5:
        return d.one([(), (1,), (1,) * v.rank])
    if kind == 6 or (v.rank == 1 and kind < 5):
        return (v.fixed(v.rank - 1) or 1,)
    if kind == 7:
        return (*(1,) * (v.rank - 1), v.fixed(v.rank - 1) or 1)
    if kind == 8:
        return _some(d, v, range(v.rank))
    if kind == 9:
        return (2, *(1,) * v.rank) if d.odds(20) else tuple(d.one([size, 1, 2]) for size in v.shapes[0])
    channels = (v.fixed(1) or 1, *(1,) * (v.rank - 2))
    return (1, *channels) if d.odds(30) else channels


def negate(g: Graph) -> Value:
    """Neg."""
    v = g.pick()
    return g.emit("Neg", [v], v.shapes)


# -- as networks have them -------------------------------------------------------------------------


def decomposed_norm(g: Graph) -> Value:
    """(x - mean) / sqrt(var + eps) * gamma + beta, the root in the graph."""
    v = g.pick(lambda v: v.rank >= 2 and v.fixed(1))
    shape = (v.shapes[0][1], *(1,) * (v.rank - 2))
    var = g.store((np.abs(g.numbers(shape)) + 0.25).astype(numpy_dtype(v.dtype)), "var")
    eps = g.scalar(1e-3, v.dtype)
    inner, root = g.name("c"), Value(g.name("c"), (shape, shape), v.dtype, True)
    g.nodes.extend(_raw("Add", [var.name, eps.name], inner) + _raw("Sqrt", [inner], root.name))
    for op, operand in (("Sub", None), ("Div", root), ("Mul", None), ("Add", None)):
        v = g.emit(op, [v, operand or g.weight(shape, v.dtype)], v.shapes)
    return v


def _raw(op: str, inputs: list[str], output: str) -> list[Any]:
    from onnx import helper

    return [helper.make_node(op, inputs, [output])]


def parallel_branches(g: Graph) -> Value:
    """A RepVGG block: convolutions and an identity of one value, each with its norm, added up."""
    d = g.d
    v = g.pick(lambda v: is_image(v) and v.rank < 5)
    channels, count = v.shapes[0][1], v.rank - 2
    groups = d.one([n for n in range(1, channels + 1) if channels % n == 0]) if d.odds(20) else 1
    outs = channels if d.odds(70) else groups * 2
    stride = {"strides": [2] * count} if d.odds(15) else {}
    branches = []
    for size in d.one([(3, 1), (3, 3), (1, 1), (3, 1, 1)]):
        pads = {"pads": [(size - 1) // 2] * 2 * count} if size > 1 else {}
        branch = convolved(g, v, [size] * count, {**pads, **stride}, groups=groups, outs=outs)
        branches.append(normalized(g, branch) if d.odds(70) else branch)
    if outs == channels and not stride and d.odds(70):
        branches.append(normalized(g, v) if d.odds(70) else v)
    if d.odds(30) and (g.opset >= 8 or all(u.shapes == v.shapes for u in branches)):
        return g.emit("Sum", branches, broadcast(*branches))
    total = branches[0]
    for branch in branches[1:]:
        total = g.emit("Add", [total, branch], broadcast(total, branch))
    return total


def layer_scale(g: Graph) -> Value:
    """``x + s f(x)``, f a Linear or a 1x1 convolution."""
    v = g.pick(lambda v: v.rank >= 2 and v.fixed(v.rank - 1))
    size = v.shapes[0][-1]
    branch = g.emit("MatMul", [v, matrix(g, (size, size), v.dtype)], v.shapes)
    if g.d.odds(50):
        branch = g.emit("Add", [branch, g.weight((size,), v.dtype)], v.shapes)
    branch = g.emit("Mul", [branch, g.weight((size,), v.dtype)], v.shapes)
    return g.emit("Add", [v, branch] if g.d.odds(50) else [branch, v], v.shapes)


def norm_of_tokens(g: Graph) -> Value:
    """BatchNorm1d on the flattened tokens of a Linear (LeViT)."""
    v = g.pick(lambda v: v.rank == 3 and v.fixed(2))
    size, outs = v.shapes[0][2], g.d.int(2, 5)
    v = g.emit("MatMul", [v, matrix(g, (size, outs), v.dtype)], each(lambda s: (*s[:2], outs), v))
    shape = v.shapes
    v = g.emit("Reshape", [v, g.ints([-1, outs])], each(lambda s: (s[0] * s[1], outs), v))
    v = normalized(g, v)
    if shape[0] == shape[1]:
        v = g.emit("Reshape", [v, g.ints(shape[0])], shape)
    return v


def running_instance_norm(g: Graph) -> Value:
    """InstanceNorm with running statistics as torch exports it: BatchNormalization with tiled parameters."""
    v = g.pick(lambda v: v.rank == 4 and v.is_fixed)
    batch, channels, *cells = v.shapes[0]
    flat = g.emit("Reshape", [v, g.ints([1, batch * channels, *cells])], _both((1, batch * channels, *cells)))
    names = []
    for positive in (False, False, False, True):
        numbers = g.numbers((channels,))
        stored = g.store((np.abs(numbers) + 0.25 if positive else numbers).astype(numpy_dtype(v.dtype)))
        names.append(g.name("t"))
        g.nodes.extend(_raw("Tile", [stored.name, g.ints([batch]).name], names[-1]))
    flat = g.emit("BatchNormalization", [flat, *names], flat.shapes)
    return g.emit("Reshape", [flat, g.ints(v.shapes[0])], v.shapes)


def _both(shape: Shape) -> tuple[Shape, Shape]:
    return shape, shape


def attention(g: Graph) -> Value:
    """Scaled products of queries and keys, softmax, values."""
    d, v = g.d, g.pick(lambda v: v.rank == 3 and v.fixed(2))
    size, width = v.shapes[0][2], d.int(2, 4)
    shapes = each(lambda s: (*s[:2], width), v)
    if d.odds(50):
        v = g.emit(d.one(["Mul", "Add"]), [v, g.weight((size,), v.dtype)], v.shapes)
    q, k, u = (g.emit("MatMul", [v, g.weight((size, width), v.dtype)], shapes) for _ in range(3))
    k = g.emit("Transpose", [k], each(lambda s: (s[0], s[2], s[1]), k), perm=[0, 2, 1])
    if d.odds(50):
        k = g.emit("Mul", [k, g.scalar(0.5, v.dtype)], k.shapes)
    scores = g.emit("MatMul", [q, k], each(_matmul_shape, q, k))
    scores = g.emit("Div", [scores, g.scalar(1.5, v.dtype)], scores.shapes)
    weights = g.emit("Softmax", [scores], scores.shapes, axis=2)
    return g.emit("MatMul", [weights, u], each(_matmul_shape, weights, u))


def need(condition: object) -> None:
    """Give up this operator unless ``condition``."""
    if not condition:
        raise Unfit
