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

from normdeploy.engine.plugin_graph import plugin_form, to_plugins
from normdeploy.errors import InputError
from normdeploy.parity.plugins import with_plugins
from normdeploy.runtime.float64 import Float64Runner as float64
from normdeploy.runtime.float64 import NoFloat64Error


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


def test_of_a_sum_and_a_quantization_the_latter_is_taken_in() -> None:
    text = f"""g (float[2,3,8] x, float[2,3,8] r) => (int8[2,3,8] q)
        {{ s = Add (x, r) y = {LN} (s, g) q = QuantizeLinear (y, scale, zp) }}"""
    before = graph(text, g=GAMMA, scale=np.float32(0.03), zp=np.int8(0))
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == ["Add", "normdeploy::LayerNormQuantize"]
    require_same(before, after, x=X, r=R)


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
    "is made by DequantizeLinear": f"""g (float[2,3,8] x) => (float[2,3,8] y)
        {{ q = Constant <value = int8[8] {{1,2,3,4,5,6,7,8}}> () s = Constant <value = float {{0.5}}> ()
           h = DequantizeLinear (q, s) y = {LN} (x, h) }}""",
    "no fixed size": f"g (float[2,3,n] x) => (float[2,3,n] y) {{ y = {LN} (x, g) }}",
    "computes in double": "g (double[2,8] x, double[8] h) => (double[2,8] y) { y = LayerNormalization (x, h) }",
    "no LayerNorm or RMSNorm": "g (float[2,3,8] x) => (float[2,3,8] y) { y = Mul (x, g) }",
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
    with pytest.raises(InputError, match="no LayerNorm or RMSNorm"):
        to_plugins(model)


def require_near(before: ir.Model, after: ir.Model, **feeds: np.ndarray) -> None:
    """As :func:`require_same`, within half an ulp of 16 bits: onnx.reference rounds statistics where it casts."""
    expected = ReferenceEvaluator(ir.to_proto(before)).run(None, feeds)
    got = ReferenceEvaluator(ir.to_proto(with_definitions(after))).run(None, feeds)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=2.0**-9, atol=2.0**-9)


HALF = "float16[2,3,8]"
CAST_NORM = f"w = Cast <to = 1> (v) n = {LN} (w, g, b) y = Cast <to = 10> (n)"


def plugin_of(model: ir.Model) -> tuple[str, list[ir.DataType | None], list[ir.DataType | None]]:
    """Return the one plugin of a graph, and the types of what it reads and writes."""
    (node,) = (node for node in model.graph if node.domain == "normdeploy")
    return node.op_type, [v.dtype for v in node.inputs if v is not None], [v.dtype for v in node.outputs]


H, F = ir.DataType.FLOAT16, ir.DataType.FLOAT


def test_casts_around_a_float32_norm_are_taken_in() -> None:
    before = graph(f"g ({HALF} v) => ({HALF} y) {{ {CAST_NORM} }}", g=GAMMA, b=BETA)
    after = before.clone()
    assert to_plugins(after) == ()
    assert kinds(after) == ["normdeploy::LayerNorm"]
    assert plugin_of(after) == ("LayerNorm", [H, F, F], [H]), "gamma and beta stay float32"
    require_near(before, after, v=X.astype(np.float16))


def test_a_sum_that_is_rounded_before_the_cast_is_taken_in_too() -> None:
    text = f"g ({HALF} x, {HALF} r) => ({HALF} y, {HALF} v) {{ v = Add (x, r) {CAST_NORM} }}"
    before = graph(text, g=GAMMA, b=BETA)
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == ["normdeploy::AddLayerNorm"]
    assert plugin_of(after) == ("AddLayerNorm", [H, H, F, F], [H, H])
    require_near(before, after, x=X.astype(np.float16), r=R.astype(np.float16))


def test_a_quantization_of_what_was_cast_back_is_taken_in_too() -> None:
    text = f"g ({HALF} v) => (int8[2,3,8] q) {{ {CAST_NORM} q = QuantizeLinear (y, s, zp) }}"
    before = graph(text, g=GAMMA, b=BETA, s=np.float16(0.0625), zp=np.int8(0))
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == ["normdeploy::LayerNormQuantize"]
    assert plugin_of(after) == ("LayerNormQuantize", [H, F, F, F], [ir.DataType.INT8])


BACK = "y = Cast <to = 10> (n)"
NOT_TAKEN_IN = {
    "read in float32 too": (f"({HALF} v) => ({HALF} y, float[2,3,8] n)", CAST_NORM),
    "read by another node": (f"({HALF} v) => ({HALF} y, float[2,3,8] z)", f"{CAST_NORM} z = Relu (n)"),
    "cast to another type": (f"({HALF} v) => (bfloat16[2,3,8] y)", CAST_NORM.replace("10", "16")),
    "not cast back": (f"({HALF} v) => (float[2,3,8] n)", CAST_NORM.replace(BACK, "")),
    "of integers": (f"(int32[2,3,8] v) => ({HALF} y)", CAST_NORM),
    "a sum in float32": (
        f"({HALF} x, {HALF} r) => ({HALF} y)",
        f"p = Cast <to = 1> (x) q = Cast <to = 1> (r) w = Add (p, q) n = {LN} (w, g, b) {BACK}",
    ),
}


@pytest.mark.parametrize("why", NOT_TAKEN_IN)
def test_casts_that_round_elsewhere_stay(why: str) -> None:
    border, nodes = NOT_TAKEN_IN[why]
    before = graph(f"g {border} {{ {nodes} }}", g=GAMMA, b=BETA)
    after = before.clone()
    to_plugins(after)
    assert sum(kind == "Cast" for kind in kinds(after)) == sum(kind == "Cast" for kind in kinds(before))
    assert plugin_of(after)[1] == [F] * len(plugin_of(after)[1])


def test_a_cast_that_others_read_stays_for_them() -> None:
    text = f"g ({HALF} v) => ({HALF} y, float[2,3,8] z) {{ {CAST_NORM} z = Relu (w) }}"
    before = graph(text, g=GAMMA, b=BETA)
    after = before.clone()
    to_plugins(after)
    assert kinds(after) == ["Cast", "normdeploy::LayerNorm", "Relu"]


@pytest.mark.parametrize(("gamma", "size"), [(np.full(8, 2, np.float32), 1), (GAMMA, 8), (None, 1)])
def test_weights_of_one_value_are_one_element(gamma: np.ndarray | None, size: int) -> None:
    """They are no longer written out: one element stands for all, and the kernel reads just it."""
    ones = np.ones(8, np.float32) if gamma is None else gamma
    before = graph(f"g (float[2,3,8] x) => (float[2,3,8] y) {{ y = {LN} (x, g) }}", g=ones)
    after = before.clone()
    to_plugins(after)
    shapes = [value.shape.numpy() for value in after.graph[0].inputs[1:]]  # type: ignore[union-attr]  # constants have one
    assert shapes == [(size,), (size,)]
    require_same(before, after, x=X)


@pytest.mark.parametrize("taken", ["an output of a node", "an input"])
def test_a_constant_takes_no_name_that_is_there(taken: str) -> None:
    is_input = taken == "an input"
    inputs, other = ("float[N,8] x, float[N,8] t", "") if is_input else ("float[N,8] x", "t = Neg (x)")
    text = f"g ({inputs}) => (float[N,8] y, float[N,8] z) {{ {other} y = {LN} (x, g) z = Neg (t) }}"
    before = graph(text, g=GAMMA)
    (before.graph.inputs[1] if is_input else before.graph[0].outputs[0]).name = "y.beta"
    after = before.clone()
    to_plugins(after)
    written = ir.to_proto(after).graph
    made = [name for node in written.node for name in node.output]
    made += [item.name for item in (*written.input, *written.initializer)]
    assert len(made) == len(set(made))
    require_same(before, after, x=X[0], **({"y.beta": R[0]} if is_input else {}))


def test_a_quantization_in_a_body_stays_there() -> None:
    model = graph(
        """g (float[N,8] x, bool c) => (int8[N,8] q) {
            y = LayerNormalization (x, g)
            q = If (c) <then_branch = a () => (int8[N,8] t) { t = QuantizeLinear (y, s, z) },
                        else_branch = b () => (int8[N,8] e) { e = Cast <to = 3> (x) }>
        }""",
        g=GAMMA, s=np.array(0.1, np.float32), z=np.array(0, np.int8),
    )  # fmt: skip
    to_plugins(model)
    assert kinds(model) == ["normdeploy::LayerNorm", "If"]


def test_a_negative_epsilon_stays() -> None:
    model = graph(
        "g (float[N,8] x) => (float[N,8] y) { y = LayerNormalization <epsilon = -0.001> (x, g) }",
        g=GAMMA,
    )
    with pytest.raises(InputError, match="its epsilon is negative"):
        to_plugins(model)


def test_constants_of_nodes_are_constants() -> None:
    before = graph("""g (float[N,2] x) => (int8[N,2] q) {
        g = Constant <value = float[2] {0.5,-2}> ()
        y = LayerNormalization (x, g)
        s = Constant <value = float {0.25}> ()
        z = Constant <value = int8 {0}> ()
        q = QuantizeLinear (y, s, z)
    }""")
    after = before.clone()
    to_plugins(after)
    assert [kind for kind in kinds(after) if kind != "Constant"] == ["normdeploy::LayerNormQuantize"]
    require_same(before, after, x=X[0, :, :2])


def test_a_norm_in_a_body_stays_and_says_why() -> None:
    scan = graph(
        "g (float[3,2,8] x) => (float[3,2,8] q) { q = Scan <num_scan_inputs = 1, body = b (float[2,8] i) =>"
        f" (float[2,8] o) {{ o = {LN} (i, g) }}> (x) }}",
        g=GAMMA,
    )
    with pytest.raises(InputError, match="o is not run by the plugin: it lies in a body of If, Loop or Scan"):
        to_plugins(scan)
    assert kinds(scan) == ["Scan"]


MEAN = "m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) p = Pow (d, two) v = ReduceMean <axes = [-1]> (p)"
DIVIDED = "w = Add (v, e) s = Sqrt (w) n = Div (d, s)"
ROOT = f"p = Pow (x, two) v = ReduceMean <axes = [-1]> (p) {DIVIDED.replace('(d, s)', '(x, s)')}"
SPELLED = {
    "layer norm": (f"{MEAN} {DIVIDED} k = Mul (n, g) y = Add (k, b)", "LayerNorm", []),
    "its gamma and beta on the left": (f"{MEAN} {DIVIDED} k = Mul (g, n) y = Add (b, k)", "LayerNorm", []),
    "no beta": (f"{MEAN} {DIVIDED} y = Mul (n, g)", "LayerNorm", []),
    "two gammas": (f"{MEAN} {DIVIDED} k = Mul (n, g) l = Add (k, b) y = Mul (l, g)", "LayerNorm", ["Mul"]),
    "two sums": (f"{MEAN} {DIVIDED} k = Add (n, g) y = Add (k, b)", "LayerNorm", ["Add"]),
    "a gamma of rows": (f"{MEAN} {DIVIDED} y = Mul (n, rows)", "LayerNorm", ["Mul"]),
    "RMS norm": (f"{ROOT} y = Mul (n, g)", "RMSNorm", []),
    "RMS norm and a sum": (f"{ROOT} k = Mul (n, g) y = Add (k, b)", "RMSNorm", ["Add"]),
}  # fmt: skip


def spelled(nodes: str, inputs: str = "float[N,3,8] x", outputs: str = "float[N,3,8] y") -> ir.Model:
    """Return a graph at opset 13, which has neither norm."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : 13]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rows = RANDOM.standard_normal((3, 1)).astype(np.float32)
    weights = {"g": GAMMA, "b": BETA, "two": np.float32(2), "e": np.float32(1e-5), "rows": rows}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in weights.items()
        if any(name in node.input for node in proto.graph.node)
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


@pytest.mark.parametrize("what", SPELLED)
def test_what_is_spelled_out_becomes_a_plugin_at_any_opset(what: str) -> None:
    nodes, kind, rest = SPELLED[what]
    before = spelled(nodes)
    after, (said, *_) = with_plugins(before)
    assert said.text == "spelled out in elementary operators, and run by the plugin, which needs no opset: n"
    assert said.code == "NF418"
    assert [name for name in kinds(after) if name not in rest] == [f"normdeploy::{kind}"]
    expected = float64(before)({"x": X})["y"]
    np.testing.assert_allclose(float64(after)({"x": X})["y"], expected, rtol=0, atol=1e-14)


ISLAND = f"x = Cast <to = 1> (v16) {MEAN} {DIVIDED}"
"""A norm spelled out in float32 between casts, as a conversion to 16 bits leaves it."""
BEHIND = {
    "beta": ("c = Cast <to = TYPE> (n) y = Add (c, b16)", "LayerNorm", []),
    "gamma and beta": ("c = Cast <to = TYPE> (n) k = Mul (c, g16) y = Add (k, b16)", "LayerNorm", []),
    "gamma in front": ("k = Mul (n, g) c = Cast <to = TYPE> (k) y = Add (c, b16)", "LayerNorm", []),
    "two betas": ("k = Add (n, b) c = Cast <to = TYPE> (k) y = Add (c, b16)", "LayerNorm", ["Add"]),
    "no constant": ("c = Cast <to = TYPE> (n) y = Add (c, v16)", "LayerNorm", ["Add"]),
    "read by another": ("c = Cast <to = TYPE> (n) r = Relu (c) k = Mul (c, g16) y = Add (k, r)", "LayerNorm",
                        ["Relu", "Mul", "Add"]),
}  # fmt: skip


def narrow_spelled(nodes: str, name: str, shape: str = "N,3,8") -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return a graph of 16 bits (float16 or bfloat16) at opset 13, and its constants as NumPy has them."""
    kind = np.dtype(name)
    number = int(ir.DataType.from_numpy(kind))
    proto = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["" : 13]> g ({name}[{shape}] v16) => ({name}[{shape}] y)'
        f" {{ {ISLAND} {nodes.replace('TYPE', str(number))} }}"
    )
    weights = {
        "g": GAMMA,
        "b": BETA,
        "g16": GAMMA.astype(kind),
        "b16": BETA.astype(kind),
        "two": np.float32(2),
        "s16": kind.type(2),
    }
    for key, array in (weights | {"e": np.float32(1e-5)}).items():
        if any(key in node.input for node in proto.graph.node):
            held = ir.Tensor(np.asarray(array), name=key)
            proto.graph.initializer.append(ir.to_proto(held))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True)), weights


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("what", BEHIND)
def test_gamma_and_beta_behind_the_cast_of_what_is_spelled_out_are_taken_in(what: str, name: str) -> None:
    nodes, kind, rest = BEHIND[what]
    before, weights = narrow_spelled(nodes, name)
    after, (said, *_) = with_plugins(before)
    assert said.startswith("spelled out")
    assert kinds(after) == [f"normdeploy::{kind}", *rest]
    _, read, _ = plugin_of(after)
    assert read[1:] == [F] * (len(read) - 1), "gamma and beta are float32"
    feeds = {"v16": X.astype(name)}
    np.testing.assert_allclose(float64(after)(feeds)["y"], float64(before)(feeds)["y"], rtol=0, atol=1e-13)
    if what == "gamma and beta":
        x, (g, b) = feeds["v16"].astype(np.float64), (weights[key].astype(np.float64) for key in ("g16", "b16"))
        centred = x - x.mean(-1, keepdims=True)
        exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float64(np.float32(1e-5))) * g + b
        np.testing.assert_allclose(float64(after)(feeds)["y"], exact, rtol=0, atol=1e-12)


def test_a_norm_behind_whose_cast_its_beta_stands_and_that_stays_is_as_it_was() -> None:
    """It goes over too many elements for the kernel."""
    nodes = "c = Cast <to = TYPE> (n) k = Mul (c, s16) y = Add (k, s16)"
    before, _ = narrow_spelled(nodes, "float16", "1,262145")
    after = before.clone()
    with pytest.raises(InputError, match="262,145 elements"):
        to_plugins(after)
    assert kinds(after) == kinds(before)
    assert [[v.name for v in n.inputs if v] for n in after.graph] == [
        [v.name for v in n.inputs if v] for n in before.graph
    ]


def test_a_sum_in_front_of_what_is_spelled_out_is_taken_in() -> None:
    nodes = f"x = Add (a, r) {MEAN} {DIVIDED} k = Mul (n, g) l = Add (k, b) y = Add (l, x)"
    before = spelled(nodes, "float[N,3,8] a, float[N,3,8] r")
    after, _ = with_plugins(before)
    assert kinds(after) == ["normdeploy::AddLayerNorm", "Add"]
    feeds = {"a": X, "r": R}
    np.testing.assert_allclose(float64(after)(feeds)["y"], float64(before)(feeds)["y"], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("nodes", "outputs", "why"),
    [
        (f"{MEAN} {DIVIDED} y = Mul (n, g)", "float[N,3,8] y, float[N,3,1] v", "is an output"),
        (f"{MEAN.replace('-1', '-2')} {DIVIDED} y = Mul (n, g)", "float[N,3,8] y", "are not the last ones"),
        (f"{MEAN} s = Sqrt (v) w = Add (s, e) n = Div (d, w) y = Mul (n, g)", "float[N,3,8] y", "to the deviation"),
    ],
)
def test_what_is_spelled_out_and_no_plugin_says_why(nodes: str, outputs: str, why: str) -> None:
    model = spelled(nodes, outputs=outputs)
    with pytest.raises(InputError, match=why):
        with_plugins(model)


def test_what_is_spelled_out_and_stays_is_as_it_was() -> None:
    """Of two the first is a plugin, and the second goes over too many elements for the kernel."""
    second = "M = ReduceMean <axes = [-1]> (t) D = Sub (t, M) P = Pow (D, two) V = ReduceMean <axes = [-1]> (P)"
    second += " W = Add (V, e) S = Sqrt (W) z = Div (D, S)"
    before = spelled(f"{MEAN} {DIVIDED} y = Mul (n, g) {second}", "float[N,3,8] x, float[1,262145] t",
                     "float[N,3,8] y, float[1,262145] z")  # fmt: skip
    after, said = with_plugins(before)
    assert kinds(after) == ["normdeploy::LayerNorm", *(k for k in kinds(before)[-7:])]
    assert "262,145 elements" in said[0]
    onnx.checker.check_model(ir.to_proto(with_definitions(after)), full_check=True)


def test_an_input_with_a_default_tells_how_to_make_it_a_constant() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,8] x, float[8] k) => (float[2,8] y)'
    proto = onnx.parser.parse_model(f"{text} {{ y = LayerNormalization (x, k) }}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(GAMMA, "k"))
    with pytest.raises(InputError, match="--inputs-are-constants k makes it a constant"):
        with_plugins(ir.from_proto(proto))
    proto.ir_version = 3  # where every initializer is an input, and a constant
    assert kinds(with_plugins(ir.from_proto(proto))[0]) == ["normdeploy::LayerNorm"]


FOREIGN = {
    "another operator": ("y = LayerNormalization (x, k) z = normdeploy.Other (y)", 1),
    "an operator of the same name": ("y = LayerNormalization (x, k) z = normdeploy.LayerNorm (y)", 1),
    "another version": ("y = LayerNormalization (x, k) z = normdeploy.LayerNorm <axis = -1> (y, k, k)", 2),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_a_domain_of_that_name_that_is_somebody_elses(what: str) -> None:
    nodes, version = FOREIGN[what]
    text = f'<ir_version: 8, opset_import: ["" : 17, "normdeploy" : {version}]> g (float[2,8] x) => (float[2,8] z)'
    proto = onnx.parser.parse_model(f"{text} {{ {nodes} }}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(GAMMA, "k"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert plugin_form(model) is None
    with pytest.raises(InputError, match="operators of its own in the domain 'normdeploy'"):
        with_plugins(model)
    with pytest.raises(NoFloat64Error, match="no float64"):
        float64(model)({"x": X[0, :2]})


def test_a_function_in_that_domain_is_inlined() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "normdeploy" : 3]> g (float[2,8] x) => (float[2,8] z)'
    function = '<domain: "normdeploy", opset_import: ["" : 17]> LayerNorm (a) => (c) { c = Relu (a) }'
    proto = onnx.parser.parse_model(
        f"{text} {{ y = LayerNormalization (x, k) z = normdeploy.LayerNorm (y) }} {function}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(GAMMA, "k"))
    after, _ = with_plugins(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    assert kinds(after) == ["normdeploy::LayerNorm", "Relu"]
    assert not after.functions
    assert after.opset_imports["normdeploy"] == 1


def test_a_graph_of_plugins_is_not_made_one_again() -> None:
    after, _ = with_plugins(graph(f"g (float[2,8] x) => (float[2,8] y) {{ y = {LN} (x, g) }}", g=GAMMA))
    with pytest.raises(InputError, match="has plugins already"):
        with_plugins(after)


def test_a_scale_that_its_type_does_not_hold_is_left_to_its_operators() -> None:
    """Two constants in front of the division are one scale, whose float32 product would be another."""
    nodes = f"{MEAN} w = Add (v, e) s = Sqrt (w) t = Mul (d, g) u = Mul (t, b) y = Div (u, s)"
    with pytest.raises(InputError, match="its scale is a product of constants that its type does not hold"):
        with_plugins(spelled(nodes))
