"""A scale passes a product of two activations, upward into one of its factors; and MatMul with vectors."""

from __future__ import annotations

import onnx
import pytest
from cases import CONV, IMAGE, Case, ids
from harness import bn, check_fold, check_refusal, folded, model, op_types

# fmt: off
# A table: a case a row, as wide as the page.

QK = "float[N,T,3] x"
PROJECTIONS = "float[3,4] q, float[3,4] k, float[3,6] v"
SCORES = "a = MatMul (x, q)\n b = MatMul (x, k)\n t = Transpose <perm=[0,2,1]> (b)\n s = MatMul (a, t)\n"

PASSED = [
    Case("attention scores, divided by a number", QK, PROJECTIONS + ", float pos",
         SCORES + "y = Div (s, pos)", "MatMul MatMul Transpose MatMul"),
    Case("attention scores, scaled and masked", QK + ", float[1,T,T] mask", PROJECTIONS + ", float pos",
         SCORES + "c = Div (s, pos)\n m = Add (c, mask)\n p = Softmax (m)\n u = MatMul (x, v)\n y = MatMul (p, u)",
         "MatMul MatMul Transpose MatMul Add Softmax MatMul MatMul"),
    Case("attention scores by head", QK, PROJECTIONS + ", float[2,1,1] pos, int64[4] h = {0,0,2,2}",
         "a = MatMul (x, q)\n b = MatMul (x, k)\n c = Reshape (a, h)\n d = Reshape (b, h)\n"
         "e = Transpose <perm=[0,2,1,3]> (c)\n f = Transpose <perm=[0,2,3,1]> (d)\n s = MatMul (e, f)\n"
         "y = Mul (s, pos)",
         "MatMul MatMul Reshape Reshape Transpose Transpose MatMul"),
    Case("the values of attention, behind it", QK + ", float[N,T,T] p", PROJECTIONS + ", float[6] k2",
         "u = MatMul (x, v)\n o = MatMul (p, u)\n y = Mul (o, k2)", "MatMul MatMul"),
    Case("the first factor cannot, the second can", IMAGE, f"{CONV}, float[5,3,3,3] w2, float[5,1,1] k",
         "c = Conv (x, w, b)\n s = Sigmoid (c)\n d = Conv (x, w2)\n m = Mul (s, d)\n y = Mul (m, k)",
         "Conv Sigmoid Conv Mul"),
    Case("the second of a product of products", IMAGE, f"{CONV}, float[5,3,3,3] w2, float[5,1,1] k",
         "c = Conv (x, w, b)\n s = Sigmoid (c)\n e = Tanh (c)\n d = Conv (x, w2)\n m = Mul (d, e)\n n = Mul (s, m)\n"
         "y = Mul (n, k)", "Conv Sigmoid Tanh Conv Mul Mul"),
    Case("a gate for each channel (squeeze and excite)", IMAGE + ", float[N,5,1,1] e", f"{CONV}, float[5,1,1] k",
         "c = Conv (x, w, b)\n m = Mul (e, c)\n y = Mul (m, k)", "Conv Mul"),
    Case("a gate of fewer axes", "float[2,7,3] x, float[7,1] e", "float[3,5] w, float[5] k",
         "c = MatMul (x, w)\n m = Mul (e, c)\n y = Mul (m, k)", "MatMul Mul"),
    Case("divided by an activation", "float[2,7,3] x, float[7,1] e", "float[3,5] w, float[5] k",
         "c = MatMul (x, w)\n p = Exp (e)\n m = Div (c, p)\n y = Mul (m, k)", "MatMul Exp Div"),
    Case("a scale on the divisor", "float[7,3] x, float[7,1] e", "float[3,5] posw, float[5] posb, float[5] posk",
         "z = Exp (x)\n c = Gemm (z, posw, posb)\n m = Div (e, c)\n y = Mul (m, posk)", "Exp Gemm Div"),
    Case("a constant over an activation", "float[7,3] x",
         "float[3,5] posw, float[5] posb, float[5] posk, float[9,1,5] n",
         "z = Exp (x)\n c = Gemm (z, posw, posb)\n m = Div (n, c)\n y = Mul (m, posk)", "Exp Gemm Div"),
    Case("downward past a gate", IMAGE + ", float[N,3,1,1] e", f"{CONV}, float[3,1,1] k",
         "t = Mul (x, k)\n m = Mul (t, e)\n y = Conv <pads=[1,1,1,1]> (m, w, b)", "Mul Conv"),
    Case("downward from both factors", IMAGE + ", float[N,3,H,W] e", f"{CONV}, float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n u = Mul (e, h)\n m = Mul (t, u)\n y = Conv <pads=[1,1,1,1]> (m, w, b)", "Mul Conv"),
    Case("downward from both factors, which are one", IMAGE, f"{CONV}, float[3,1,1] k",
         "t = Mul (x, k)\n m = Mul (t, t)\n y = Conv <pads=[1,1,1,1]> (m, w, b)", "Mul Conv"),
    Case("downward past the dividend and the divisor", IMAGE + ", float[N,3,H,W] e",
         f"{CONV}, float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n p = Exp (e)\n u = Mul (p, h)\n m = Div (t, u)\n y = Conv <pads=[1,1,1,1]> (m, w, b)",
         "Exp Div Conv"),
    Case("downward past a product of matrices", "float[N,T,4] x, float[N,4,6] z", "float k, float[6] h, float[6,5] w",
         "t = Mul (x, k)\n u = Mul (z, h)\n m = MatMul (t, u)\n y = MatMul (m, w)", "MatMul MatMul"),
    Case("downward past the square of a matrix", "float[N,4,6,6] x", "float[4,1,1] k, float[3,4,1,1] w",
         "t = Mul (x, k)\n m = MatMul (t, t)\n y = Conv (m, w)", "MatMul Conv"),
    Case("downward past the square of a matrix without a batch", "float[6,6] x", "float k, float[6,5] w",
         "t = Mul (x, k)\n m = MatMul (t, t)\n y = MatMul (m, w)", "MatMul MatMul"),
]

VECTORS = [
    Case("vector by matrix, a scale in front", "float[3] x", "float[3] k, float[3,5] w",
         "t = Mul (x, k)\n y = MatMul (t, w)", "MatMul"),
    Case("vector by matrix, a scale behind", "float[3] x", "float[5] k, float[3,5] w",
         "t = MatMul (x, w)\n y = Mul (t, k)", "MatMul"),
    Case("vector by matrix with a bias, a map in front", "float[3] x",
         "float[3] k, float[3] a, float[3,5] w, float[5] b",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (u, w)\n y = Add (m, b)", "MatMul Add"),
    Case("vector by matrices", "float[3] x", "float[3] k, float[7,3,5] w, float[7,5] h",
         "t = Mul (x, k)\n m = MatMul (t, w)\n y = Mul (m, h)", "MatMul"),
    Case("vector by matrices with a bias, a map in front", "float[3] x",
         "float[3] k, float[3] a, float[7,3,5] w, float[7,5] b",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (u, w)\n y = Add (m, b)", "MatMul Add"),
    Case("matrix by vector, a scale in front", "float[3] x", "float[3] k, float[5,3] w",
         "t = Mul (x, k)\n y = MatMul (w, t)", "MatMul"),
    Case("matrix by vector, a scale behind", "float[3] x", "float[5] k, float[5,3] w",
         "t = MatMul (w, x)\n y = Mul (t, k)", "MatMul"),
    Case("matrix by vector with a bias, a map in front", "float[3] x",
         "float[3] k, float[3] a, float[5,3] w, float[5] b",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (w, u)\n y = Add (m, b)", "MatMul Add"),
    Case("by a stored vector, a map in front", "float[N,T,3] x", "float[3] k, float[3] a, float[3] w, float b",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (u, w)\n y = Add (m, b)", "MatMul Add"),
    Case("by a stored vector, a number behind", "float[N,T,3] x", "float k, float[3] w",
         "t = MatMul (x, w)\n y = Mul (t, k)", "MatMul"),
    Case("a stored vector by matrices, a map in front", "float[N,3,T] x",
         "float[3,1] k, float[3,1] a, float[3] w, float b",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (w, u)\n y = Add (m, b)", "MatMul Add"),
    Case("vector by vector", "float[3] x", "float[3] k, float[3] a, float[3] w, float b, float h",
         "t = Mul (x, k)\n u = Add (t, a)\n m = MatMul (u, w)\n n = Add (m, b)\n y = Mul (n, h)", "MatMul Add"),
]

REFUSED = [
    Case("a shift in front of a gate", IMAGE + ", float[N,3,1,1] e", f"{CONV}, float[3,1,1] a",
         "t = Add (x, a)\n m = Mul (t, e)\n y = Conv (m, w, b)",
         reason="NF207 (Mul"),
    Case("a shift behind a gate", IMAGE + ", float[N,5,1,1] e", f"{CONV}, float[5,1,1] a",
         "c = Conv (x, w, b)\n m = Mul (c, e)\n u = Add (m, a)\n y = Relu (u)",
         reason="NF207 (Mul"),
    Case("scores scaled over both axes", "float[2,5,3] x", PROJECTIONS + ", float[5,5] h",
         SCORES + "y = Mul (s, h)",
         reason="NF020 (MatMul"),
    Case("a scale over the axis that is summed over", "float[N,T,4] x, float[N,4,6] z", "float[4] k",
         "t = Mul (x, k)\n y = MatMul (t, z)", reason="NF015 (MatMul"),
    Case("factors that are broadcast", "float[2,1,3] x, float[1,7,1] e", "float[3,1] w, float[2,7,1] k",
         "c = MatMul (x, w)\n m = Mul (c, e)\n y = Mul (m, k)",
         reason="NF020 (Mul"),
    Case("a scale of 0 on a divisor", "float[2,7,3] x, float[2,7,1] e", "float[3,5] w, float[5] k = {1,0,2,3,4}",
         "c = MatMul (x, w)\n m = Div (e, c)\n y = Mul (m, k)", reason="NF205 (Div"),
    Case("before opset 7", "float[2,5] x, float[2,5] e", "float[5,5] w, float[2,5] k",
         "m = Mul (x, e)\n y = Mul (m, k)", reason="NF012", opset=6,
         ir_version=4),
    Case("vectors that are both computed", "float[3] x, float[3,5] z", "float[5] k",
         "m = MatMul (x, z)\n y = Mul (m, k)", reason="NF110 (MatMul"),
    Case("a shift behind vector by matrix", "float[3] x", "float[3,5] w, float[5] a",
         "t = MatMul (x, w)\n u = Add (t, a)\n y = Relu (u)", reason=""),
    Case("a map that a stored vector sums over, behind it", "float[2,7,3] x", "float[7] k, float[3] w",
         "t = MatMul (x, w)\n y = Mul (t, k)",
         reason="NF016 (MatMul"),
]
# fmt: on


@pytest.mark.parametrize("case", PASSED, ids=ids(PASSED))
def test_a_scale_passes_a_product(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", VECTORS, ids=ids(VECTORS))
def test_products_with_vectors(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


def test_a_scale_that_is_0_still_passes_a_gate() -> None:
    proto = model(IMAGE + ", float[N,5,1,1] e", f"{CONV}, float[5,1,1] k = {{1,0,2,3,4}}",
                  "c = Conv (x, w, b)\n m = Mul (e, c)\n y = Mul (m, k)")  # fmt: skip
    check_fold(proto, "Conv Mul")


def test_a_factor_that_a_caller_may_override_is_an_input() -> None:
    proto = model(
        IMAGE, f"{CONV}, float[5,1,1] e, float[5,1,1] k", "c = Conv (x, w, b)\n m = Mul (c, e)\n y = Mul (m, k)"
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, [5, 1, 1]))
    check_fold(proto, "Conv Mul")


def test_a_kept_product_lets_a_scale_pass_and_stays() -> None:
    proto = model(IMAGE + ", float[N,5,1,1] e", f"{CONV}, {bn(5)}, float[5,1,1] k",
                  "c = Conv (x, w, b)\n m = Mul (e, c)\n y = Mul (m, k)")  # fmt: skip
    proto.graph.node[2].name = "kept"
    new, _ = folded(proto, keep=("kept",))
    assert op_types(new) == {"Conv": 1, "Mul": 2}
