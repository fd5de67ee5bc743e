"""Attention lets a map of V pass, and takes a scale of Q and K that comes to one number into its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cases import Case, ids
from harness import check_fold, check_refusal, folded, op_types, parsed
from support import says

from normdeploy.fold.operators import attention

# fmt: off
# A table: a case a row, as wide as the page.

QKV = "float[N,T,3] x"
WEIGHTS = "float[3,8] q, float[3,8] k, float[3,12] v, float[12,5] o"
GROUPED = "float[3,8] q, float[3,4] k, float[3,6] v, float[12,5] o"
PROJECTED = "a = MatMul (x, q)\n b = MatMul (x, k)\n c = MatMul (x, v)\n"
TWO_HEADS, FOUR_HEADS = "q_num_heads=2, kv_num_heads=2", "q_num_heads=4, kv_num_heads=2"
LEFT = "MatMul MatMul MatMul Attention"
HEADS = "float[N,4,T,2] x, float[N,2,L,2] z, float[N,2,L,3] u"


def attend(args: str, more: str = "", heads: str = TWO_HEADS) -> str:
    return f"y0 = Attention <{heads}{more}> ({args})\n"


PASSED = [
    Case("a scale behind it, into V", QKV, WEIGHTS + ", float[12] s", PROJECTED + attend("a, b, c") + "y = Mul (y0, s)",
         LEFT, opset=23, onnxruntime=False),
    Case("causal, a scale and shift behind it", QKV, WEIGHTS + ", float[12] bv, float[12] s, float[12] t",
         PROJECTED + "d = Add (c, bv)\n" + attend("a, b, d", ", is_causal=1") + "m = Mul (y0, s)\n y = Add (m, t)",
         LEFT + " Add", opset=23, onnxruntime=False),
    Case("the bias of V goes on into the projection behind", QKV, WEIGHTS + ", float[12] bv, float[5] bo",
         PROJECTED + "d = Add (c, bv)\n" + attend("a, b, d") + "e = MatMul (y0, o)\n f = Add (e, bo)\n y = Relu (f)",
         LEFT + " MatMul Add Relu", opset=23, onnxruntime=False),
    Case("a mask, a scale of V in front", QKV + ", bool[N,1,T,T] m, float[N,T,12] w",
         "float[3,8] q, float[3,8] k, float[12,5] o, float[12] s",
         "a = MatMul (x, q)\n b = MatMul (x, k)\n c = Mul (w, s)\n" + attend("a, b, c, m") + "y = MatMul (y0, o)",
         "MatMul MatMul Attention MatMul", opset=23, onnxruntime=False),
    Case("a mask that is added, a scale behind", QKV + ", float[T,T] m", WEIGHTS + ", float[12] s",
         PROJECTED + attend("a, b, c, m", ", softcap=2.0") + "y = Mul (y0, s)", LEFT, opset=23, onnxruntime=False),
    Case("a mask that is stored, lengths, a scale behind", "float[2,7,3] x, int64[2] n",
         WEIGHTS + ", float[12] s, float[7,7] m",
         PROJECTED + attend("a, b, c, m, , , n") + "y = Mul (y0, s)", LEFT, opset=24, onnxruntime=False),
    Case("windows, a scale behind", QKV, WEIGHTS + ", float[12] s",
         PROJECTED + attend("a, b, c", ", left_window_size=1, right_window_size=2") + "y = Mul (y0, s)", LEFT, opset=25,
         onnxruntime=False),
    Case("heads that share values, a scale of V in front", QKV + ", float[N,T,6] w",
         "float[3,8] q, float[3,4] k, float[12,5] o, float[6] s",
         "a = MatMul (x, q)\n b = MatMul (x, k)\n c = Mul (w, s)\n" + attend("a, b, c", heads=FOUR_HEADS)
         + "y = MatMul (y0, o)", "MatMul MatMul Attention MatMul", opset=23, onnxruntime=False),
    Case("heads that share values, the same scale behind both", QKV,
         GROUPED + ", float[12] s = {1,2,3,1,2,3,4,5,6,4,5,6}",
         PROJECTED + attend("a, b, c", heads=FOUR_HEADS) + "y = Mul (y0, s)", LEFT, opset=23, onnxruntime=False),
    Case("one number behind heads that share values", QKV, GROUPED + ", float s",
         PROJECTED + attend("a, b, c", heads=FOUR_HEADS) + "y = Mul (y0, s)", LEFT, opset=23, onnxruntime=False),
    Case("by head, a scale of each head of V in front", HEADS, "float[2,1,1] s, float[4,3,5] o",
         "c = Mul (u, s)\n y0 = Attention (x, z, c)\n y = MatMul (y0, o)", "Attention MatMul", opset=23,
         onnxruntime=False),
    Case("by head, a scale of each feature behind", HEADS, "float[3,3] v, float[3] s",
         "c = MatMul (u, v)\n y0 = Attention (x, z, c)\n y = Mul (y0, s)", "MatMul Attention", opset=23,
         onnxruntime=False),
    Case("one number on Q", HEADS, "float pos", "a = Mul (x, pos)\n y = Attention (a, z, u)", "Attention", opset=23,
         onnxruntime=False),
    Case("one number on each of Q and K, as torch has it", HEADS, "float pos, float pos2",
         "a = Mul (x, pos)\n b = Mul (z, pos2)\n y = Attention <scale=1.0> (a, b, u)", "Attention", opset=23,
         onnxruntime=False),
    Case("a negative number on each", HEADS, "float s = {-2.0}, float t = {-0.5}",
         "a = Mul (x, s)\n b = Mul (z, t)\n y = Attention <scale=0.5> (a, b, u)", "Attention", opset=23,
         onnxruntime=False),
    Case("scales of Q and K that cancel, by head", HEADS,
         "float[4,1,2] s = {1,2,1,2,4,8,4,8}, float[2,1,2] t = {1,0.5,0.25,0.125}",
         "a = Mul (x, s)\n b = Mul (z, t)\n y = Attention (a, b, u)", "Attention", opset=23, onnxruntime=False),
    Case("scales of Q and K that cancel, joined", QKV + ", float[N,T,8] r, float[N,T,4] p, float[N,T,6] w",
         "float[8] s = {1,2,1,2,4,8,4,8}, float[4] t = {1,0.5,0.25,0.125}",
         "a = Mul (r, s)\n b = Mul (p, t)\n" + attend("a, b, w", heads=FOUR_HEADS)
         + "y = Identity (y0)\n y2 = Relu (x)", "Attention Relu",
         outputs="float[] y, float[] y2", opset=23, onnxruntime=False),
]

REFUSED = [
    Case("a shift behind a mask", QKV + ", bool[N,1,T,T] m", WEIGHTS + ", float[12] t",
         PROJECTED + attend("a, b, c, m") + "z = Add (y0, t)\n y = Relu (z)",
         reason="NF201", opset=23),
    Case("a shift behind windows", QKV, WEIGHTS + ", float[12] t",
         PROJECTED + attend("a, b, c", ", left_window_size=2") + "z = Add (y0, t)\n y = Relu (z)",
         reason="NF201", opset=25),
    Case("different scales of heads that share values", QKV, GROUPED + ", float[12] s",
         PROJECTED + attend("a, b, c", heads=FOUR_HEADS) + "y = Mul (y0, s)",
         reason="NF018", opset=23),
    Case("a scale over positions", "float[2,7,3] x", WEIGHTS + ", float[7,1] s",
         PROJECTED + attend("a, b, c") + "y = Mul (y0, s)", reason="NF015 (Attention", opset=23),
    Case("a cache", "float[1,2,7,4] x, float[1,2,5,4] p, float[1,2,5,3] r, float[1,2,7,3] w",
         "float[3,3] v, float[3] s",
         "c = MatMul (w, v)\n y0, g, h = Attention (x, x, c, , p, r)\n y = Mul (y0, s)",
         reason="NF210",
         outputs="float[] y, float[] g, float[] h", opset=23),
    Case("features of Q alone", HEADS, "float[2] s", "a = Mul (x, s)\n y = Attention (a, z, u)",
         reason="NF208", opset=23),
    Case("features of both that do not cancel", HEADS, "float[2] s = {1,2}, float[2] t = {3,4}",
         "a = Mul (x, s)\n b = Mul (z, t)\n y = Attention (a, b, u)",
         reason="NF208", opset=23),
    Case("a negative number", HEADS, "float s = {-2.0}", "a = Mul (x, s)\n y = Attention (a, z, u)",
         reason="NF209", opset=23),
    Case("zero", HEADS, "float s = {0.0}", "a = Mul (x, s)\n y = Attention (a, z, u)",
         reason="NF209", opset=23),
    Case("a shift of Q", HEADS, "float[2] s", "a = Add (x, s)\n y = Attention (a, z, u)",
         reason="NF207", opset=23),
    Case("the product is an output", HEADS, "float pos",
         "a = Mul (x, pos)\n y, k, v, y2 = Attention (a, z, u)", reason="NF211",
         outputs="float[] y, float[] y2", opset=23),
    Case("a map on the mask", HEADS + ", float[T,L] m", "float s", "a = Mul (m, s)\n y = Attention (x, z, u, a)",
         reason="NF011", opset=23),
    Case("digits that float32 has not", HEADS.replace("float", "double"), "double pos",
         "a = Mul (x, pos)\n y = Attention (a, z, u)", reason="NF209",
         outputs="double[] y", opset=23),
]
# fmt: on


@pytest.mark.parametrize("case", PASSED, ids=ids(PASSED))
def test_a_map_passes(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_its_executor_is_pytorchs(causal: bool, grouped: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 5, dtype=torch.float64) for heads, n in ((4, 7), (2, 7), (2, 7)))
    if not grouped:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    mask = None if causal else torch.rand(2, 1, 7, 7) < 0.7
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, enable_gqa=grouped, scale=0.3
    )
    given = None if mask is None else mask.numpy()
    y, *_ = attention.evaluate({"scale": 0.3, "is_causal": int(causal)}, q.numpy(), k.numpy(), v.numpy(), given)
    finite = np.isfinite(expected.numpy())  # PyTorch makes NaN of a query that sees no key
    np.testing.assert_allclose(y[finite], expected.numpy()[finite], rtol=0, atol=1e-12)
    assert not np.any(y[~finite])


# -- MultiHeadAttention of ONNX Runtime ------------------------------------------------------------


def multi_head(weights: str, body: str, inputs: str = "") -> onnx.ModelProto:
    """Twelve features of three heads by ONNX Runtime's operator, whose output's shape is declared."""
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
    data = f"float[2,7,6] x, float[2,7,12] q, float[2,7,12] k, float[2,7,12] v{inputs}"
    return parsed(f"{head} g ({data}) => (float[2,7,B] y) <float[2,7,12] y0, {weights}> {{ {body} }}")


def run(proto: onnx.ModelProto) -> np.ndarray:
    rng, options = np.random.default_rng(3), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {item.name: rng.standard_normal(item.shape).astype(np.float32) for item in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


CALL = "y0 = com.microsoft.MultiHeadAttention <num_heads=3> "
OUT = "float[12,5] o"


@pytest.mark.parametrize(
    ("weights", "body", "becomes"),
    [
        (f"float[6,12] w, float[12] s, {OUT}",
         f"c = MatMul (x, w)\n{CALL} (q, k, c)\n m = Mul (y0, s)\n y = MatMul (m, o)",
         "MatMul MultiHeadAttention MatMul"),
        (f"float[6,12] w, float[36] b, float[12] s, {OUT}",
         f"c = MatMul (x, w)\n{CALL} (q, k, c, b)\n m = Mul (y0, s)\n r = Relu (m)\n y = MatMul (r, o)",
         "MatMul MultiHeadAttention Relu MatMul"),
        (f"float[36] b, float[12] s, {OUT}", f"c = Mul (v, s)\n{CALL} (q, k, c, b)\n y = MatMul (y0, o)",
         "MultiHeadAttention MatMul"),
        (f"float pos, {OUT}", f"c = Mul (q, pos)\n{CALL} (c, k, v)\n y = MatMul (y0, o)", "MultiHeadAttention MatMul"),
    ],
    ids=["a scale behind", "a scale behind, with a bias", "a scale of V, with a bias", "one number on Q"],
)  # fmt: skip
def test_multi_head_attention_of_onnx_runtime(weights: str, body: str, becomes: str) -> None:
    proto = multi_head(weights, body)
    new, ledger = folded(proto)
    assert op_types(new) == Counter(becomes.split()), [str(entry) for entry in ledger]
    assert not ledger.dropped
    np.testing.assert_allclose(run(new), run(proto), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("weights", "body", "reason"),
    [
        ("float[12] a", f"c = Add (v, a)\n{CALL} (q, k, c)\n y = Relu (y0)",
         "NF015"),
        ("float[12] s", f"c = Mul (q, s)\n{CALL} (c, k, v)\n y = Relu (y0)", "NF208"),
        ("float pos, float[36] b", f"c = Mul (q, pos)\n{CALL} (c, k, v, b)\n y = Relu (y0)", "NF208"),
        ("float[12] s = {1,2,3,4,5,6,7,8,9,10,0,1}", f"c = Mul (v, s)\n{CALL} (q, k, c)\n y = Relu (y0)",
         "NF205"),
    ],
)  # fmt: skip
def test_multi_head_attention_refuses(weights: str, body: str, reason: str) -> None:
    proto = multi_head(weights, body)
    new, ledger = folded(proto)
    assert op_types(new) == op_types(proto)
    assert any(says(entry, reason) for entry in ledger), [str(entry) for entry in ledger]
    assert not ledger.dropped
