"""A scalar scale and shift stay a Mul and an Add: no norm appears where none was."""

from __future__ import annotations

import pytest
from harness import assert_same, folded, model, op_types


@pytest.mark.parametrize(
    ("data", "becomes"),
    [
        ("float[N,3,H,W] x", {"Relu": 2, "Mul": 1, "Sub": 1}),
        ("float[N,T,3] x", {"Relu": 2, "Mul": 1, "Sub": 1}),
    ],
)
def test_scalars(data: str, becomes: dict[str, int]) -> None:
    body = "r = Relu (x)\n m = Mul (r, k)\n n = Sub (m, j)\n y = Relu (n)"
    proto = model(data, "float k = {2.0}, float j = {1.0}", body)
    after, _ = folded(proto)
    assert op_types(after) == becomes
    assert_same(proto, after)
