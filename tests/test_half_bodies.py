"""What came out of a conversion to 16 bits as a file that no runtime loads: bodies of float32, names, sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from normdeploy.errors import NormdeployError
from normdeploy.pipeline import files, fold_file
from normdeploy.precision import to_precision

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4)).astype(np.float32)
X = RNG.standard_normal((2, 4)).astype(np.float32)


def graph(text: str, opset: int = 20, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {text}')
    given = {"w": W} | weights
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in given.items())
    return onnx.shape_inference.infer_shapes(proto)


def require_agreement(proto: onnx.ModelProto, bound: float = 4 * 2.0**-11, **feeds: np.ndarray) -> onnx.ModelProto:
    """The conversion to float16 loads in ONNX Runtime, and gives what the original does."""
    narrow = ir.to_proto(to_precision(ir.from_proto(proto), "fp16"))
    onnx.checker.check_model(narrow, full_check=True)
    sessions = [
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        for each in (proto, narrow)
    ]
    given = {"x": X} | feeds
    for exact, actual in zip(*(session.run(None, given) for session in sessions), strict=True):
        assert actual.dtype == exact.dtype
        np.testing.assert_allclose(actual, exact, atol=bound * float(np.abs(exact).max()), rtol=0)
    return narrow


def test_a_loop_that_carries_a_sequence_keeps_its_tensors_too() -> None:
    require_agreement(
        graph(
            """(float[2,4] x) => (float[2,4] y, float[2,4] last) {
            e = SequenceEmpty<dtype=1>() m = MatMul(x, w)
            last, q = Loop(n, go, m, e) <body = b (int64 i, bool c, float[2,4] a, seq(float[2,4]) s)
                => (bool d, float[2,4] o, seq(float[2,4]) t) {
                d = Identity(c) o = MatMul(a, w) t = SequenceInsert(s, o) }>
            y = SequenceAt(q, one) }""",
            n=np.array(3), go=np.array(True), one=np.array([1]),
        ),
        8 * 2.0**-11,
    )  # fmt: skip


@pytest.mark.parametrize("go", [True, False])
def test_a_branch_that_hands_out_a_sequence_keeps_its_tensors_too(go: bool) -> None:
    require_agreement(
        graph(
            """(float[2,4] x, bool go) => (float[2,4] y, float[2,4] t) {
            m = MatMul(x, w)
            t, q = If(go) <
                then_branch = b () => (float[2,4] a, seq(float[2,4]) s) { a = MatMul(m, w) s = SequenceConstruct(a) },
                else_branch = e () => (float[2,4] a, seq(float[2,4]) s) { a = Relu(m) s = SequenceConstruct(a) }>
            y = SequenceAt(q, zero) }""",
            zero=np.array([0]),
        ),
        go=np.array(go),
    )  # fmt: skip


def test_a_mask_that_goes_through_a_loop_is_clipped_in_front_of_it() -> None:
    narrow = require_agreement(
        graph(
            """(float[2,4] x, int64[2,4] k) => (float[2,4] y) {
            m = MatMul(x, w) f = Cast<to=1>(k) mask = Mul(f, big)
            r = Loop(n, go, mask) <body = b (int64 i, bool c, float[2,4] a) => (bool d, float[2,4] o) {
                d = Identity(c) o = Identity(a) }>
            p = Add(m, r) y = Softmax(p) }""",
            n=np.array(2), go=np.array(True), big=np.array(-1e9, np.float32),
        ),
        k=np.array([[0, 1, 0, 1], [1, 0, 0, 0]]),
    )  # fmt: skip
    assert "Clip" in {node.op_type for node in narrow.graph.node}


@pytest.mark.parametrize("held", ["m", "SequenceConstruct(m, m)"])
def test_an_optional_stays_one(held: str) -> None:
    """Its type was lost where a function hands it on, and it was taken for a tensor."""
    is_sequence = "(" in held
    body = "k = SequenceConstruct(a, a) o = Optional(k)" if is_sequence else "o = Optional(a)"
    get = "r = OptionalGetElement(o) e = SequenceAt(r, zero)" if is_sequence else "e = OptionalGetElement(o)"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        g (float[2,4] x) => (float[2,4] y) <float[4,4] w> {{ m = MatMul(x, w) e = local.f(m) y = Relu(e) }}
        <domain: "local", opset_import: ["" : 18]> f (a) => (e) {{
            zero = Constant<value_int = 0>() {body} {get} }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    require_agreement(proto)


@pytest.mark.parametrize(
    ("control", "opset"),
    [
        ("y = If(go) <then_branch = b () => (float[2,4] a) { a = Neg(m) }, else_branch = e () => (float[2,4] d)"
         " { d = Relu(m) }>", 13),
        ("y = Loop(n, go, m) <body = b (int64 i, bool c, float[2,4] a) => (bool d, float[2,4] o) {"
         " d = Identity(c) o = MatMul(a, w) }>", 13),
        ("y = Scan<num_scan_inputs = 1, body = b (float[2,4] s, float[4] r) => (float[2,4] t) { t = Add(s, r) }>(m, x)",
         13),
    ],
)  # fmt: skip
def test_a_body_hands_on_bfloat16_only_at_an_opset_that_has_it(control: str, opset: int) -> None:
    proto = graph(
        f"(float[2,4] x, bool go) => (float[2,4] y) {{ m = MatMul(x, w) {control} }}", opset, n=np.array(2),
    )  # fmt: skip
    narrow = ir.to_proto(to_precision(ir.from_proto(proto), "bf16"))
    onnx.checker.check_model(narrow, full_check=True)
    feeds = {"x": X, "go": np.array(True)}
    exact, actual = (ReferenceEvaluator(each).run(None, feeds)[0] for each in (proto, narrow))
    np.testing.assert_allclose(actual, exact, atol=6 * 2.0**-8 * float(np.abs(exact).max()), rtol=0)


@pytest.mark.parametrize(
    "text",
    [
        "(float[2,4] x) => (float[2,4] y) { x_float16 = Relu(x) a = MatMul(x, w) b = MatMul(x_float16, w)"
        " y = Add(a, b) }",
        "(float[2,4] x) => (float[2,4] y, float[2,4] y_float16) { y = MatMul(x, w) y_float16 = Neg(y) }",
        "(float[2,4] x, float[2,4] w_float16) => (float[2,4] y, float[2,4] z) { s = SequenceConstruct(w)"
        " v = SequenceAt(s, zero) a = MatMul(x, w) y = MatMul(a, v) z = Neg(w_float16) }",
    ],
)
def test_a_name_that_a_cast_would_take_is_left_to_its_owner(text: str) -> None:
    more = {"w_float16": X} if "w_float16)" in text else {}
    narrow = require_agreement(graph(text, zero=np.array([0])), 8 * 2.0**-11, **more)
    names = [name for node in narrow.graph.node for name in node.output]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("source", ["RandomNormal<shape=[2,4]>()", "RandomUniform<shape=[2,4], dtype=1>()",
                                    "HannWindow(four)", "EyeLike<dtype=1>(k)", "ConstantOfShape(k_size)"])  # fmt: skip
def test_what_says_itself_what_it_makes_loads(source: str) -> None:
    """Random numbers, windows: not all have a type given, nor a kernel in 16 bits, and they may read nothing."""
    proto = graph(
        "(float[2,4] x, int64[2,4] k) => (float[2,4] y) { m = MatMul(x, w) k_size = Shape(k)"
        f" z = {source} q = Mul(z, zero) y = Add(m, q) }}",
        zero=np.array(0, np.float32), four=np.array(4),
    )  # fmt: skip
    require_agreement(proto, k=np.zeros((2, 4), np.int64))


@pytest.mark.parametrize("opset", [19, 21])
def test_quantized_weights_of_a_small_scale_keep_it(opset: int) -> None:
    """A scale of 1e-6 has 5 bits in float16, one of 1e-8 none: the weights are normal numbers all the same."""
    codes = RNG.integers(-127, 127, (3, 4, 1, 1)).astype(np.int8)
    proto = graph(
        "(float[2,4,5,5] x) => (float[2,3,5,5] y) { f = DequantizeLinear<axis=0>(q, qs)"
        " b = DequantizeLinear<axis=0>(c, cs) y = Conv(x, f, b) }",
        opset, q=codes, qs=np.array([1e-6, 3e-6, 1e-5], np.float32), c=RNG.integers(-99999, 99999, 3).astype(np.int32),
        cs=np.array([1e-8, 3e-8, 1e-7], np.float32),
    )  # fmt: skip
    require_agreement(proto, x=(300 * RNG.standard_normal((2, 4, 5, 5))).astype(np.float32))


def test_a_scale_with_all_its_digits_is_16_bit() -> None:
    text = "(float[2,4] x) => (float[2,3] y) { f = DequantizeLinear<axis=1>(q, qs) y = MatMul(x, f) }"
    codes = RNG.integers(-127, 127, (4, 3)).astype(np.int8)
    proto = graph(text, 19, q=codes, qs=np.array([0.01, 0.02, 0.03], np.float32))
    narrow = require_agreement(proto)
    stored = {tensor.name: tensor.data_type for tensor in narrow.graph.initializer}
    assert stored["qs"] == onnx.TensorProto.FLOAT16


def test_a_conversion_that_breaks_the_model_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(graph("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }"), tmp_path / "model.onnx")

    def broken(model: ir.Model, precision: str) -> ir.Model:
        result = model.clone()
        result.graph.initializers["w"].const_value = ir.tensor(W.astype(np.float16))
        result.graph.initializers["w"].type = ir.TensorType(ir.DataType.FLOAT16)
        return result

    monkeypatch.setattr(files, "to_precision", broken)
    with pytest.raises(NormdeployError, match="the conversion made a mistake, and nothing is written"):
        fold_file(tmp_path / "model.onnx", tmp_path / "out.onnx", precision="fp16")
    assert not (tmp_path / "out.onnx").exists()
