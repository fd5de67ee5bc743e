"""Norms become plugins where they can, and the graph computes what it did."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from plugin_definitions import with_definitions

from normdeploy.engine.plugin_graph import to_plugins
from normdeploy.errors import InputError


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    """Return the model of ONNX ``text`` (opset 23) with ``weights`` as initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def kinds(model: ir.Model) -> list[str]:
    return [f"{node.domain}::{node.op_type}".lstrip(":") for node in model.graph]


def require_same(before: ir.Model, after: ir.Model, **feeds: np.ndarray) -> None:
    """Hold ``after``, its plugins taken for what they are defined as, to ``before``."""
    defined = ir.to_proto(with_definitions(after))
    onnx.checker.check_model(defined, full_check=True)
    assert [o.name for o in defined.graph.output] == [str(o.name) for o in before.graph.outputs]
    expected = ReferenceEvaluator(ir.to_proto(before)).run(None, feeds)
    got = ReferenceEvaluator(defined).run(None, feeds)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


RANDOM = np.random.default_rng(0)
GAMMA, BETA = RANDOM.standard_normal(8).astype(np.float32), RANDOM.standard_normal(8).astype(np.float32)
X, R = (RANDOM.standard_normal((2, 3, 8)).astype(np.float32) for _ in range(2))
LN = "LayerNormalization <epsilon = 0.001>"


def test_a_norm_becomes_a_plugin() -> None:
    before = graph(f"g (float[2,3,8] x) => (float[2,3,8] y) {{ y = {LN} (x, g, b) }}", g=GAMMA, b=BETA)
    after = before.clone()
    assert to_plugins(after) == ()
    assert kinds(after) == ["normdeploy::LayerNorm"]
    attributes = after.graph[0].attributes
    assert attributes.get_float("epsilon") == pytest.approx(0.001)
    assert attributes.get_int("axis") == -1
    assert attributes["plugin_namespace"].as_string() == "normdeploy"
    assert attributes["plugin_version"].as_string() == "1"
    assert attributes.get_int("aot") == 1
    require_same(before, after, x=X)


def test_a_sum_in_front_is_its_second_output() -> None:
    text = f"""g (float[n,3,8] x, float[n,3,8] r) => (float[n,3,8] z, float[n,3,8] s)
        {{ s = Add (x, r) y = {LN} (s, g) z = Add (y, s) }}"""
    before = graph(text, g=GAMMA)
    after = before.clone()
    assert to_plugins(after) == ()
    assert kinds(after) == ["normdeploy::AddLayerNorm", "Add"]
    require_same(before, after, x=X, r=R)


@pytest.mark.parametrize(("zero", "kind"), [(np.int8(0), "INT8"), (ml_dtypes.float8_e4m3fn(0), "FLOAT8E4M3FN")])
def test_quantization_behind_is_taken_in(zero: np.generic, kind: str) -> None:
    text = f"""g (float[2,3,8] x) => (float[2,3,8] z)
        {{ y = {LN} (x, g, b) q = QuantizeLinear (y, s, zp) z = DequantizeLinear (q, s) }}"""
    weights = {"s": np.float32(0.03), "g": GAMMA, "b": BETA}
    proto_zero = onnx.helper.make_tensor("zp", getattr(onnx.TensorProto, kind), [], [float(zero)])
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {text}')
    arrays = (onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    model.graph.initializer.extend([*arrays, proto_zero])
    before = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    after = before.clone()
    assert to_plugins(after) == ()
    assert kinds(after) == ["normdeploy::LayerNormQuantize", "DequantizeLinear"]
    require_same(before, after, x=X)


def test_an_rms_norm_over_two_axes() -> None:
    gamma = RANDOM.standard_normal((3, 8)).astype(np.float32)
    before = graph("g (float[2,3,8] x) => (float[2,3,8] y) { y = RMSNormalization <axis = 1> (x, g) }", g=gamma)
    after = before.clone()
    assert to_plugins(after) == ()
    assert kinds(after) == ["normdeploy::RMSNorm"]
    assert after.graph[0].attributes.get_int("axis") == -2
    require_same(before, after, x=X)


def test_weights_that_broadcast_are_written_out() -> None:
    text = f"g (float[2,3,8] x) => (float[2,3,8] y) {{ y = {LN} (x, g, b) }}"
    before = graph(text, g=GAMMA.reshape(1, 1, 8), b=np.ones(1, np.float32))
    after = before.clone()
    to_plugins(after)
    assert [after.graph[0].inputs[i].shape.numpy() for i in (1, 2)] == [(8,), (8,)]  # type: ignore[union-attr]  # constants have one
    require_same(before, after, x=X)


STAYS = {
    "its mean or deviation": f"g (float[2,3,8] x) => (float[2,3,8] y, float[2,3,1] m) {{ y, m = {LN} (x, g) }}",
    "is not constant": f"g (float[2,3,8] x, float[8] h) => (float[2,3,8] y) {{ y = {LN} (x, h) }}",
    "no fixed size": f"g (float[2,3,n] x) => (float[2,3,n] y) {{ y = {LN} (x, g) }}",
    "computes in double": "g (double[2,8] x, double[8] h) => (double[2,8] y) { y = LayerNormalization (x, h) }",
    "no LayerNormalization": "g (float[2,3,8] x) => (float[2,3,8] y) { y = Mul (x, g) }",
}


@pytest.mark.parametrize("reason", STAYS)
def test_what_no_plugin_can_be_stays_with_its_reason(reason: str) -> None:
    model = graph(STAYS[reason], g=GAMMA)
    before = kinds(model)
    with pytest.raises(InputError, match=reason):
        to_plugins(model)
    assert kinds(model) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a sum that broadcasts, or with a constant, is no residual; nor a quantization with a zero point or two readers
        ("y0 = Add (x, r)", ["Add", "normdeploy::LayerNorm", "Identity"]),
        ("y0 = Add (x, c)", ["Add", "normdeploy::LayerNorm", "Identity"]),
    ],
)
def test_a_sum_that_broadcasts_stays(text: str, expected: list[str]) -> None:
    model = f"g (float[2,3,8] x, float[1,3,8] r) => (float[2,3,8] z) {{ {text} y = {LN} (y0, g) z = Identity (y) }}"
    before = graph(model, g=GAMMA, c=R)
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == expected
    require_same(before, after, x=X, r=R[:1])


def test_a_quantization_with_a_zero_point_stays() -> None:
    text = f"g (float[2,3,8] x) => (int8[2,3,8] q) {{ y = {LN} (x, g) q = QuantizeLinear (y, s, zp) }}"
    before = graph(text, g=GAMMA, s=np.float32(0.1), zp=np.int8(3))
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == ["normdeploy::LayerNorm", "QuantizeLinear"]
    require_same(before, after, x=X)


def test_a_twin_in_another_domain_is_left_alone() -> None:
    text = '<ir_version: 11, opset_import: ["" : 23, "other" : 1]> g (float[2,8] x) => (float[2,8] y)'
    model = ir.from_proto(onnx.parser.parse_model(f"{text} {{ y = other.LayerNormalization (x) }}"))
    with pytest.raises(InputError, match="no LayerNormalization"):
        to_plugins(model)
