"""Indices, sizes and angles in a 16-bit graph: what is computed of no activations keeps float32's room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from normdeploy.precision import Precision, to_precision, wrong_precision

EPS = {"fp16": 2.0**-10, "bf16": 2.0**-7}
RNG = np.random.default_rng(0)
FREQUENCIES = np.array([1, 0.1, 0.01, 0.001], np.float32)
POSITIONS = np.arange(2990, 3001)


def graph(text: str, opset: int, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    """The first output, in ONNX's evaluator: it rounds every number to its type, as a GPU does."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0], np.float64)


def turned(x: np.ndarray, w: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``x w`` plus the sine of each position at each frequency, in float64."""
    return x.astype(np.float64) @ w + np.sin(np.multiply.outer(positions.astype(np.float64), FREQUENCIES))


ANGLES = {
    "mul": "q = Cast<to=1>(p) u = Unsqueeze(q, last) a = Mul(u, f)",
    "matmul": "q = Cast<to=1>(p) u = Unsqueeze(q, last) v = Unsqueeze(f, first) a = MatMul(u, v)",
    "transposed": "q = Cast<to=1>(p) u = Unsqueeze(q, first) v = Unsqueeze(f, last) b = MatMul(v, u)"
    " a = Transpose<perm=[1,0]>(b)",
    "einsum": 'q = Cast<to=1>(p) a = Einsum<equation="i,j->ij">(q, f)',
    "ellipsis": 'q = Cast<to=1>(p) a = Einsum<equation="..., f -> ... f">(q, f)',
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("spelled", sorted(ANGLES))
def test_the_angle_of_a_position_is_computed_in_float32(spelled: str, precision: Precision) -> None:
    """Position 2999 was 3000 in float16, and its sine another number altogether."""
    w, x = RNG.standard_normal((4, 4)).astype(np.float32), RNG.standard_normal((11, 4)).astype(np.float32)
    model = graph(
        f"(float[11,4] x, int64[11] p) => (float[11,4] y) {{ m = MatMul(x, w) {ANGLES[spelled]} s = Sin(a)"
        " y = Add(m, s) }",
        17,
        w=w, f=FREQUENCIES, first=np.array([0]), last=np.array([-1]),
    )  # fmt: skip
    narrow = to_precision(model, precision)
    assert not wrong_precision(narrow, precision)
    exact = turned(x, w, POSITIONS)
    assert np.abs(run(narrow, x=x, p=POSITIONS) - exact).max() < 3 * EPS[precision] * np.abs(exact).max()


def test_before_opset_13_an_einsum_becomes_a_mul_too() -> None:
    w, x = RNG.standard_normal((4, 4)).astype(np.float32), RNG.standard_normal((11, 4)).astype(np.float32)
    model = graph(
        f"(float[11,4] x, int64[11] p) => (float[11,4] y) {{ m = MatMul(x, w) {ANGLES['einsum']} s = Sin(a)"
        " y = Add(m, s) }",
        12,
        w=w, f=FREQUENCIES,
    )  # fmt: skip
    exact = turned(x, w, POSITIONS)
    assert np.abs(run(to_precision(model, "fp16"), x=x, p=POSITIONS) - exact).max() < 0.02


def test_a_float_timestep_keeps_its_digits() -> None:
    model = graph(
        "(float[2,4] x, float[2,1] t) => (float[2,4] y) { m = MatMul(x, w) a = Mul(t, f) s = Cos(a) y = Add(m, s) }",
        17, w=np.eye(4, dtype=np.float32), f=FREQUENCIES,
    )  # fmt: skip
    x, t = np.zeros((2, 4), np.float32), np.array([[999.25], [731.75]], np.float32)
    exact = np.cos(t.astype(np.float64) * FREQUENCIES)
    assert np.abs(run(to_precision(model, "fp16"), x=x, t=t) - exact).max() < 2.0**-11


@pytest.mark.parametrize(
    "product",
    ["MatMul(m, w)", 'Einsum<equation="ij,jk->ik">(m, w)', 'Einsum<equation="ij,kj->ik">(m, w)'],
)
def test_a_sine_of_activations_is_taken_in_16_bits(product: str) -> None:
    """As of PyTorch's module in half precision: these are no positions, and the products sum."""
    model = graph(
        f"(float[2,4] x) => (float[2,4] y) {{ m = Relu(x) a = {product} y = Sin(a) }}",
        17,
        w=np.eye(4, dtype=np.float32),
    )
    narrow = to_precision(model, "fp16")
    (sine,) = (node for node in narrow.graph if node.op_type == "Sin")
    assert sine.inputs[0].dtype == ir.DataType.FLOAT16
    assert any(node.op_type in ("MatMul", "Einsum") for node in narrow.graph)


def test_an_outer_product_of_activations_stays_a_product_in_16_bits() -> None:
    """It is no position: nothing takes its sine or makes an index of it."""
    model = graph(
        "(float[3,4] x) => (float[3,4] y) { a = MatMul(x, w) m = ReduceMean<axes=[1]>(a) y = MatMul(m, v) }", 17,
        w=np.eye(4, dtype=np.float32), v=np.ones((1, 4), np.float32),
    )  # fmt: skip
    narrow = to_precision(model, "fp16")
    assert [node.inputs[0].dtype for node in narrow.graph if node.op_type == "MatMul"] == [ir.DataType.FLOAT16] * 2


def test_a_size_through_a_branch_keeps_its_digits() -> None:
    """What the branches compute, and the constant that one hands out, are parts of the index."""
    model = graph(
        """(float[2,4] x, bool go, int64 k) => (float[2,4] y, int64 j) {
            m = MatMul(x, w) y = Relu(m) f = Cast<to=1>(k)
            r = If(go) <then_branch = b () => (float a) { a = Mul(f, half) },
                        else_branch = e () => (float a) { a = Constant<value = float {4099}>() }>
            j = Cast<to=7>(r) }""",
        17, w=np.eye(4, dtype=np.float32), half=np.array(0.5, np.float32),
    )  # fmt: skip
    narrow = ir.to_proto(to_precision(model, "fp16"))
    onnx.checker.check_model(narrow, full_check=True)
    for go, expected in ((True, 2049), (False, 4099)):
        feeds = {"x": np.ones((2, 4), np.float32), "go": np.array(go), "k": np.array(4098)}
        assert ReferenceEvaluator(narrow).run(["j"], feeds)[0] == expected


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("comparison", "holds"),
    [
        ("c = Equal(q, limit)", lambda p: p == 4097),
        ("c = Less(q, limit)", lambda p: p < 4097),
        ("d = Sub(q, limit) c = Cast<to=9>(d)", lambda p: p != 4097),
        ("d = Sub(q, limit) e = Sign(d) c = Equal(e, zero)", lambda p: p == 4097),
    ],
)
def test_a_condition_of_a_position_is_computed_in_float32(
    comparison: str, holds: Callable[[np.ndarray], np.ndarray], precision: Precision
) -> None:
    """4097 became 4096 in 16 bits, and the position before it was taken for it."""
    w, x = RNG.standard_normal((4, 4)).astype(np.float32), RNG.standard_normal((6, 4)).astype(np.float32)
    positions = np.arange(4094, 4100)
    model = graph(
        f"(float[6,4] x, int64[6,1] p) => (float[6,4] y) {{ m = MatMul(x, w) q = Cast<to=1>(p) {comparison}"
        " y = Where(c, m, zero) }",
        17,
        w=w, limit=np.array(4097, np.float32), zero=np.zeros((), np.float32),
    )  # fmt: skip
    narrow = to_precision(model, precision)
    assert not wrong_precision(narrow, precision)
    exact = np.where(holds(positions)[:, None], x.astype(np.float64) @ w, 0)
    assert np.abs(run(narrow, x=x, p=positions[:, None]) - exact).max() <= 16 * EPS[precision]
