"""The kernel's PyTorch operators where there is no GPU: their rules hold, and they compute what torch does."""

from __future__ import annotations

import pytest
import torch

from normdeploy.errors import InputError
from normdeploy.kernels import ops


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


SCALE = torch.tensor([0.05])
CALLS = {
    "layer_norm": (ops.layer_norm, (drawn(2, 3, 16), drawn(16), drawn(16), 1e-5)),
    "layer_norm, no weights": (ops.layer_norm, (drawn(4, 8, dtype=torch.float16), None, None, 1e-5)),
    "rms_norm": (ops.rms_norm, (drawn(5, 16, dtype=torch.bfloat16), drawn(16), 1e-6)),
    "add_layer_norm": (ops.add_layer_norm, (drawn(2, 16), drawn(2, 16), drawn(16), None, 1e-5)),
    "layer_norm_quantize": (ops.layer_norm_quantize, (drawn(3, 16), drawn(16), None, SCALE, 1e-5, torch.int8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator_keeps_its_rules(name: str) -> None:
    operator, arguments = CALLS[name]
    torch.library.opcheck(operator, arguments)


def test_layer_norm_is_torchs() -> None:
    x, gamma, beta = drawn(7, 32).double(), drawn(32).double(), drawn(32).double()
    expected = torch.nn.functional.layer_norm(x, (32,), gamma, beta, 1e-5)
    torch.testing.assert_close(ops.layer_norm(x, gamma, beta, 1e-5), expected, rtol=1e-12, atol=1e-12)


def test_rms_norm_is_torchs() -> None:
    x, gamma = drawn(7, 32).double(), drawn(32).double()
    expected = torch.nn.functional.rms_norm(x, (32,), gamma, 1e-6)
    torch.testing.assert_close(ops.rms_norm(x, gamma, 1e-6), expected, rtol=1e-12, atol=1e-12)


def test_add_layer_norm_rounds_its_sum_first() -> None:
    x, residual = drawn(7, 32, dtype=torch.float16), drawn(7, 32, dtype=torch.float16) + 1
    y, total = ops.add_layer_norm(x, residual, None, None, 1e-5)
    assert torch.equal(total, x + residual)
    expected = torch.nn.functional.layer_norm((x + residual).double(), (32,)).half()
    assert torch.equal(y, expected)


def test_quantized_is_what_quantizing_gives() -> None:
    x = drawn(9, 64)
    plain = torch.nn.functional.layer_norm(x.double(), (64,)).float()
    got = ops.layer_norm_quantize(x, None, None, SCALE, 1e-5, torch.int8)
    expected = torch.clamp(torch.round(plain / SCALE), -128, 127).to(torch.int8)
    assert torch.equal(got, expected)
    with pytest.raises(InputError, match="int8 or float8_e4m3fn"):
        ops.layer_norm_quantize(x, None, None, SCALE, 1e-5, torch.uint8)


def test_autocast_keeps_sixteen_bits() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.ops.normdeploy.layer_norm(drawn(2, 8), drawn(8), drawn(8), 1e-5).dtype == torch.bfloat16


def test_compiled_code_calls_it() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.normdeploy.layer_norm(x * 2, None, None, 1e-5) + 1

    x = drawn(3, 8)
    torch.testing.assert_close(block(x), torch.nn.functional.layer_norm(x * 2, (8,)) + 1)
