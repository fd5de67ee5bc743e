"""Einsum with a constant operand takes maps over letters of its weight, and multiplies shifts through."""

from __future__ import annotations

import pytest
from cases import Case, ids
from harness import check_fold, check_refusal

# fmt: off
# A table: a case a row, as wide as the page.

def einsum(equation: str, args: str) -> str:
    return f'c = Einsum <equation="{equation}"> ({args})\n'


def front(equation: str, args: str = "t, w") -> str:
    return "t = Mul (x, k)\n" + f'y = Einsum <equation="{equation}"> ({args})'


MAPPED = "u = Mul (x, k)\n t = Add (u, a)\n"
BEHIND = "d = Add (c, b)\n y = Relu (d)"

FOLDED = [
    Case("a linear layer, a scale behind", "float[7,3] x", "float[5,3] w, float[5] k",
         einsum("bj,kj->bk", "x, w") + "y = Mul (c, k)", "Einsum"),
    Case("a linear layer, a scale in front", "float[N,3] x", "float[5,3] w, float[3] k", front("bj,kj->bk"), "Einsum"),
    Case("the weight in front", "float[N,T,3] x", "float[3,5] w, float[3] k", front("ij,bti->btj", "w, t"), "Einsum"),
    Case("an equation without a result, with blanks", "float[2,3] x", "float[3,5] w, float[5] h, float[3] k",
         "t = Mul (x, k)\n" + einsum("bi, ij", "t, w") + "y = Mul (c, h)", "Einsum"),
    Case("capitals sort before small letters", "float[2,3] x", "float[3,5] w, float[5,1] h",
         einsum("bi,iJ", "x, w") + "y = Mul (c, h)", "Einsum", onnxruntime=False),
    Case("heads: a scale of each head and feature behind", "float[N,T,3] x", "float[3,4,2] w, float[4,2] k",
         einsum("btd,dhe->bthe", "x, w") + "y = Mul (c, k)", "Einsum"),
    Case("heads: out of them, a scale in front", "float[N,T,4,2] x", "float[4,2,3] w, float[4,1] k",
         front("bthe,hed->btd"), "Einsum"),
    Case("letters that stay in another order", "float[2,7,3] x", "float[3,4,2] w, float[4,1,1] k",
         einsum("btd,dhe->bhte", "x, w") + "y = Mul (c, k)", "Einsum"),
    Case("a letter of all three, in front and behind", "float[2,4,3] x", "float[4,3,5] w, float[4,3] k, float[4,5] h",
         "t = Mul (x, k)\n" + einsum("bgi,gij->bgj", "t, w") + "y = Mul (c, h)", "Einsum"),
    Case("a map in front of a layer with a bias", "float[7,3] x", "float[5,3] w, float[5] b, float[3] k, float[3] a",
         MAPPED + einsum("bj,kj->bk", "t, w") + BEHIND, "Einsum Add Relu"),
    Case("a map in front of groups with a bias", "float[2,4,3] x",
         "float[4,3,5] w, float[4,5] b, float[3] k, float[4,3] a",
         MAPPED + einsum("bgi,gij->gbj", "t, w") + "d = Transpose <perm=[1,0,2]> (c)\n e = Add (d, b)\n y = Relu (e)",
         "Einsum Transpose Add Relu"),
    Case("a shift for each position", "float[2,7,3] x", "float[3,5] w, float[7,5] b, float[7,3] a",
         "t = Add (x, a)\n" + einsum("btd,de->bte", "t, w") + BEHIND, "Einsum Add Relu"),
    Case("a letter of the data that is summed, a scale", "float[2,7,3] x", "float[3,5] w, float[3] k",
         front("bti,ij->bj"), "Einsum"),
    Case("a letter of the weight that is summed", "float[2,3] x", "float[3,5,2] w, float[5] k",
         einsum("bi,ijq->bj", "x, w") + "y = Mul (c, k)", "Einsum"),
    Case("one number, of which nothing is left", "float[3] x", "float[3] w, float k", front("i,i->"), "Einsum"),
    Case("a quantized weight", "float[7,3] x", "int8[3,2] q = {1,2,3,4,5,-6}, float[2] pos, float[2] k",
         "w = DequantizeLinear <axis=1> (q, pos)\n" + einsum("bi,ij->bj", "x, w") + "y = Mul (c, k)",
         "DequantizeLinear Einsum"),
]

REFUSED = [
    Case("an ellipsis", "float[2,7,3] x", "float[3,5] w, float[3] k", front("...i,ij->...j"), reason="NF213"),
    Case("a diagonal", "float[3,3] x", "float[3,5] w, float[3,1] k", front("ii,ij->j"),
         reason="NF213"),
    Case("one operand", "float[7,3] x", "float[3] k", "t = Mul (x, k)\n" + 'y = Einsum <equation="ij->ji"> (t)',
         reason="NF213"),
    Case("three operands", "float[7,3] x", "float[3,5] w, float[5,4] v, float[3] k", front("bi,ij,jk->bk", "t, w, v"),
         reason="NF213"),
    Case("two activations", "float[7,3] x, float[3,5] z", "float[3] k", front("bi,ij->bj", "t, z"),
         reason="NF101"),
    Case("a shift behind", "float[7,3] x", "float[3,5] w, float[5] b", einsum("bi,ij->bj", "x, w") + BEHIND,
         reason="NF108"),
    Case("a scale over a letter that the weight does not have", "float[2,7,3] x", "float[3,5] w, float[7,1] k",
         front("bti,ij->btj"), reason="NF016"),
    Case("a scale over a letter that is summed in the data alone", "float[2,7,3] x", "float[3,5] w, float[7,1] k",
         front("bti,ij->bj"), reason="NF016"),
    Case("a shift where the data is summed over a letter of its own", "float[2,7,3] x",
         "float[3,5] w, float[5] b, float[3] a", "t = Add (x, a)\n" + einsum("bti,ij->bj", "t, w") + BEHIND,
         reason="NF014"),
    Case("a map on the weight", "float[7,3] x, float[3,5] z", "float[3,5] k, float[7,3] w",
         "t = Mul (z, k)\n y = Einsum <equation=\"bi,ij->bj\"> (x, t)", reason="NF101"),
]
# fmt: on


@pytest.mark.parametrize("case", FOLDED, ids=ids(FOLDED))
def test_into_the_weight(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)
