"""What is evaluated of constants is what ONNX Runtime computes, for drawn inputs, attributes, types and opsets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from normdeploy.clean.evaluate import EXACT, KNOWN, MOVES
from normdeploy.fold.graph.alone import alone, computed, is_evaluated
from normdeploy.fold.operators.basics import EVALUATED, ROUNDED

CASES = 60
OPSETS = (7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 21)
FLOATS: Any = (np.float32, np.float32, np.float16, np.float64)
DTYPES: Any = (*FLOATS, np.int64, np.int32, np.int8, np.uint8, np.bool_)
AWKWARD = (0.0, -0.0, 0.5, -1.5, 300.0, -700.0, 65504.0, 1e-7, 1e-42, 3e38, -3e38, np.inf, -np.inf, np.nan)

Rng = np.random.Generator
Arrays = list[np.ndarray | None]


@dataclass
class Drawn:
    """What one node is given; None stands for an input that is left out."""

    inputs: Arrays
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def node(self, operator: str) -> ir.Node:
        inputs = [None if array is None else ir.Value(name=f"i{i}") for i, array in enumerate(self.inputs)]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = [
            ir.Attr(name, ir.AttributeType.INTS, value)
            if isinstance(value, list)
            else ir.convenience.convert_attribute(name, value)
            for name, value in self.attributes.items()
        ]
        outputs = [ir.Value(name=f"o{i}") for i in range(self.outputs)]
        return ir.Node("", operator, inputs, attributes, outputs=outputs)


def numbers(rng: Rng, shape: Sequence[int], dtype: Any) -> np.ndarray:
    kind, shape = np.dtype(dtype), tuple(shape)
    if kind == np.bool_:
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        small = rng.integers(max(limits.min, -9), 10, shape)
        return np.where(rng.random(shape) < rng.choice([0.0, 0.1]), limits.max, small).astype(kind)
    drawn = rng.standard_normal(shape) * rng.choice([1.0, 30.0, 400.0])
    if rng.random() < 0.5:
        drawn = np.where(rng.random(shape) < 0.3, rng.choice(AWKWARD, shape), drawn)
    elif rng.random() < 0.5:
        drawn = np.round(drawn * 2) / 2
    with np.errstate(all="ignore"):
        return np.asarray(drawn).astype(kind)


def sizes(rng: Rng, least: int = 0, empty: bool = True) -> list[int]:
    return [int(size) for size in rng.choice([1, 2, 3, 0] if empty else [1, 2, 3], rng.integers(least, 4))]


def narrower(rng: Rng, shape: Sequence[int]) -> list[int]:
    """A shape that broadcasts to ``shape``."""
    return [1 if rng.random() < 0.3 else size for size in shape][rng.integers(0, len(shape) + 1) :]


def signed(rng: Rng, axes: Sequence[int], rank: int) -> list[int]:
    return [int(axis) - rank if rng.random() < 0.4 else int(axis) for axis in axes]


def axes_of(rng: Rng, rank: int, count: int | None = None) -> list[int]:
    count = int(rng.integers(0, rank + 1)) if count is None else count
    return signed(rng, rng.permutation(rank)[:count], rank)


def one_axis(rng: Rng, rank: int) -> int:
    return axes_of(rng, rank, 1)[0]


def listed(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int64)


def _one(rng: Rng, opset: int) -> Drawn:
    return Drawn([numbers(rng, sizes(rng), rng.choice(DTYPES))])


def _two(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng), rng.choice(DTYPES)
    pair: Arrays = [numbers(rng, shape, dtype), numbers(rng, narrower(rng, shape), dtype)]
    return Drawn(pair if rng.random() < 0.5 else pair[::-1])


def _logic(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    return Drawn([numbers(rng, shape, np.bool_), numbers(rng, narrower(rng, shape), np.bool_)])


def _logic_of_one(rng: Rng, opset: int) -> Drawn:
    return Drawn([numbers(rng, sizes(rng), np.bool_)])


def _mod(rng: Rng, opset: int) -> Drawn:
    return Drawn(_two(rng, opset).inputs, {"fmod": int(rng.integers(0, 2))})


def _many(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng), rng.choice(DTYPES)
    return Drawn([numbers(rng, narrower(rng, shape), dtype) for _ in range(rng.integers(1, 4))])


def _clip(rng: Rng, opset: int) -> Drawn:
    dtype = rng.choice(FLOATS if opset < 12 else DTYPES)
    data = numbers(rng, sizes(rng), dtype)
    bounds = [None if rng.random() < 0.3 else numbers(rng, (), dtype) for _ in range(2)]
    if opset >= 11:
        return Drawn([data, *bounds])
    return Drawn([data], {name: float(b) for name, b in zip(("min", "max"), bounds, strict=True) if b is not None})


def _by_axes(rng: Rng, opset: int, data: np.ndarray, axes: Sequence[int] | None, input_from: int) -> Drawn:
    if axes is None:
        return Drawn([data])
    return Drawn([data, listed(axes)]) if opset >= input_from else Drawn([data], {"axes": list(axes)})


def _reduction(input_from: int) -> Callable[[Rng, int], Drawn]:
    def draw(rng: Rng, opset: int) -> Drawn:
        data = numbers(rng, sizes(rng), rng.choice(DTYPES))
        axes = None if rng.random() < 0.3 else axes_of(rng, data.ndim)
        drawn = _by_axes(rng, opset, data, axes, input_from)
        drawn.attributes["keepdims"] = int(rng.integers(0, 2))
        if opset >= input_from and rng.random() < 0.5:
            drawn.attributes["noop_with_empty_axes"] = int(rng.integers(0, 2))
        return drawn

    return draw


def _squeeze(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    axes = None if rng.random() < 0.3 else signed(rng, rng.permutation(ones)[: rng.integers(0, 3)], len(shape))
    return _by_axes(rng, opset, numbers(rng, shape, rng.choice(DTYPES)), axes, 13)


def _unsqueeze(rng: Rng, opset: int) -> Drawn:
    shape, count = sizes(rng), int(rng.integers(0, 3))
    axes = axes_of(rng, len(shape) + count, count)
    return _by_axes(rng, opset, numbers(rng, shape, rng.choice(DTYPES)), axes, 13)


def _reshape(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1)
    wanted = [0 if rng.random() < 0.3 else int(size) for size in rng.permutation(shape)]
    if rng.random() < 0.5:
        wanted[rng.integers(0, len(wanted))] = -1
    attributes = {"allowzero": 1} if opset >= 14 and rng.random() < 0.4 else {}
    return Drawn([numbers(rng, shape, rng.choice(DTYPES)), listed(wanted)], attributes)


def _along(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1)
    axis = one_axis(rng, len(shape)) if opset >= 11 else int(rng.integers(0, len(shape)))
    return Drawn([numbers(rng, shape, rng.choice(FLOATS))], {"axis": axis} if rng.random() < 0.7 else {})


def _transpose(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    attributes = {"perm": [int(axis) for axis in rng.permutation(len(shape))]} if rng.random() < 0.7 else {}
    return Drawn([numbers(rng, shape, rng.choice(DTYPES))], attributes)


def _slice(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1)
    axes = axes_of(rng, len(shape), int(rng.integers(1, len(shape) + 1)))
    places = [0, 1, 2, 3, -1, -2, -3, -5, 9, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
    starts, ends = ([int(place) for place in rng.choice(np.array(places, object), len(axes))] for _ in range(2))
    data = numbers(rng, shape, rng.choice(DTYPES))
    if opset < 10:
        return Drawn([data], {"starts": starts, "ends": ends, "axes": [axis % len(shape) for axis in axes]})
    steps = rng.choice([1, 1, 2, -1, -2], len(axes))
    return Drawn([data, listed(starts), listed(ends), listed(axes), listed(steps)])


def _trilu(rng: Rng, opset: int) -> Drawn:
    data = numbers(rng, [*sizes(rng), *sizes(rng, 2)[:2]], rng.choice(DTYPES))
    above = np.array(rng.integers(-4, 5), np.int64) if rng.random() < 0.7 else None
    return Drawn([data, above], {"upper": int(rng.integers(0, 2))})


def _concat(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng, 1), rng.choice(DTYPES)
    axis = int(rng.integers(0, len(shape)))
    parts = [[*shape[:axis], int(rng.integers(0, 3)), *shape[axis + 1 :]] for _ in range(rng.integers(1, 4))]
    return Drawn(
        [numbers(rng, part, dtype) for part in parts],
        {"axis": signed(rng, [axis], len(shape))[0] if opset >= 11 else axis},
    )


def _gather(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1, empty=False)
    axis = int(rng.integers(0, len(shape)))
    low = -shape[axis] if opset >= 11 else 0
    places = rng.integers(low, shape[axis], sizes(rng))
    return Drawn([numbers(rng, shape, rng.choice(DTYPES)), places], {"axis": axis})


def _places(rng: Rng, shape: Sequence[int], depth: int) -> np.ndarray:
    each = [rng.integers(-size, size, 2) for size in shape[:depth]]
    return np.stack(each, -1)


def _gather_nd(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1, empty=False)
    data = numbers(rng, shape, rng.choice(DTYPES))
    if opset >= 12 and len(shape) > 1 and rng.random() < 0.4:
        return Drawn([data, rng.integers(0, shape[1], (shape[0], 2, 1))], {"batch_dims": 1})
    return Drawn([data, _places(rng, shape, int(rng.integers(1, len(shape) + 1)))])


def _scatter_nd(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng, 1, empty=False), rng.choice(DTYPES)
    depth = int(rng.integers(1, len(shape) + 1))
    updates = numbers(rng, [2, *shape[depth:]], dtype)
    return Drawn([numbers(rng, shape, dtype), _places(rng, shape, depth), updates])


def _scatter(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng, 1, empty=False), rng.choice(DTYPES)
    axis = int(rng.integers(0, len(shape)))
    part = [int(rng.integers(1, size + 1)) for size in shape]
    places = rng.integers(-shape[axis], shape[axis], part)
    return Drawn([numbers(rng, shape, dtype), places, numbers(rng, part, dtype)], {"axis": axis})


def _where(rng: Rng, opset: int) -> Drawn:
    shape, dtype = sizes(rng), rng.choice(DTYPES)
    return Drawn([
        numbers(rng, narrower(rng, shape), np.bool_),
        *(numbers(rng, narrower(rng, shape), dtype) for _ in range(2)),
    ])  # fmt: skip


def _expand(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    wanted = [int(rng.choice([1, size])) if size != 1 else int(rng.integers(0, 3)) for size in shape]
    return Drawn([numbers(rng, shape, rng.choice(DTYPES)), listed([*sizes(rng, empty=False)[:1], *wanted])])


def _tile(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    return Drawn([numbers(rng, shape, rng.choice(DTYPES)), listed([int(n) for n in rng.integers(0, 3, len(shape))])])


def _constant_of_shape(rng: Rng, opset: int) -> Drawn:
    value = ir.tensor(numbers(rng, [1], rng.choice(DTYPES)))
    return Drawn([listed(sizes(rng))], {"value": value} if rng.random() < 0.7 else {})


def _cast(rng: Rng, opset: int) -> Drawn:
    target = rng.choice(np.array([*DTYPES, ml_dtypes.bfloat16], object))
    to = int(helper.np_dtype_to_tensor_dtype(np.dtype(target)))
    return Drawn([numbers(rng, sizes(rng), rng.choice(DTYPES))], {"to": to})


def _cast_like(rng: Rng, opset: int) -> Drawn:
    return Drawn([numbers(rng, sizes(rng), rng.choice(DTYPES)), numbers(rng, (), rng.choice(DTYPES))])


def _range(rng: Rng, opset: int) -> Drawn:
    dtype = rng.choice([np.float32, np.float64, np.int64, np.int32])
    return Drawn([np.array(value, dtype) for value in (*rng.integers(-6, 7, 2), rng.choice([-2, -1, 1, 2, 3]))])


def _cum_sum(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1)
    flags = {name: int(rng.integers(0, 2)) for name in ("exclusive", "reverse")}
    return Drawn([numbers(rng, shape, rng.choice(DTYPES)), np.array(one_axis(rng, len(shape)), np.int64)], flags)


def _pow(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng)
    exponent = numbers(rng, narrower(rng, shape), rng.choice(FLOATS)).clip(-3, 3)
    return Drawn([numbers(rng, shape, exponent.dtype if opset < 12 else rng.choice(FLOATS)), exponent])


def _mat_mul(rng: Rng, opset: int) -> Drawn:
    rows, inner, columns = (int(size) for size in rng.integers(1, 4, 3))
    batch, dtype = sizes(rng, empty=False)[:1], rng.choice(DTYPES)
    left = [inner] if rng.random() < 0.2 else [*batch, rows, inner]
    right = [inner] if rng.random() < 0.2 else [*narrower(rng, batch), inner, columns]
    return Drawn([numbers(rng, left, dtype), numbers(rng, right, dtype)])


def _gemm(rng: Rng, opset: int) -> Drawn:
    rows, inner, columns = (int(size) for size in rng.integers(1, 4, 3))
    dtype, flips = rng.choice(FLOATS), rng.integers(0, 2, 2)
    a, b = ([rows, inner][:: 1 - 2 * flips[0]], [inner, columns][:: 1 - 2 * flips[1]])
    bias = numbers(rng, narrower(rng, [rows, columns]), dtype)
    return Drawn(
        [numbers(rng, a, dtype), numbers(rng, b, dtype), None if opset >= 11 and rng.random() < 0.3 else bias],
        {"transA": int(flips[0]), "transB": int(flips[1]), "alpha": 0.5, "beta": float(rng.choice([0.0, 2.0]))},
    )


def _einsum(rng: Rng, opset: int) -> Drawn:
    equation = str(rng.choice(["ij,jk->ik", "ij,ij->i", "ii->i", "ij->ji", "ij,kj", "...ij,...jk->...ik"]))
    shapes = [[3, 3]] * (1 + equation.count(","))
    dtype = rng.choice(FLOATS)
    return Drawn([numbers(rng, shape, dtype) for shape in shapes], {"equation": equation})


def _normalization(*names: str, per: int) -> Callable[[Rng, int], Drawn]:
    """A norm of a tensor and ``names``, which vary over axis ``per``; a variance is positive."""

    def draw(rng: Rng, opset: int) -> Drawn:
        shape, dtype = [*(int(size) for size in rng.integers(1, 4, 2)), 3], rng.choice(FLOATS)
        given = {name: numbers(rng, [shape[per]], dtype) for name in names}
        if "var" in given:
            given["var"] = np.abs(given["var"])
        return Drawn([numbers(rng, shape, dtype), *given.values()], {"epsilon": float(rng.choice([1e-5, 0.1]))})

    return draw


def _instance_normalization(rng: Rng, opset: int) -> Drawn:
    """Of moderate numbers: ONNX Runtime loses the bias between a x and a mean, where these are large."""
    drawn = _normalization("scale", "bias", per=1)(rng, opset)
    size = rng.choice([1.0, 30.0, 400.0])
    spread = [
        (rng.standard_normal(array.shape) * size).astype(array.dtype) for array in drawn.inputs if array is not None
    ]
    return Drawn([*spread], drawn.attributes)


def _split(rng: Rng, opset: int) -> Drawn:
    shape = sizes(rng, 1)
    axis = int(rng.integers(0, len(shape)))
    parts = [int(part) for part in rng.integers(0, 3, 2)]
    shape[axis] = sum(parts)
    data, attributes = numbers(rng, shape, rng.choice(DTYPES)), {"axis": axis}
    if opset < 13:
        return Drawn([data], attributes | {"split": parts}, outputs=2)
    return Drawn([data, listed(parts)], attributes, outputs=2)


def _shape(rng: Rng, opset: int) -> Drawn:
    ends = {"start": int(rng.integers(-4, 4)), "end": int(rng.integers(-4, 5))} if opset >= 15 else {}
    return Drawn([numbers(rng, sizes(rng), rng.choice(DTYPES))], {k: v for k, v in ends.items() if rng.random() < 0.6})


DRAWS: dict[str, Callable[[Rng, int], Drawn]] = {
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"], _two),
    **dict.fromkeys(["And", "Or", "Xor"], _logic), "Not": _logic_of_one, **dict.fromkeys(["Min", "Max"], _many),
    **dict.fromkeys(["ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceL2", "ReduceSumSquare"],
                    _reduction(18)),
    "ReduceSum": _reduction(13), "Clip": _clip, "Mod": _mod, "Pow": _pow, "Range": _range, "CumSum": _cum_sum,
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Flatten": _along, "Softmax": _along,
    "Transpose": _transpose, "Slice": _slice, "Trilu": _trilu, "Concat": _concat, "Gather": _gather,
    "GatherND": _gather_nd, "ScatterND": _scatter_nd, "ScatterElements": _scatter, "Where": _where, "Expand": _expand,
    "Tile": _tile, "ConstantOfShape": _constant_of_shape, "Cast": _cast, "CastLike": _cast_like, "MatMul": _mat_mul,
    "Gemm": _gemm, "Einsum": _einsum, "Split": _split, "Shape": _shape,
    "LayerNormalization": _normalization("scale", "bias", per=-1),
    "InstanceNormalization": _instance_normalization,
    "BatchNormalization": _normalization("scale", "bias", "mean", "var", per=1),
}  # fmt: skip
"""How each operator is drawn; what is not here has one input and no attribute."""


def in_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray], output: str) -> np.ndarray | None:
    """What ONNX Runtime computes, unoptimized; None where it does not run the model."""
    given, options = onnx.ModelProto(), onnxruntime.SessionOptions()
    given.CopyFrom(model)
    given.ir_version = 8
    for info in given.graph.input:
        array = feeds[info.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, array.shape))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        given = onnx.shape_inference.infer_shapes(given)  # the types of the outputs
        session = onnxruntime.InferenceSession(given.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run([output], feeds)[0]
    except Exception:  # of any kind: an operator, type or attribute that it does not have
        return None
    return np.asarray(found)


def ours(model: onnx.ModelProto, feeds: dict[str, np.ndarray], output: str) -> np.ndarray | None:
    try:
        return computed(model, output, feeds)
    except Exception:  # of any kind: it is left to the runtime
        return None


ADDED_UP = frozenset({"MatMul", "CumSum", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", *ROUNDED})
"""What loses digits of its largest sum; all else loses them of each number."""


def assert_alike(operator: str, found: np.ndarray, wanted: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if operator in MOVES or operator in EXACT or wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted)
        return
    finite = np.abs(wanted.astype(np.float64)[np.isfinite(wanted)])
    eps = float(np.finfo(wanted.dtype).eps)
    size = finite.max(initial=1.0) if operator in ADDED_UP else 1.0
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=16 * eps, atol=16 * eps * size)


@pytest.mark.parametrize("operator", sorted(KNOWN | EVALUATED))
def test_it_is_what_onnxruntime_computes(operator: str) -> None:
    rng, compared = np.random.default_rng(zlib.crc32(operator.encode())), 0
    for _ in range(CASES):
        opset = int(rng.choice(OPSETS))
        drawn = DRAWS.get(operator, _one)(rng, opset)
        node = drawn.node(operator)
        assert is_evaluated(node)
        feeds = {f"i{index}": array for index, array in enumerate(drawn.inputs) if array is not None}
        found, wanted = (run(alone(node, opset), feeds, str(node.outputs[-1].name)) for run in (ours, in_onnxruntime))
        if found is not None and wanted is not None:
            assert_alike(operator, found, wanted)
            compared += 1
    assert compared >= CASES // 10
