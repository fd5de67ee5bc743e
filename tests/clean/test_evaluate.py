"""What is evaluated is what ONNX Runtime computes, bit for bit; or, where runtimes differ, float64 rounded once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from normdeploy.clean.evaluate import EXACT, INTEGERS, MOVES, ROUNDED, NotEvaluated, cast, evaluate, size

OPSET = 21
RNG = np.random.default_rng(5)
DTYPES = {"f": np.float32, "d": np.float64, "e": np.float16, "i": np.int32, "q": np.int64}


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Let each test draw the same numbers, whatever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state


def draw(dtype: str, *shape: int) -> np.ndarray:
    """Numbers of both signs, zero and ties of rounding among them; none is 0 where it may be a divisor's neighbour."""
    if dtype in "iq":
        return np.asarray(RNG.integers(-9, 9, shape), DTYPES[dtype])
    values = np.asarray(RNG.standard_normal(shape) * 3)
    values.flat[:3] = [0.0, 0.5, -2.5][: values.size]
    return values.astype(DTYPES[dtype])


def nonzero(dtype: str, *shape: int) -> np.ndarray:
    values = draw(dtype, *shape)
    return np.where(values == 0, np.ones((), values.dtype), values)


def runtime(op: str, inputs: list[np.ndarray | None], attributes: dict[str, object]) -> np.ndarray:
    """The operator in ONNX Runtime, on inputs, so that nothing is evaluated beforehand."""
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    graph = helper.make_graph([node], "g", values, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    return np.asarray(session.run(None, feed)[0])


def ours(op: str, inputs: list[np.ndarray | None], attributes: dict[str, object]) -> np.ndarray:
    proto = helper.make_node(op, [f"i{index}" for index in range(len(inputs))], ["y"], **attributes)
    made = evaluate(op, OPSET, inputs, ir.from_proto(proto).attributes)
    assert made.size <= size(op, inputs, ir.from_proto(proto).attributes) or op in ("Unsqueeze", "Clip")
    return made


I64 = np.int64
SHAPED = [
    ("Reshape", lambda d: [draw(d, 2, 6), np.array([3, -1], I64)], {}),
    ("Reshape", lambda d: [draw(d, 2, 6), np.array([0, 2, -1], I64)], {}),
    ("Flatten", lambda d: [draw(d, 2, 3, 2)], {"axis": -1}),
    ("Squeeze", lambda d: [draw(d, 2, 1, 3), np.array([-2], I64)], {}),
    ("Squeeze", lambda d: [draw(d, 1, 2, 1)], {}),
    ("Unsqueeze", lambda d: [draw(d, 2, 3), np.array([0, -1], I64)], {}),
    ("Transpose", lambda d: [draw(d, 2, 3, 4)], {}),
    ("Transpose", lambda d: [draw(d, 2, 3, 4)], {"perm": [1, 2, 0]}),
    ("Slice", lambda d: [draw(d, 5, 7), np.array([4, -1], I64), np.array([-9, -(2**63)], I64), np.array([0, 1], I64),
                         np.array([-2, -3], I64)], {}),
    ("Slice", lambda d: [draw(d, 5, 7), np.array([1], I64), np.array([2**63 - 1], I64), np.array([-1], I64)], {}),
    ("Slice", lambda d: [draw(d, 5, 7), np.array([9], I64), np.array([12], I64)], {}),
    ("Trilu", lambda d: [draw(d, 4, 4), np.array(1, I64)], {"upper": 0}),
    ("Concat", lambda d: [draw(d, 2, 3), draw(d, 2, 1)], {"axis": -1}),
    ("Gather", lambda d: [draw(d, 4, 3), np.array([[0, -1], [2, 1]], I64)], {"axis": 0}),
    ("Gather", lambda d: [draw(d, 4, 3), np.array(-2, I64)], {"axis": 1}),
    ("GatherND", lambda d: [draw(d, 4, 3), np.array([[0, -1], [2, 1]], I64)], {}),
    ("GatherND", lambda d: [draw(d, 2, 4, 3), np.array([[1], [3]], I64)], {"batch_dims": 1}),
    ("Where", lambda d: [np.array([[True], [False]]), draw(d, 2, 3), draw(d, 1, 3)], {}),
    ("Expand", lambda d: [draw(d, 3, 1), np.array([2, 1, 4], I64)], {}),
    ("Expand", lambda d: [draw(d, 3, 4), np.array([1, 1], I64)], {}),
    ("Tile", lambda d: [draw(d, 2, 3), np.array([2, 1], I64)], {}),
    ("ScatterND", lambda d: [draw(d, 4, 3), np.array([[2], [-4]], I64), draw(d, 2, 3)], {}),
    ("ScatterElements", lambda d: [draw(d, 4, 3), np.array([[2, 0, 1]], I64), draw(d, 1, 3)], {"axis": 0}),
    ("Identity", lambda d: [draw(d, 2, 3)], {}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "inputs", "attributes"), SHAPED)
def test_a_mover_moves_as_the_runtime_does(op: str, inputs: object, attributes: dict[str, object], dtype: str) -> None:
    given = inputs(dtype)  # type: ignore[operator]
    np.testing.assert_array_equal(ours(op, given, attributes), runtime(op, given, attributes), strict=True)


COMPARISONS = ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]


@pytest.mark.parametrize("dtype", ["f", "q"])
@pytest.mark.parametrize("op", COMPARISONS)
def test_comparisons(op: str, dtype: str) -> None:
    given = [np.round(draw(dtype, 40)), np.round(draw(dtype, 1))]
    np.testing.assert_array_equal(ours(op, given, {}), runtime(op, given, {}), strict=True)


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Not"])
def test_logic(op: str) -> None:
    given = [np.array([True, False, True, False]), np.array([True, True, False, False])][: 1 if op == "Not" else 2]
    np.testing.assert_array_equal(ours(op, given, {}), runtime(op, given, {}), strict=True)


TWO = ["Add", "Sub", "Mul", "Div", "Min", "Max"]
FLOAT_ONLY = ["Sqrt", "Floor", "Ceil", "Round"]
ONE = ["Neg", "Abs", "Sign", "Relu"]


@pytest.mark.parametrize("dtype", ["f", "d", "i", "q"])
@pytest.mark.parametrize("op", TWO)
def test_arithmetic_is_exact(op: str, dtype: str) -> None:
    given = [draw(dtype, 300, 1), nonzero(dtype, 7)]
    np.testing.assert_array_equal(ours(op, given, {}), runtime(op, given, {}), strict=True)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("op", [*FLOAT_ONLY, *ONE])
def test_arithmetic_of_one_is_exact(op: str, dtype: str) -> None:
    given = [np.abs(draw(dtype, 999)) if op == "Sqrt" else draw(dtype, 999)]
    np.testing.assert_array_equal(ours(op, given, {}), runtime(op, given, {}), strict=True)


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sign"])
def test_arithmetic_of_one_integer_is_exact(op: str) -> None:
    given = [np.arange(-25, 25)]
    np.testing.assert_array_equal(ours(op, given, {}), runtime(op, given, {}), strict=True)


@pytest.mark.parametrize("fmod", [0, 1])
def test_the_rest_of_a_division_of_integers_has_the_sign_that_is_asked_for(fmod: int) -> None:
    given = [np.arange(-9, 9), np.array([[4], [-4]])]
    np.testing.assert_array_equal(ours("Mod", given, {"fmod": fmod}), runtime("Mod", given, {"fmod": fmod}))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_of_integers(op: str, keep: int) -> None:
    given: list[np.ndarray | None] = [draw("q", 2, 3, 2), np.array([-1, 0], I64)]
    np.testing.assert_array_equal(
        ours(op, given, {"keepdims": keep}), runtime(op, given, {"keepdims": keep}), strict=True
    )


@pytest.mark.parametrize(("exclusive", "reverse"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_running_sums_of_integers(exclusive: int, reverse: int) -> None:
    given, attributes = [draw("q", 3, 5), np.array(1, I64)], {"exclusive": exclusive, "reverse": reverse}
    np.testing.assert_array_equal(ours("CumSum", given, attributes), runtime("CumSum", given, attributes), strict=True)


@pytest.mark.parametrize(
    "given", [[0, 10, 3], [5, -4, -2], [3, 3, 1], [0.0, 7.0, 1.0], [2.0, -3.0, -2.0]], ids=lambda given: str(given)
)
def test_ranges(given: list[float]) -> None:
    arrays = [np.array(x, np.float32 if isinstance(x, float) else I64) for x in given]
    np.testing.assert_array_equal(ours("Range", arrays, {}), runtime("Range", arrays, {}), strict=True)


CASTS = [(a, b) for a in "fdeiq?B" for b in "fdeiq?B"]


@pytest.mark.parametrize(("source", "target"), CASTS, ids="".join)
def test_casts(source: str, target: str) -> None:
    values = np.array([0, 1, 2.75, 0.1, 100.5, 3, 65504 if "e" in source + target else 200])
    given = values.astype(np.dtype(source))
    to = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    if target == "B" and (given.astype(np.float64) > 255).any():
        return
    np.testing.assert_array_equal(ours("Cast", [given], {"to": to}), runtime("Cast", [given], {"to": to}), strict=True)


def test_a_double_is_rounded_to_half_by_way_of_float_as_the_runtime_rounds_it() -> None:
    tie = np.array([1 + 2.0**-11 + 2.0**-30])  # to half directly: upward; to float first: a tie, to even
    to = onnx.TensorProto.FLOAT16
    got = ours("Cast", [tie], {"to": to})
    np.testing.assert_array_equal(got, runtime("Cast", [tie], {"to": to}), strict=True)
    assert got[0] == 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3e9], ir.DataType.INT32),
        ([-1.0], ir.DataType.UINT8),
        ([np.nan], ir.DataType.INT64),
        ([np.inf], ir.DataType.INT64),
        ([2.0**63], ir.DataType.INT64),
        ([1e6], ir.DataType.FLOAT16),
        ([1.0], ir.DataType.FLOAT8E4M3FN),
        ([1.0], ir.DataType.STRING),
    ],
)
def test_what_a_type_cannot_hold_is_left_to_the_runtime(values: list[float], dtype: ir.DataType) -> None:
    with pytest.raises(NotEvaluated):
        cast(np.array(values), dtype)


F = np.float32
NOT_EVALUATED = [
    ("Div", [np.array([1]), np.array([0])], {}),
    ("Div", [np.ones(1, F), np.zeros(1, F)], {}),
    ("Mod", [np.array([1]), np.array([0])], {}),
    ("Mul", [np.full(1, 3e38, F), np.full(1, 2, F)], {}),
    ("Add", [np.array([np.nan], F), np.ones(1, F)], {}),
    ("Max", [np.array([np.nan], F), np.ones(1, F)], {}),
    ("Sqrt", [np.array([-1], F)], {}),
    ("Log", [np.array([0], F)], {}),
    ("Exp", [np.array([100], F)], {}),
    ("Range", [np.array(0, F), np.array(1, F), np.array(0.1, F)], {}),
    ("Gather", [np.ones(3, F), np.array([3])], {}),
    ("Reshape", [np.ones(3, F), np.array([2])], {}),
    ("ScatterND", [np.zeros(3, F), np.array([[1], [1]]), np.ones(2, F)], {}),
    ("ScatterElements", [np.zeros(3, F), np.array([1, -2]), np.ones(2, F)], {}),
    ("ScatterND", [np.zeros(3, F), np.array([[1]]), np.ones(1, F)], {"reduction": "add"}),
    ("Pow", [np.array([2]), np.array([3])], {}),
    ("Squeeze", [np.ones((3, 1), F), np.zeros(0, np.int64)], {}),
    ("Clip", [np.array([-np.inf, 0], F), np.array(-1, F)], {}),
    ("Clip", [np.array([1], F), np.array(np.inf, F)], {}),
    ("Add", [np.array([2**31 - 1], np.int32), np.array([1], np.int32)], {}),
    ("Sub", [np.array([3], np.uint8), np.array([5], np.uint8)], {}),
    ("Mul", [np.array([2**62]), np.array([2])], {}),
    ("Neg", [np.array([-128], np.int8)], {}),
    ("ReduceProd", [np.array([2**40, 2**40])], {}),
    ("ReduceProd", [np.ones(2, F)], {}),
    ("CumSum", [np.array([2**62, 2**62]), np.array(0)], {}),
    ("MatMul", [np.array([[2**31 - 1, 1]], np.int32), np.array([[1], [1]], np.int32)], {}),
    ("MatMul", [np.array([[3e38, 1]], F), np.array([[1], [1]], F)], {}),
    ("ReduceSum", [np.array([-np.inf, 1], F)], {}),
    ("ReduceL2", [np.array([1e20], F)], {}),
    ("Softsign", [np.ones(1, F)], {}),
    ("Add", [np.array(["a"]), np.array(["b"])], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), NOT_EVALUATED)
def test_where_runtimes_may_differ_nothing_is_evaluated(
    op: str, inputs: list[np.ndarray], attributes: dict[str, object]
) -> None:
    node = ir.from_proto(helper.make_node(op, [f"i{k}" for k in range(len(inputs))], ["y"], **attributes))
    with pytest.raises(NotEvaluated):
        evaluate(op, OPSET, inputs, node.attributes)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


EXPECTED = {
    "Exp": np.exp, "Log": np.log, "Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Tanh": np.tanh, "Atan": np.arctan,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Reciprocal": lambda x: 1 / x, "Softmax": _softmax,
    "ReduceMean": lambda x: x.mean(keepdims=True), "ReduceSum": lambda x: x.sum(keepdims=True),
    "ReduceL2": lambda x: np.sqrt((x * x).sum(keepdims=True)),
    "ReduceSumSquare": lambda x: (x * x).sum(keepdims=True),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["f", "e"])
@pytest.mark.parametrize("op", EXPECTED)
def test_what_no_two_runtimes_compute_alike_is_float64_rounded_once(op: str, dtype: str) -> None:
    given = np.abs(nonzero(dtype, 7, 3)) * np.asarray(0.5, DTYPES[dtype])
    exact = EXPECTED[op](given.astype(np.float64))
    got = ours(op, [given], {})
    assert got.dtype == given.dtype
    assert np.all(np.abs(got - exact) <= np.spacing(np.abs(got)) * 0.5001)
    if dtype == "f":  # and the runtime is within its own few roundings of that
        np.testing.assert_allclose(runtime(op, [given], {}), got, rtol=2e-6)


def test_products_powers_and_running_sums_of_floats_are_rounded_once() -> None:
    a, b = draw("f", 3, 40), draw("f", 40, 2)
    exact = {
        "MatMul": (ours("MatMul", [a, b], {}), a.astype(float) @ b.astype(float)),
        "Pow": (ours("Pow", [np.abs(a), np.array(2.5, F)], {}), np.abs(a).astype(float) ** 2.5),
        "Pow by an integer": (ours("Pow", [a, np.array(3)], {}), a.astype(float) ** 3),
        "CumSum": (ours("CumSum", [a, np.array(1)], {}), a.astype(float).cumsum(1)),
    }
    for name, (got, want) in exact.items():
        np.testing.assert_array_equal(got, want.astype(np.float32), err_msg=name)


def test_every_operator_that_is_evaluated_is_tested_here() -> None:
    tested = {op for op, *_ in SHAPED} | {*COMPARISONS, *TWO, *FLOAT_ONLY, *ONE, *EXPECTED}
    tested |= {"And", "Or", "Xor", "Not", "Cast", "Mod", "Range", "CumSum", "MatMul", "Pow"}
    tested |= {"ReduceMax", "ReduceMin", "ReduceProd"}
    elsewhere = {"ConstantOfShape", "CastLike", "Erf", "Clip"}  # test_clean.py
    assert {*MOVES, *EXACT, *INTEGERS, *ROUNDED} == tested | elsewhere
