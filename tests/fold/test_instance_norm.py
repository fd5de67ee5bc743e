"""InstanceNormalization absorbs from behind, as LayerNormalization does; nothing passes its statistics."""

from __future__ import annotations

import pytest
import torch
from cases import Case, ids
from harness import bn, check_fold, model, norm

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
# fmt: on


@pytest.mark.parametrize("case", ABSORBED, ids=ids(ABSORBED))
def test_a_map_behind_it_is_its_own_scale_and_bias(case: Case) -> None:
    ledger = check_fold(case.model(), case.becomes)
    (own, *_) = [entry for entry in ledger if entry.kind == "InstanceNormalization"]
    assert "divides by statistics of its own input" in own.reason


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
