"""The conversion to 16 bits: every graph is executed and compared with its float32 original in float64 terms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from normdeploy.checkpoint import load
from normdeploy.errors import InputError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.graph import MODULE_KEY
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Criteria, judge
from normdeploy.pipeline.engines import computes_in
from normdeploy.precision import DTYPES, Precision, norm_chains, to_precision, wrong_precision
from normdeploy.precision.widen import widened
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import parse

EPS = {"fp16": 2.0**-10, "bf16": 2.0**-7}
ROOT = Path(__file__).parent.parent
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
DIGITS = parse(["x:N=1..2..3x1x8x8@f32"])
C = 6  # no other size below equals it
RNG = np.random.default_rng(0)


def graph(text: str, opset: int = 18, ir_version: int = 10, **weights: np.ndarray) -> ir.Model:
    """The model that ``text`` spells; each node is named, and owned by the module, after its output."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph.all_nodes():
        node.name = f"node_{node.outputs[0].name}"
        node.metadata_props[MODULE_KEY] = f"net.{node.outputs[0].name}"
    return model


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    """The first output. 16-bit graphs run in ONNX's evaluator: onnxruntime would run most of them in float32."""
    if not any(value.dtype in NARROW for node in model.graph.all_nodes() for value in node.outputs):
        return in_onnxruntime(model, **feeds)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0])


def in_onnxruntime(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    """The first output, also of what ONNX's evaluator gets wrong: stash_type, and a Loop without a condition."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def error(actual: np.ndarray, reference: np.ndarray) -> float:
    exact = reference.astype(np.float64)
    return float(np.sqrt(((actual.astype(np.float64) - exact) ** 2).mean() / (exact**2).mean()))


def types_of(model: ir.Model, op_type: str) -> list[set[str]]:
    """The floating-point types that each node of one operator reads."""
    return [
        {value.dtype.name for value in node.inputs if value is not None and value.dtype in DTYPES.values()}
        for node in model.graph.all_nodes()
        if node.op_type == op_type
    ]


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale + shift).astype(np.float32)


def conv_net(opset: int) -> ir.Model:
    return graph(
        """(float[N,3,9,9] x) => (float[N,5] y) {
            conv = Conv<pads=[1,1,1,1]>(x, w, b)
            bn = BatchNormalization(conv, s, t, m, v)
            act = Relu(bn)
            pool = GlobalAveragePool(act)
            flat = Flatten(pool)
            y = Gemm<transB=1>(flat, fc, fb) }""",
        opset,
        w=normal(C, 3, 3, 3, scale=0.2),
        b=normal(C),
        s=normal(C),
        t=normal(C),
        m=normal(C),
        v=np.abs(normal(C)) + 0.5,
        fc=normal(5, C),
        fb=normal(5),
    )


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 18), ("bf16", 22)])
def test_a_convolutional_net_computes_in_16_bits_between_float32_borders(precision: Precision, opset: int) -> None:
    model = conv_net(opset)
    x = normal(4, 3, 9, 9)
    exact = run(model, x=x)
    narrow = to_precision(model, precision)
    wide = ir.DataType.FLOAT
    assert [value.dtype for value in (*narrow.graph.inputs, *narrow.graph.outputs)] == [wide, wide]
    assert [value.name for value in narrow.graph.outputs] == ["y"]
    assert types_of(narrow, "Conv") == types_of(narrow, "Gemm") == [{DTYPES[precision].name}]
    assert types_of(narrow, "BatchNormalization") == [{"FLOAT"}]
    actual = run(narrow, x=x)
    # six roundings of relative size eps/2 in a row, of which the largest weigh most
    assert error(actual, exact) < 3 * EPS[precision]
    assert error(actual, exact) > EPS[precision] / 100  # it really was rounded


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_without_convolutions_and_products_what_else_computes_decides(precision: Precision) -> None:
    """A graph of sums and activations in 16 bits is not held to what eager loses in float32."""
    model = graph("(float[N, 4] x) => (float[N, 4] y) { a = Add(x, b)  y = Tanh(a) }", b=normal(4))
    assert computes_in(to_precision(model, precision)) == precision


def test_the_given_model_is_not_changed() -> None:
    model = conv_net(18)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    to_precision(model, "fp16")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_fp32_is_a_copy_and_a_converted_model_is_not_converted_again() -> None:
    model = conv_net(18)
    same = to_precision(model, "fp32")
    assert same is not model
    assert ir.to_proto(same).SerializeToString() == ir.to_proto(model).SerializeToString()
    once = to_precision(model, "fp16")
    assert ir.to_proto(to_precision(once, "fp16")).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_a_model_of_16_bits_without_convolutions_and_products_is_not_converted_again() -> None:
    """Nothing that decides the precision is in it: the square in float32 was cast to 16 bits twice."""
    text = """(float16[N, 4] x) => (float16[N, 4] y) {
        wide = Cast <to = 1> (x)  square = Mul (wide, wide)  back = Cast <to = 10> (square)  y = Tanh (back)
    }"""
    model = graph(text)
    assert ir.to_proto(to_precision(model, "fp16")) == ir.to_proto(model)
    once = to_precision(graph("(float[N, 4] x) => (float[N, 4] y) { a = Add(x, b)  y = Tanh(a) }", b=normal(4)), "fp16")
    assert ir.to_proto(to_precision(once, "fp16")) == ir.to_proto(once)


@pytest.mark.parametrize("given", ["fp16", "bf16"])
def test_a_16_bit_model_is_widened_exactly_and_given_another_precision(given: Precision) -> None:
    model = conv_net(22)
    narrow = to_precision(model, given)
    wide = to_precision(narrow, "fp32")
    assert {value.dtype for value in wide.graph.initializers.values()} <= {ir.DataType.FLOAT, ir.DataType.INT64}
    rounded = [tensor for name, tensor in arrays(narrow).items() if tensor.dtype.name in ("float16", "bfloat16")]
    widened = arrays(wide)
    assert rounded
    for name, tensor in arrays(narrow).items():
        np.testing.assert_array_equal(widened[name], tensor.astype(widened[name].dtype), strict=True)
    x = normal(2, *[dim if isinstance(dim, int) else 2 for dim in model.graph.inputs[0].shape][1:])
    name = str(model.graph.inputs[0].name)
    assert error(run(wide, **{name: x}), run(model, **{name: x})) < 4 * EPS[given]
    other: Precision = "bf16" if given == "fp16" else "fp16"
    again = to_precision(narrow, other)
    assert types_of(again, "Conv")[0] == {DTYPES[other].name}


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}


def test_an_operator_without_a_16_bit_form_at_this_opset_is_refused_by_module_name() -> None:
    with pytest.raises(InputError, match=r"opset 18 these have no bfloat16 form(.|\n)*net\.conv(.|\n)*--opset 22"):
        to_precision(conv_net(18), "bf16")


def test_old_opsets_and_unknown_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="opset 6 has no float16"):
        to_precision(conv_net(6), "fp16")
    with pytest.raises(InputError, match="opset 12 has no bfloat16"):
        to_precision(conv_net(12), "bf16")
    with pytest.raises(InputError, match="'fp8'"):
        to_precision(conv_net(18), "fp8")  # type: ignore[arg-type]


def test_a_layer_norm_takes_16_bit_data_and_keeps_float32_statistics() -> None:
    model = graph(
        f"(float[N,4,{C}] x) => (float[N,4,5] y) {{ ln = LayerNormalization(x, s, t) y = MatMul(ln, w) }}",
        s=normal(C),
        t=normal(C),
        w=normal(C, 5),
    )
    narrow = to_precision(model, "fp16")
    assert types_of(narrow, "LayerNormalization") == [{"FLOAT16"}]
    x = normal(3, 4, C, scale=300)  # squares of which overflow float16
    assert error(in_onnxruntime(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


@pytest.mark.parametrize(
    ("op", "opset", "width"),
    [
        ("InstanceNormalization(a, s, t)", 18, C),
        ("GroupNormalization<num_groups=2>(a, s, t)", 18, 2),
        ("BatchNormalization(a, s, t, t, s)", 18, C),
    ],
)
def test_norms_without_float32_statistics_of_their_own_become_islands(op: str, opset: int, width: int) -> None:
    model = graph(
        f"(float[N,{C},4,4] x) => (float[N,{C},4,4] y) {{ a = Relu(x) n = {op} y = Relu(n) }}",
        opset,
        s=np.abs(normal(width)) + 0.5,
        t=normal(width),
    )
    narrow = to_precision(model, "fp16")
    kind = op.partition("(")[0].partition("<")[0]
    assert types_of(narrow, kind) == [{"FLOAT"}]
    assert types_of(narrow, "Relu") == [{"FLOAT16"}, {"FLOAT16"}]
    casts = [node for node in narrow.graph if node.op_type == "Cast" and node.metadata_props[MODULE_KEY] == "net.n"]
    assert len(casts) == 2
    if kind != "GroupNormalization":  # onnxruntime runs that with per-group scales wrongly at opset 18
        x = normal(3, C, 4, 4, scale=300)
        assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


DECOMPOSED = {
    "layer norm": """m = ReduceMean(a, axes) d = Sub(a, m) q = Mul(d, d) v = ReduceMean(q, axes)
                     e = Add(v, eps) r = Sqrt(e) n = Div(d, r)""",
    "layer norm by Pow": """m = ReduceMean(a, axes) d = Sub(a, m) q = Pow(d, two) v = ReduceMean(q, axes)
                            e = Add(v, eps) r = Pow(e, minus_half) n = Mul(d, r)""",
    "layer norm by E[x^2]": """m = ReduceMean(a, axes) q = Mul(a, a) v = ReduceMean(q, axes) mm = Mul(m, m)
                               k = Sub(v, mm) e = Add(k, eps) r = Sqrt(e) d = Sub(a, m) n = Div(d, r)""",
    "rms norm": "q = Mul(a, a) v = ReduceMean(q, axes) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) n = Mul(a, i)",
    "unbiased": """m = ReduceMean(a, axes) d = Sub(a, m) q = Mul(d, d) v = ReduceMean(q, axes) u = Mul(v, bessel)
                   e = Sqrt(u) r = Add(e, eps) k = Sub(a, m) n = Div(k, r)""",
    "two centrings": """m = ReduceMean(a, axes) d = Sub(a, m) k = Sub(a, m) q = Mul(d, k) s2 = ReduceSum(q, axes)
                        v = Mul(s2, share) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) n = Mul(d, i)""",
    "weighted": """m = ReduceMean(a, axes) d = Sub(a, m) p = Pow(d, two) q = Mul(p, weights) v = ReduceSum(q, axes)
                   e = Max(v, eps) r = Sqrt(e) n = Div(d, r)""",
    "l2 norm": "r = ReduceL2(a, axes) e = Max(r, eps) n = Div(a, e)",
}


def decomposed(name: str) -> ir.Model:
    return graph(
        f"(float[N,4,{C}] x) => (float[N,4,5] y) {{ a = Relu(x) {DECOMPOSED[name]} g = Mul(n, s) y = MatMul(g, w) }}",
        axes=np.array([-1]),
        two=np.array(2, np.float32),
        minus_half=np.array(-0.5, np.float32),
        bessel=np.array(C / (C - 1), np.float32),
        share=np.array(1 / C, np.float32),
        weights=np.full(C, 1 / C, np.float32),
        eps=np.array(1e-12, np.float32),
        s=normal(C),
        w=normal(C, 5),
    )


@pytest.mark.parametrize("name", DECOMPOSED)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_norm_spelled_out_is_a_float32_island(name: str, precision: Precision) -> None:
    model = decomposed(name)
    assert len(norm_chains(model)) == 1
    narrow = to_precision(model, precision)
    for kind in ("ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt", "Sub", "Div", "Reciprocal"):
        assert all(types == {"FLOAT"} for types in types_of(narrow, kind)), kind
    assert types_of(narrow, "MatMul") == [{DTYPES[precision].name}]
    x = normal(3, 4, C, scale=300, shift=300)
    actual, exact = run(narrow, x=x), run(model, x=x)
    assert error(actual, exact) < 3 * EPS[precision]


def test_the_same_norm_without_the_island_overflows() -> None:
    """What the island is for: the graph that it replaces is wrong."""
    model = decomposed("layer norm")
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in [*model.graph.inputs, *model.graph.outputs, *(out for node in model.graph for out in node.outputs)]:
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    x = normal(3, 4, C, scale=300).astype(np.float16)
    assert (run(model, x=x) == 0).any()  # divided by infinity


def test_a_mean_of_squares_that_is_no_norm_is_not_an_island() -> None:
    model = graph(
        f"(float[N,{C}] x) => (float[N,1] y) {{ q = Mul(x, x) y = ReduceMean(q, axes) }}", axes=np.array([-1])
    )
    assert norm_chains(model) == ()
    assert types_of(to_precision(model, "fp16"), "ReduceMean") == [{"FLOAT16"}]


@pytest.mark.parametrize("guard", ["Max(a, eps)", "Add(a, eps)", "Clip(a, eps)"])
def test_a_division_guarded_by_an_epsilon_that_is_zero_in_float16_stays_guarded(guard: str) -> None:
    model = graph(
        f"(float[N,{C}] x) => (float[N,{C}] y) {{ a = Abs(x) g = {guard} d = Div(x, g) y = Relu(d) }}",
        eps=np.array(1e-12, np.float32),
    )
    x = normal(3, C)
    x[1] = 0
    narrow = to_precision(model, "fp16")
    assert types_of(narrow, "Div") == [{"FLOAT"}]
    assert types_of(narrow, "Relu") == [{"FLOAT16"}]
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


def test_statistics_that_a_norm_gives_out_stay_float32() -> None:
    model = graph(
        f"(float[N,4,{C}] x) => (float[N,4,{C}] y, float[N,4,1] m) {{ y, m = LayerNormalization(x, s) }}", s=normal(C)
    )
    narrow = to_precision(model, "bf16")
    (norm,) = (node for node in narrow.graph if node.op_type == "LayerNormalization")
    assert [out.dtype.name for out in norm.outputs] == ["BFLOAT16", "FLOAT"]


def test_filled_tensors_change_their_type() -> None:
    model = graph(
        f"""(float[N,{C}] x) => (float[N,{C}] y) {{ s = Shape(x)
            f = ConstantOfShape<value = float[1] {{2.5}}>(s) a = Add(x, f) y = Relu(a) }}"""
    )
    narrow = to_precision(model, "fp16")
    x = normal(3, C)
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


def test_functions_are_converted_inside() -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        g (float[N,{C}] x) => (float[N,{C}] y) {{ a = Relu(x) y = local.twice(a) }}
        <domain: "local", opset_import: ["" : 18]> twice (v) => (w) {{ w = Add(v, v) }}"""
    )
    model = ir.from_proto(proto)
    narrow = to_precision(model, "fp16")
    assert types_of(narrow, "Add") == [{"FLOAT16"}]
    x = normal(3, C)
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_attention_mask_made_of_integers_does_not_become_nan(precision: Precision) -> None:
    lowest = np.finfo(np.float32).min
    model = graph(
        f"""(float[N,4,{C}] x, int64[N,4] mask) => (float[N,4,4] y) {{
            f = Cast<to=1>(mask) i = Sub(one, f) b = Mul(i, low) u = Unsqueeze(b, axes)
            k = MatMul(x, w) p = Add(k, u) y = Softmax(p) }}""",
        one=np.array(1, np.float32),
        low=np.array(lowest),
        axes=np.array([1]),
        w=normal(C, 4),
    )
    feeds = {"x": normal(2, 4, C), "mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]])}
    narrow = to_precision(model, precision)
    actual, exact = run(narrow, **feeds), run(model, **feeds)
    assert np.isfinite(actual).all()
    assert (actual[0, :, 2:] == 0).all()
    assert error(actual, exact) < 4 * EPS[precision]
    empty = feeds | {"mask": np.zeros((2, 4), np.int64)}  # a row that masks everything stays a distribution
    assert run(narrow, **empty).sum(-1) == pytest.approx(1, rel=4 * EPS[precision])


def test_one_sentinel_in_an_elementwise_operator_is_clipped() -> None:
    causal = np.triu(np.full((4, 4), -1e9, np.float32), 1)
    model = graph(
        f"(float[N,4,{C}] x) => (float[N,4,4] y) {{ k = MatMul(x, w) p = Add(k, mask) y = Softmax(p) }}",
        mask=causal,
        w=normal(C, 4),
    )
    x = normal(2, 4, C)
    narrow = to_precision(model, "fp16")
    assert narrow.graph.initializers["mask"].const_value.numpy().min() == -65504
    assert error(run(narrow, x=x), run(model, x=x)) < 4 * EPS["fp16"]


def test_weights_that_overflow_are_refused_together_by_module_name() -> None:
    heavy = normal(C, 5)
    heavy[1, 2] = 1e5
    model = graph(
        f"(float[N,{C}] x) => (float[N,5] y) {{ fc = MatMul(x, w) ln = LayerNormalization(fc, s) y = Add(ln, b) }}",
        w=heavy,
        s=np.array([1, 2, 3, -7e4, 9e4], np.float32),
        b=np.array([1e9, 2e9, 3, 4, 5], np.float32),
    )
    with pytest.raises(InputError) as caught:
        to_precision(model, "fp16")
    message = str(caught.value)
    for part in ("65504", "net.fc: w holds 100000", "net.ln: s holds 90000", "net.y: b holds 2e+09", "bf16"):
        assert part in message
    assert wrong_precision(to_precision(model, "bf16"), "bf16") == ()


def test_a_weight_of_which_nothing_is_left_is_refused_by_module_name() -> None:
    model = graph(
        f"(float[N,{C}] x) => (float[N,5] y) {{ fc = MatMul(x, w) y = MatMul(fc, v) }}",
        w=normal(C, 5, scale=1e-9),
        v=normal(5, 5),
    )
    with pytest.raises(InputError, match="all weights become 0 in float16") as caught:
        to_precision(model, "fp16")
    assert "net.fc: w holds" in str(caught.value)
    assert "bf16" in str(caught.value)
    x = normal(2, C)
    assert error(run(to_precision(model, "bf16"), x=x), run(model, x=x)) < 8 * EPS["bf16"]


def test_a_weight_that_loses_some_numbers_and_a_bias_that_vanishes_pass() -> None:
    heavy = normal(C, 5)
    heavy[:, 2] = 1e-9
    model = graph(
        f"(float[N,{C}] x) => (float[N,5] y) {{ fc = MatMul(x, w) y = Add(fc, b) }}",
        w=heavy,
        b=np.full(5, 1e-9, np.float32),
    )
    x = normal(2, C)
    assert error(run(to_precision(model, "fp16"), x=x), run(model, x=x)) < 4 * EPS["fp16"]


def test_a_weight_just_above_the_largest_float16_that_rounds_to_it_is_no_overflow() -> None:
    model = graph(f"(float[N,{C}] x) => (float[N,5] y) {{ y = MatMul(x, w) }}", w=np.full((C, 5), 65519, np.float32))
    assert to_precision(model, "fp16").graph.initializers["w"].const_value.numpy().max() == 65504


def test_a_weight_read_in_both_types_is_kept_in_both() -> None:
    model = graph(
        f"(float[N,{C},{C}] x) => (float[N,{C},{C}] y) {{ i = InstanceNormalization(x, s, s) y = Mul(i, s) }}",
        s=normal(C),
    )
    narrow = to_precision(model, "fp16")
    assert {name: value.dtype.name for name, value in narrow.graph.initializers.items()} == {
        "s": "FLOAT",
        "s_float16": "FLOAT16",
    }
    x = normal(2, C, C)
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


def test_weights_are_rounded_once_to_nearest_even() -> None:
    weight = normal(C, 5)
    model = graph(f"(float[N,{C}] x) => (float[N,5] y) {{ y = MatMul(x, w) }}", w=weight)
    for precision, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        stored = to_precision(model, precision).graph.initializers["w"].const_value.numpy()
        np.testing.assert_array_equal(stored, weight.astype(dtype))


def test_branches_and_loops_are_converted_inside() -> None:
    model = graph(
        f"""(float[N,{C}] x, bool c) => (float[N,{C}] y) {{
            a = MatMul(x, w)
            b = If (c) <
                then_branch = t () => (float[N,{C}] p) {{ p = Mul(a, s) }},
                else_branch = e () => (float[N,{C}] q) {{ q = InstanceLike(a) }} >
            y = Relu(b) }}""".replace("InstanceLike(a)", "Identity(x)"),
        w=normal(C, C),
        s=np.array(2, np.float32),
    )
    narrow = to_precision(model, "fp16")
    assert types_of(narrow, "Mul") == [{"FLOAT16"}]
    x = normal(3, C)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        assert error(run(narrow, **feeds), run(model, **feeds)) < 2 * EPS["fp16"]


def test_a_model_of_an_old_ir_version_comes_out_valid() -> None:
    """Its initializers are inputs too, and constants; without being inputs they need a newer version."""
    model = graph(
        f"(float[N,{C}] x, float[{C},5] w) => (float[N,5] y) {{ y = MatMul(x, w) }}", 9, ir_version=3, w=normal(C, 5)
    )
    narrow = to_precision(model, "fp16")
    assert [value.name for value in narrow.graph.inputs] == ["x"]
    x = normal(2, C)
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]  # the checker runs first


FILLED = f"""(float[2,{C}] x, bool c) => (float[2,{C}] y, float[2,{C}] k) {{
    a = MatMul(x, w)
    y = If (c) <
        then_branch = t () => (float[2,{C}] p) {{ p = Constant<value = NUMBERS>() }},
        else_branch = e () => (float[2,{C}] q) {{ s = Shape(a) q = ConstantOfShape<value = float[1] {{7}}>(s) }} >
    k = Constant<value = NUMBERS>() }}"""


def filled(number: float) -> ir.Model:
    """A branch, and the model, that hand out a constant as it is."""
    numbers = ", ".join([str(number)] * 2 * C)
    return graph(FILLED.replace("NUMBERS", f"float[2,{C}] {{{numbers}}}"), w=normal(C, C))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_branch_may_hand_out_a_constant(precision: Precision) -> None:
    """It stayed float32 where the branch was said to hand out 16 bits: no runtime loaded the model."""
    model = filled(1.2345678)
    narrow = to_precision(model, precision)
    for condition, number in ((True, 1.2345678), (False, 7.0)):
        feeds = {"x": normal(2, C), "c": np.array(condition)}
        np.testing.assert_allclose(run(narrow, **feeds), number, rtol=EPS[precision])
    k = ReferenceEvaluator(ir.to_proto(narrow)).run(["k"], feeds)[0]
    np.testing.assert_array_equal(k, np.full((2, C), 1.2345678, np.float32))  # nothing rounds what the model itself is


def test_a_constant_that_a_branch_hands_out_may_not_overflow() -> None:
    with pytest.raises(InputError, match=r"p holds 1e\+06"):
        to_precision(filled(1e6), "fp16")


def test_a_tensor_filled_with_a_mask_is_clipped_and_one_filled_with_a_weight_refused() -> None:
    """-1e9 became -inf, and a row of nothing else NaN."""
    text = f"""(float[2,{C}] x) => (float[2,{C}] y) {{
        a = MatMul(x, w) s = Shape(a) m = ConstantOfShape<value = float[1] {{-1e9}}>(s)
        p = READER(a, m) y = Softmax(p) }}"""
    model = graph(text.replace("READER", "Add"), w=normal(C, C))
    assert np.isfinite(run(to_precision(model, "fp16"), x=normal(2, C))).all()
    with pytest.raises(InputError, match="fills a tensor with -1e"):
        to_precision(graph(text.replace("READER", "Div"), w=normal(C, C)), "fp16")


def test_a_loop_carries_16_bit_values() -> None:
    model = graph(
        f"""(float[N,{C}] x) => (float[N,{C}] y) {{
            n = Constant<value = int64 {{3}}>()
            y = Loop (n, , x) <body = b (int64 i, bool c, float[N,{C}] s) => (bool d, float[N,{C}] o) {{
                d = Identity(c) o = MatMul(s, w) }}> }}""",
        w=normal(C, C, scale=0.4),
    )
    narrow = to_precision(model, "fp16")
    assert types_of(narrow, "MatMul") == [{"FLOAT16"}]
    x = normal(3, C)
    assert error(in_onnxruntime(narrow, x=x), run(model, x=x)) < 3 * EPS["fp16"]


def test_operators_outside_the_standard_stay_float32() -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[N,{C}] x) => (float[N,{C}] y) <float[N,{C}] a, float[N,{C}] f> {{
            a = Relu(x) f = com.microsoft.FastGelu(a) y = Relu(f) }}"""
    )
    for _ in range(2):
        narrow = to_precision(ir.from_proto(proto), "fp16")
        assert types_of(narrow, "FastGelu") == [{"FLOAT"}]
        assert types_of(narrow, "Relu") == [{"FLOAT16"}] * 2
        x = normal(3, C)
        actual, exact = (
            OnnxRuntimeRunner(ir.to_proto(each).SerializeToString())({"x": x})["y"]
            for each in (narrow, ir.from_proto(proto))
        )
        assert error(actual, exact) < 2 * EPS["fp16"]
        del proto.graph.value_info[:]  # and where the file does not say what the operator makes


def test_a_custom_operator_is_not_taken_for_the_one_of_its_name() -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "mine" : 1]>
        g (float[N,{C}] x) => (float[N,{C}] y) {{ a = Relu(x) f = mine.Relu(a) y = Relu(f) }}"""
    )
    assert types_of(to_precision(ir.from_proto(proto), "fp16"), "Relu") == [{"FLOAT16"}, {"FLOAT"}, {"FLOAT16"}]
    proto.graph.value_info.add(name="f").type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(InputError, match=r"custom operators take float32(.|\n)*mine::Relu"):
        widened(ir.from_proto(proto))


def test_sequences_keep_what_is_in_them() -> None:
    model = graph(
        f"(float[2,{C}] x) => (float[2,{C}] y) {{ a = Relu(x) s = SequenceConstruct(a, a)"
        " c = ConcatFromSequence<axis = 0>(s) p, q = Split<num_outputs = 2>(c) y = Add(p, q) }"
    )
    x = normal(2, C)
    assert error(run(to_precision(model, "fp16"), x=x), run(model, x=x)) < 2 * EPS["fp16"]


@pytest.mark.parametrize(
    "operator", ["ScatterElements <axis=0, reduction=REDUCTION>", "ScatterND <reduction=REDUCTION>"]
)
@pytest.mark.parametrize(("reduction", "narrow"), [("add", False), ("max", False), ("none", True)])
def test_a_scatter_that_reduces_does_so_in_float32(operator: str, reduction: str, narrow: bool) -> None:
    """1 + 4096 times 1: float16 stops at 2048. ONNX Runtime has no kernel for it, and runs it so as well."""
    spelled = operator.replace("REDUCTION", f'"{reduction}"')
    model = graph(
        f"""(float[1] zero, float[4096] x) => (float[1] y)
        <int64[4096{"" if "Elements" in operator else ",1"}] index> {{
          one = Constant <value_float = 1.0> ()
          begin = Add (zero, one)
          scattered = {spelled} (begin, index, x)
          y = Mul (scattered, one)
        }}""",
        index=np.zeros(4096 if "Elements" in operator else (4096, 1), np.int64),
    )
    converted = to_precision(model, "fp16")
    made = {value.name: value.dtype for node in converted.graph for value in node.outputs}
    assert (made["scattered"] == ir.DataType.FLOAT16) is narrow
    if reduction == "add":
        feeds = {"zero": np.zeros(1, np.float32), "x": np.ones(4096, np.float32)}
        assert in_onnxruntime(converted, **feeds) == 4096 + 1 - 1, "4097 is 4096 in float16"


def test_resize_scales_stay_float32_as_its_schema_asks() -> None:
    model = graph(
        f"(float[N,{C},4,4] x) => (float[N,{C},8,8] y) {{ r = Resize(x, , scales) y = Relu(r) }}",
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    narrow = to_precision(model, "fp16")
    assert narrow.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    x = normal(1, C, 4, 4)
    assert error(run(narrow, x=x), run(model, x=x)) < EPS["fp16"]


def test_initializers_listed_as_inputs_are_constants_below_ir_4_and_inputs_above() -> None:
    text = f"(float[N,{C}] x, float[{C},5] w) => (float[N,5] y) {{ y = MatMul(x, w) }}"
    old = to_precision(graph(text, ir_version=3, w=normal(C, 5)), "fp16")
    assert [value.name for value in old.graph.inputs] == ["x"]
    assert old.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    new = to_precision(graph(text, w=normal(C, 5)), "fp16")
    assert [value.dtype for value in new.graph.inputs] == [ir.DataType.FLOAT] * 2
    x, w = normal(2, C), normal(C, 5)
    assert error(run(new, x=x, w=w), x.astype(np.float64) @ w.astype(np.float64)) < 2 * EPS["fp16"]


def test_an_output_that_is_used_inside_too_keeps_its_name_and_type() -> None:
    model = graph(
        f"(float[N,{C}] x) => (float[N,5] h, float[N,5] y) {{ h = MatMul(x, w) y = Relu(h) }}", w=normal(C, 5)
    )
    narrow = to_precision(model, "fp16")
    assert [(value.name, value.dtype) for value in narrow.graph.outputs] == [
        ("h", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT),
    ]
    x = normal(2, C)
    assert error(run(narrow, x=x), run(model, x=x)) < 2 * EPS["fp16"]


def test_a_mask_composed_into_one_map_is_clipped_too() -> None:
    """What a fold makes of ``(1 - mask) * lowest``."""
    lowest = np.array([np.finfo(np.float32).min])
    model = graph(
        f"""(float[N,4,{C}] x, int64[N,1,1,4] mask) => (float[N,1,4,4] y) {{
            f = Cast<to=1>(mask) b = BatchNormalization<epsilon=0.0>(f, s, t, zero, one)
            k = MatMul(x, w) u = Unsqueeze(k, axes) p = Add(u, b) y = Softmax(p) }}""",
        s=-lowest,
        t=lowest,
        zero=np.zeros(1, np.float32),
        one=np.ones(1, np.float32),
        axes=np.array([1]),
        w=normal(C, 4),
    )
    feeds = {"x": normal(2, 4, C), "mask": np.array([[1, 1, 0, 0], [0, 0, 0, 0]]).reshape(2, 1, 1, 4)}
    actual, exact = run(to_precision(model, "fp16"), **feeds), run(model, **feeds)
    assert error(actual[0], exact[0]) < 4 * EPS["fp16"]
    assert actual[1].sum(-1) == pytest.approx(1, rel=4 * EPS["fp16"])  # nothing to attend to: any distribution


class Reference:
    """ONNX's own evaluator as a runner: the only one here that has every operator in bfloat16."""

    name = "reference"

    def __init__(self, model: ir.Model) -> None:
        self._evaluator = ReferenceEvaluator(ir.to_proto(model))
        self.inputs, self.outputs = tuple(self._evaluator.input_names), tuple(self._evaluator.output_names)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._evaluator.run(None, dict(feeds))
        return dict(zip(self.outputs, map(np.asarray, results), strict=True))


@cache
def trained(name: str) -> tuple[torch.nn.Module, ir.Model]:
    """A digit network and its folded graph, at the first opset that has bfloat16 convolutions."""
    module = load(f"models.digits:{name}", app_dir=ROOT, weights=ROOT / f"models/digits_{name}.safetensors").module
    return module, fold(to_graph(module, DIGITS, opset=22).model).model


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["resnet", "conv1d", "conv3d", "vit"])
def test_trained_networks_are_as_exact_in_16_bits_as_eager_pytorch_is(name: str, precision: Precision) -> None:
    """By the verdict's own bound, against float64, on the trained digit networks, folded."""
    module, graph = trained(name)
    deployed = to_precision(graph, precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    measured = measure(module, DIGITS, Reference(deployed), random_feeds(DIGITS), dtype=dtype)
    verdict = judge(measured.measurements, Criteria(), measured.reference)
    assert verdict.passed, verdict.judgements
    assert all(each.deployed.rms > EPS[precision] / 100 for each in measured.measurements)  # it really was rounded
