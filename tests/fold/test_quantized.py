"""Weights behind DequantizeLinear: their scales take sizes, their integers take signs, however their scales lie."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, ids
from harness import check_fold, check_refusal, folded, initializers

from normdeploy.fold.float64 import execute
from normdeploy.fold.graph.granules import Granules

# fmt: off
# A table: a case a row, as wide as the page.

IMAGE, SIGNS = "float[2,3,8,11] x", "float[5,1,1] k = {1,-2,3,-4,0.5}"
CODES = "int8[5,3,1,1] q = {1,2,-3,4,5,6,-127,8,9,10,11,-12,13,127,15}, float[5] pos"
TRANSPOSED = "int8[3,5,1,1] q = {1,2,-3,4,5,6,-127,8,9,10,11,-12,13,127,15}, float[5] pos"
COLUMNS = "int8[4,6] q = {-5,-3,3,-4,6,-2,1,8,3,-8,7,-2,5,-3,2,9,1,2,3,4,5,6,7,-8}"
DEQUANTIZED = "w = DequantizeLinear <axis=0> (q, pos)\n"

FOLDED = [
    Case("factors of both signs", IMAGE, f"{CODES}, {SIGNS}", DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)",
         "DequantizeLinear Conv"),
    Case("a factor of 0", IMAGE, f"{CODES}, float[5,1,1] k = {{1,0,3,0,2}}",
         DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)", "DequantizeLinear Conv"),
    Case("factors of both signs and 0, around zero points", IMAGE,
         "int8[5,3,1,1] q = {1,2,-3,4,5,6,-7,8,9,10,11,-12,13,17,15}, float[5] pos, int8[5] z = {3,-9,2,11,14}, "
         "float[5,1,1] k = {-1,0,3,-2,0.5}",
         "w = DequantizeLinear <axis=0> (q, pos, z)\n c = Conv (x, w)\n y = Mul (c, k)", "DequantizeLinear Conv"),
    Case("one negative factor, one scale", IMAGE, CODES.replace("float[5] pos", "float pos") + ", float k = {-2.5}",
         "w = DequantizeLinear (q, pos)\n c = Conv (x, w)\n y = Mul (c, k)", "DequantizeLinear Conv"),
    Case("unsigned integers around 128", IMAGE,
         "uint8[5,3,1,1] q = {101,202,3,104,105,6,7,208,9,110,11,12,13,127,255}, float pos, uint8 z = {128}, "
         "float k = {-2.5}",
         "w = DequantizeLinear (q, pos, z)\n c = Conv (x, w)\n y = Mul (c, k)", "DequantizeLinear Conv"),
    Case("a transposed convolution", IMAGE, f"{TRANSPOSED}, {SIGNS}",
         "w = DequantizeLinear <axis=1> (q, pos)\n c = ConvTranspose (x, w)\n y = Mul (c, k)",
         "DequantizeLinear ConvTranspose"),
    Case("a transposed convolution of groups with the same factors", "float[2,4,8,11] x",
         "int8[4,3,1,1] q = {1,2,-3,4,5,6,-7,8,9,10,11,-12}, float[3] pos, float[6,1,1] k = {1,-2,3,1,-2,3}",
         "w = DequantizeLinear <axis=1> (q, pos)\n c = ConvTranspose <group=2> (x, w)\n y = Mul (c, k)",
         "DequantizeLinear ConvTranspose"),
    *[Case(f"a bias of 32 bits, {name}", IMAGE,
           f"{CODES}, int32[5] r = {{1000,-2000,30000,-4,5}}, float{scale} poss, float[5,1,1] k, float[5,1,1] a",
           DEQUANTIZED + f"b = DequantizeLinear {axis} (r, poss)\n c = Conv (x, w, b)\n m = Mul (c, k)\n"
           "y = Add (m, a)",
           "DequantizeLinear Conv")
      for name, scale, axis in [("a scale each", "[5]", "<axis=0>"), ("one scale", "", "")]],
    Case("a bias of 32 bits of a Gemm", "float[7,4] x",
         f"{COLUMNS}, float[6] pos, int32[6] r = {{100,-200,300,-4,5,6}}, float poss, float[6] k, float[6] a",
         "w = DequantizeLinear <axis=1> (q, pos)\n b = DequantizeLinear (r, poss)\n c = Gemm (x, w, b)\n"
         "m = Mul (c, k)\n y = Add (m, a)", "DequantizeLinear Gemm", onnxruntime=False),
    Case("blocks, factors behind", "float[7,4] x", f"{COLUMNS}, float[2,6] pos, float[6] k",
         "w = DequantizeLinear <axis=0, block_size=2> (q, pos)\n c = MatMul (x, w)\n y = Mul (c, k)",
         "DequantizeLinear MatMul", onnxruntime=False),
    Case("blocks with zero points, factors in front that are equal in each block", "float[7,4] x",
         f"{COLUMNS}, float[2,6] pos, int8[2,6] z = {{1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}}, float[4] k = {{2,2,-3,-3}}",
         "t = Mul (x, k)\n w = DequantizeLinear <axis=0, block_size=2> (q, pos, z)\n y = MatMul (t, w)",
         "DequantizeLinear MatMul", onnxruntime=False),
    Case("blocks whose last one is short", "float[7,4] x", f"{COLUMNS}, float[4,2] pos, float[6] k = {{2,2,2,2,-3,3}}",
         "w = DequantizeLinear <axis=1, block_size=4> (q, pos)\n c = MatMul (x, w)\n y = Mul (c, k)",
         "DequantizeLinear MatMul", onnxruntime=False),
    Case("a scale for each input channel, factors in front", "float[7,4] x", f"{COLUMNS}, float[4] pos, float[4] k",
         "t = Mul (x, k)\n w = DequantizeLinear <axis=0> (q, pos)\n y = MatMul (t, w)", "DequantizeLinear MatMul",
         onnxruntime=False),
    Case("a shift in front", IMAGE, f"{CODES}, float[3,1,1] a, float[5] b",
         DEQUANTIZED + "t = Add (x, a)\n y = Conv (t, w, b)", "DequantizeLinear Conv"),
    Case("4 bits", "float[7,4] x", "int4[4,2] q = {1,-2,3,-4,5,6,-7,7}, float[2] pos, float[2] k = {-2,3}",
         "w = DequantizeLinear <axis=1> (q, pos)\n c = MatMul (x, w)\n y = Mul (c, k)", "DequantizeLinear MatMul",
         onnxruntime=False),
]

REFUSED = [
    Case("-128 has no negative", IMAGE, CODES.replace("-127", "-128") + ", " + SIGNS.replace("3,-4", "-3,-4"),
         DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)", reason="NF121"),
    Case("0 has no mirror image around 128", IMAGE,
         "uint8[5,3,1,1] q = {0,202,3,104,105,6,7,208,9,110,11,12,13,127,255}, float pos, uint8 z = {128}, "
         "float k = {-2.5}",
         "w = DequantizeLinear (q, pos, z)\n c = Conv (x, w)\n y = Mul (c, k)",
         reason="NF121"),
    Case("factors that differ inside a block", "float[7,4] x", f"{COLUMNS}, float[2,6] pos, float[4] k",
         "t = Mul (x, k)\n w = DequantizeLinear <axis=0, block_size=2> (q, pos)\n y = MatMul (t, w)",
         reason="NF120"),
    Case("a transposed convolution of groups with other factors", "float[2,4,8,11] x",
         "int8[4,3,1,1] q = {1,2,-3,4,5,6,-7,8,9,10,11,-12}, float[3] pos, float[6,1,1] k",
         "w = DequantizeLinear <axis=1> (q, pos)\n c = ConvTranspose <group=2> (x, w)\n y = Mul (c, k)",
         reason="NF120"),
    Case("integers that are an input", IMAGE + ", int8[5,3,1,1] q", f"float[5] pos, {SIGNS}",
         DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)",
         reason="NF101"),
    Case("a scale that is an input", IMAGE + ", float[5] pos", f"{CODES.removesuffix(', float[5] pos')}, {SIGNS}",
         DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)",
         reason="NF101"),
    Case("a weight that others read", IMAGE, f"{CODES}, {SIGNS}",
         DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)\n y2 = Conv (x, w)",
         reason="NF005", outputs="float[] y, float[] y2"),
    Case("a bias of 8 bits", IMAGE, f"{CODES}, int8[5] r = {{1,2,3,4,5}}, float poss, {SIGNS}",
         DEQUANTIZED + "b = DequantizeLinear (r, poss)\n c = Conv (x, w, b)\n y = Mul (c, k)",
         reason="NF101"),
    Case("a factor in front of what rounds", IMAGE, "float[3,1,1] k, float poss, int8 z = {3}",
         "t = Mul (x, k)\n y = QuantizeLinear (t, poss, z)", reason="NF122 (QuantizeLinear",
         outputs="int8[] y"),
    Case("QLinearConv", "uint8[2,3,8,11] x",
         "float poss, uint8 z = {3}, uint8[5,3,1,1] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,127,15}, float[5,1,1] k",
         "c = QLinearConv (x, poss, z, q, poss, z, poss, z)\n d = DequantizeLinear (c, poss, z)\n y = Mul (d, k)",
         reason="NF122"),
    Case("QLinearMatMul", "uint8[7,3] x", "float poss, uint8 z = {3}, uint8[3,2] q = {1,2,3,4,5,6}, float[2] k",
         "c = QLinearMatMul (x, poss, z, q, poss, z, poss, z)\n d = DequantizeLinear (c, poss, z)\n y = Mul (d, k)",
         reason="NF122"),
    Case("ConvInteger", "uint8[2,3,8,11] x",
         "int8[5,3,1,1] q = {1,2,3,4,5,6,7,8,9,10,11,-12,13,127,15}, float[5,1,1] k",
         "c = ConvInteger (x, q)\n f = Cast <to=1> (c)\n y = Mul (f, k)",
         reason="NF212 (Cast"),
    Case("MatMulInteger", "uint8[7,3] x", "int8[3,2] q = {1,2,3,4,5,6}, float[2] k",
         "c = MatMulInteger (x, q)\n f = Cast <to=1> (c)\n y = Mul (f, k)",
         reason="NF212 (Cast"),
    Case("a factor in front of a dynamic quantization", "float[7,3] x", "int8[3,2] q = {1,2,3,4,5,6}, float[3] k",
         "t = Mul (x, k)\n u, s, z = DynamicQuantizeLinear (t)\n c = MatMulInteger (u, q, z)\n f = Cast <to=1> (c)\n"
         "y = Mul (f, s)", reason="NF122 (DynamicQuantizeLinear"),
]
# fmt: on


@pytest.mark.parametrize("case", FOLDED, ids=ids(FOLDED))
def test_a_map_goes_into_scales_and_integers(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


def test_only_the_integers_of_negative_factors_change() -> None:
    proto = FOLDED[0].model()
    old, new = initializers(proto), initializers(folded(proto)[0])
    signs = np.array([1, -1, 1, -1, 1], np.int8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(new["q"], old["q"] * signs)
    assert new["q"].dtype == np.int8
    np.testing.assert_allclose(new["pos"], old["pos"] * np.array([1, 2, 3, 4, 0.5]), rtol=1e-7)


def test_integers_that_others_read_stay() -> None:
    body = DEQUANTIZED + "c = Conv (x, w)\n y = Mul (c, k)\n y2 = DequantizeLinear <axis=0> (q, pos)"
    proto = Case("", IMAGE, f"{CODES}, {SIGNS}", body, outputs="float[] y, float[] y2").model()
    check_fold(proto, "DequantizeLinear Conv DequantizeLinear")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_executor_of_blocks_is_the_formula(axis: int) -> None:
    """y[i] = (q[i] - z[block of i]) * s[block of i], an index at a time."""
    rng = np.random.default_rng(0)
    q = rng.integers(-9, 9, (4, 6, 5)).astype(np.int8)
    shape = tuple(-(-n // 4) if i == axis else n for i, n in enumerate(q.shape))
    s, z = rng.standard_normal(shape), rng.integers(-9, 9, shape).astype(np.int8)
    (actual,) = [execute.dequantize_linear({"axis": axis, "block_size": 4}, q, s, z)]
    granules = Granules(q.shape, shape, axis, 4)
    for index in np.ndindex(*q.shape):
        block = tuple(n // 4 if i == axis else n for i, n in enumerate(index))
        expected = (float(q[index]) - float(z[block])) * s[block]
        assert actual[index] == expected
        assert ((q - granules.over(z.astype(np.float64))) * granules.over(s))[index] == expected


def test_what_fits_blocks_is_shared() -> None:
    granules = Granules((4, 6), (4, 2), 1, 4)
    np.testing.assert_array_equal(granules.shared(np.array([2.0, 2, 2, 2, 3, 3])), [[2.0, 3.0]])
    assert granules.shared(np.array([2.0, 2, 2, 1, 3, 3])) is None
