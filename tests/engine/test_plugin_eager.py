"""The operators of plugins in eager PyTorch, in the types that they are deployed in."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from normdeploy.engine import plugin_eager

GENERATOR = torch.Generator().manual_seed(0)
X, R = (torch.randn(2, 3, 4, 8, generator=GENERATOR) for _ in range(2))
GAMMA, BETA = (torch.randn(4, 8, generator=GENERATOR) for _ in range(2))
ATTRIBUTES = {"epsilon": 1e-3, "axis": -2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_plugin_runs_in_every_type(dtype: torch.dtype) -> None:
    x, r, gamma, beta = (tensor.to(dtype) for tensor in (X, R, GAMMA, BETA))
    y, total = plugin_eager.run("AddLayerNorm", ATTRIBUTES, [x, r, gamma, beta])
    assert torch.equal(total, x + r)
    exact = layer_norm((x + r).double(), (4, 8), gamma.double(), beta.double(), 1e-3)
    # float64 on a CPU, rounded once; eps is the float32 that ONNX holds
    torch.testing.assert_close(y, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_one_element_stands_for_all_features() -> None:
    (y,) = plugin_eager.run("LayerNorm", ATTRIBUTES, [X, torch.tensor([2.0]), torch.tensor([0.5])])
    torch.testing.assert_close(y, 2 * layer_norm(X, (4, 8), eps=1e-3) + 0.5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("to", "dtype"), [(3, torch.int8), (17, torch.float8_e4m3fn)])
def test_a_quantized_one_has_its_type(to: int, dtype: torch.dtype) -> None:
    scale = torch.tensor(0.05)
    (y,) = plugin_eager.run("LayerNormQuantize", ATTRIBUTES | {"to": to}, [X, GAMMA, BETA, scale])
    exact = layer_norm(X.double(), (4, 8), GAMMA.double(), BETA.double(), 1e-3).float() / scale
    assert y.dtype == dtype
    expected = exact.round().clamp(-128, 127) if to == 3 else exact.clamp(-448, 448).to(dtype).float()
    assert torch.equal(y.float(), expected)
