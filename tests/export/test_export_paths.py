"""What eager does on masks that hide everything or the end of a row, and fake quantization: the graph does it too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normdeploy.errors import InputError
from normdeploy.export import to_graph
from normdeploy.export.encoder import one_path
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import parse

X = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32)
SPECS = parse(["x:N=1..3..4xT=2..6..9x16@f32", "mask:NxT@bool"])


class Attention(nn.Module):
    def __init__(self, additive: bool) -> None:
        super().__init__()
        self.qkv, self.additive = nn.Linear(16, 48), additive

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        seen = mask[:, None, None, :]
        if self.additive:
            seen = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("additive", [False, True])
def test_a_query_that_may_look_at_nothing_gives_zeros(opset: int, additive: bool) -> None:
    torch.manual_seed(0)
    module = Attention(additive).eval().requires_grad_(False)
    mask = np.ones((3, 6), bool)
    mask[0], mask[1, 3:] = False, False
    got = Float64Runner(to_graph(module, SPECS, opset=opset).model)({"x": X, "mask": mask})["output"]
    with torch.inference_mode():
        eager = module(torch.from_numpy(X), torch.from_numpy(mask)).numpy()
    assert not got[0].any()
    np.testing.assert_allclose(got, eager, rtol=1e-5, atol=1e-6)


class Encoder(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16) if norm else None)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=mask)


def paddings() -> dict[str, np.ndarray]:
    none = np.zeros((3, 6), bool)
    ends = none.copy()
    ends[0, 4:], ends[1, 1:] = True, True
    row, scattered = ends.copy(), ends.copy()
    row[2], scattered[2, 0] = True, True
    return {"none": none, "at the ends": ends, "a whole row": row, "scattered": scattered}


@pytest.mark.parametrize("norm", [False, True])
def test_an_encoder_returns_what_eager_does_on_both_of_its_paths(norm: bool) -> None:
    torch.manual_seed(0)
    module = Encoder(norm).eval().requires_grad_(False)
    run = Float64Runner(to_graph(module, SPECS).model)
    for name, mask in paddings().items():
        with torch.inference_mode():  # the fused path is on
            eager = module(torch.from_numpy(X), torch.from_numpy(mask)).numpy()
            with one_path():
                steady = module(torch.from_numpy(X), torch.from_numpy(mask)).numpy()
        np.testing.assert_allclose(steady, eager, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(run({"x": X, "mask": mask})["output"], eager, rtol=1e-4, atol=1e-5, err_msg=name)
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_encoder_returns_zeros_for_a_row_of_one_hidden_token() -> None:
    """One token leaves no pairs of neighbours to look at, where the padding might start again."""
    torch.manual_seed(0)
    module = Encoder(norm=False).eval().requires_grad_(False)
    x, mask = X[:, :1], np.array([[False], [True], [False]])
    graph = to_graph(module, parse(["x:N=1..3..4xT=1..6..9x16@f32", "mask:NxT@bool"])).model
    with torch.inference_mode():
        eager = module(torch.from_numpy(x), torch.from_numpy(mask)).numpy()
    assert not eager[1].any()
    served = OnnxRuntimeRunner(ir.serde.serialize_model(graph).SerializeToString(), threads=1)
    for run in (Float64Runner(graph), served):
        np.testing.assert_allclose(run({"x": x, "mask": mask})["output"], eager, rtol=1e-4, atol=1e-5)


class Anywhere(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        later = x[:, 1:] > 0
        return {
            "all": later.any(),
            "dim": later.any(1),
            "kept": later.any(-1, keepdim=True),
            "dims": torch.any(later, (0, 1)),
            "floats": torch.any(x[:, 1:], 1),
            "scalar": later.sum().any(),
        }


def test_any_of_nothing_is_false() -> None:
    graph = to_graph(Anywhere().eval(), parse(["x:N=1..2..4xT=1..3..9@f32"])).model
    served = OnnxRuntimeRunner(ir.serde.serialize_model(graph).SerializeToString(), threads=1)
    for x in (X[0, :2, :1], X[0, :4, :3], np.zeros((2, 3), np.float32), -np.ones((1, 1), np.float32)):
        for run in (Float64Runner(graph), served):
            got = run({"x": x})
            for name, expected in Anywhere()(torch.from_numpy(x)).items():
                assert (got[name].dtype, got[name].shape) == (np.dtype(bool), tuple(expected.shape)), name
                np.testing.assert_array_equal(got[name], expected.numpy(), err_msg=name)


class Extremes(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "all": x.amax(),
            "kept": x.amin(keepdim=True),
            "dim": x.amin(1),
            "dims": x.abs().amax((0, -1), keepdim=True),
            "scalar": x.sum().amax(),
            "both": torch.aminmax(x).min,
        }


def test_extremes_over_some_and_over_all_dimensions() -> None:
    graph = to_graph(Extremes().eval(), parse(["x:N=1..2..4xT=1..3..9@f32"])).model
    served = OnnxRuntimeRunner(ir.serde.serialize_model(graph).SerializeToString(), threads=1)
    for x in (X[0, :2, :1], X[0, :4, :3], X[1, :1, :9]):
        for run in (Float64Runner(graph), served):
            got = run({"x": x})
            for name, expected in Extremes()(torch.from_numpy(x)).items():
                assert got[name].shape == tuple(expected.shape), name
                np.testing.assert_allclose(got[name], expected.numpy(), rtol=1e-6, err_msg=name)


class Quantized(nn.Module):
    def __init__(self, quantize: Any) -> None:
        super().__init__()
        self.conv, self.quantize = nn.Conv2d(3, 4, 1), quantize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.quantize(x))


def observed(per_channel: bool = False) -> Any:
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

    observer = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    made = FakeQuantize(observer, quant_min=-128, quant_max=127, dtype=torch.qint8, qscheme=scheme)
    made(torch.randn(3, 9))
    return made


def function(x: torch.Tensor) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 0.03, 0, -128, 127)


@pytest.mark.parametrize("kind", ["function", "module"])
def test_fake_quantization_is_exported_at_dynamic_sizes(kind: str) -> None:
    torch.manual_seed(0)
    quantize = function if kind == "function" else observed()
    if kind == "module":
        quantize.disable_observer()
    module = Quantized(quantize).eval().requires_grad_(False)
    model = to_graph(module, parse(["x:N=1..2..4x3x5x5@f32"])).model
    x = np.random.default_rng(1).standard_normal((3, 3, 5, 5)).astype(np.float32)
    eager = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(Float64Runner(model)({"x": x})["output"], eager, rtol=1e-5, atol=1e-6)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph}


def test_an_observer_that_is_still_on_is_refused_by_name() -> None:
    module = Quantized(observed()).eval().requires_grad_(False)
    with pytest.raises(InputError, match="observer of a FakeQuantize is on") as caught:
        to_graph(module, parse(["x:2x3x5x5@f32"]))
    assert "quantize" in caught.value.where
