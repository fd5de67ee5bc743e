"""A weight behind a chain of constants is computed when the model is written, long after its nodes are gone."""

from __future__ import annotations

import pytest
from harness import assert_same, bn, folded, model, norm, op_types


@pytest.mark.parametrize(
    ("weight", "chain"),
    [
        ("float[3,5,3,3] w", "t = Transpose <perm=[1,0,2,3]> (w)"),
        ("float16[5,3,3,3] w", "t = Cast <to=1> (w)"),
        ("float[5,27] w, int64[4] s = {5,3,3,3}", "t = Reshape (w, s)"),
        ("float[5,3,3,3] w, float k = {2.0}", "t = Mul (w, k)"),
        ("float[3,5,3,3] w, float k = {2.0}", "u = Mul (w, k)\n t = Transpose <perm=[1,0,2,3]> (u)"),
        ("float[3,5,3,3] w, float k = {2.0}", "u = Transpose <perm=[1,0,2,3]> (w)\n t = Mul (u, k)"),
    ],
)
def test_the_chain_goes_and_its_result_stays(weight: str, chain: str) -> None:
    proto = model("float[2,3,8,11] x", f"{weight}, {bn(5)}", f"{chain}\n c = Conv (x, t)\n{norm('c', 'y')}")
    after, _ = folded(proto)
    assert op_types(after) == {"Conv": 1}
    assert_same(proto, after)
