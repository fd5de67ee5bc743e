"""InstanceNormalization absorbs from behind, as LayerNormalization does; nothing passes its statistics."""

from __future__ import annotations

import pytest
import torch
from cases import Case, ids
from harness import bn, check_fold, model, norm
from support import says

from normdeploy.fold.operators.table import run

# fmt: off
# A table: a case a row, as wide as the page.

ABSORBED = [
    Case("InstanceNormalization, then a norm", "float[2,5,6,9] x", f"float[5] s, float[5] q, {bn(5)}",
         "c = InstanceNormalization <epsilon=0.01> (x, s, q)\n" + norm("c", "y"), "InstanceNormalization"),
    Case("InstanceNormalization of one axis, then Mul and Add", "float[N,5,L] x",
         "float[5] s, float[5] q, float[5,1] k, float[5,1] a",
         "c = InstanceNormalization (x, s, q)\n d = Mul (c, k)\n y = Add (d, a)", "InstanceNormalization", opset=13),
    Case("InstanceNormalization, then one number for all channels", "float[N,5,T,H,W] x",
         "float[5] s, float[5] q, float k", "c = InstanceNormalization (x, s, q)\n y = Mul (c, k)",
         "InstanceNormalization"),
    Case("InstanceNormalization that shares its scale with another reader", "float[2,5,6,9] x",
         "float[5] s, float[5,1,1] k", "c = InstanceNormalization (x, s, s)\n d = Mul (c, k)\n"
         "y2 = InstanceNormalization (d, s, s)\n y = Relu (d)", "InstanceNormalization InstanceNormalization Relu",
         outputs="float[] y, float[] y2"),
]

GROUPS = "int64[3] split = {0,3,-1}, float[3] one = {1,1,1}, float[3] zero = {0,0,0}"
EACH = "float[6,1,1] k = {1.5,1.5,-2,-2,3,3}, float[6,1,1] a = {0.5,0.5,-1,-1,2,2}"
SPELLED = "g = Reshape (x, split)\n n = InstanceNormalization (g, one, zero)\n h = Shape (x)\n r = Reshape (n, h)\n"
MAPPED = "m = Mul (r, k)\n t = Add (m, a)\n"

SPELLED_GROUPS = [
    Case("its map goes on into a conv", "float[N,6,H,W] x",
         f"{GROUPS}, float[6,1,1] k, float[6,1,1] a, float[5,6,3,3] w, float[5] b",
         SPELLED + MAPPED + "y = Conv (t, w, b)", "Reshape InstanceNormalization Shape Reshape Conv", opset=17),
    Case("its map is the same for each channel of a group", "float[N,6,H,W] x", f"{GROUPS}, {EACH}",
         SPELLED + MAPPED + "y = Relu (t)", "Reshape InstanceNormalization Shape Reshape Relu", opset=17),
    Case("of a sequence, its map is the same for each channel of a group", "float[2,6,9] x",
         f"{GROUPS}, float[6,1] k = {{1.5,1.5,-2,-2,3,3}}", SPELLED + "m = Mul (r, k)\n y = Relu (m)",
         "Reshape InstanceNormalization Reshape Relu", opset=17),
    Case("a map in front of groups, on the groups themselves", "float[N,3,H,W] x",
         "float[3,1,1] k, int64[4] s = {0,6,4,-1}, float[4,6,1,1] w",
         "t = Mul (x, k)\n r = Reshape (t, s)\n y = Conv (r, w)", "Reshape Conv", opset=17),
]
# fmt: on


@pytest.mark.parametrize("case", SPELLED_GROUPS, ids=ids(SPELLED_GROUPS))
def test_groups_that_are_spelled_by_it(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", ABSORBED, ids=ids(ABSORBED))
def test_a_map_behind_it_is_its_own_scale_and_bias(case: Case) -> None:
    ledger = check_fold(case.model(), case.becomes)
    (own, *_) = [entry for entry in ledger if entry.kind == "InstanceNormalization"]
    assert says(own, "NF302")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_it_keeps_its_dtype(dtype: str) -> None:
    weights = f"{dtype}[5] s, {dtype}[5] q, {dtype}[5,1,1] k"
    body = "c = InstanceNormalization (x, s, q)\n y = Mul (c, k)"
    proto = model(f"{dtype}[2,5,6,9] x", weights, body, outputs=f"{dtype}[] y", opset=22)
    check_fold(proto, "InstanceNormalization", onnxruntime=False)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_its_executor_is_pytorchs(spatial: int) -> None:
    x, scale, bias = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4, 5, 6)[: 2 + spatial], (3,), (3,))
    )
    expected = torch.nn.functional.instance_norm(x, weight=scale, bias=bias, eps=float(torch.tensor(1e-2)))
    (actual,) = run("InstanceNormalization", {"epsilon": 1e-2}, [x.numpy(), scale.numpy(), bias.numpy()], 21)
    assert abs(actual - expected.numpy()).max() < 1e-9
