"""Norms as people write them in PyTorch: whatever averages for a norm stays float32 when the rest is float16."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normdeploy.engine.lint import lint
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.precision import to_precision
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import parse

AVERAGES = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool", "InstanceNormalization")


def annotated(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)


def by_var_mean(x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-6).sqrt()


def by_squares(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) / ((x**2).mean(1, keepdim=True) - mean**2 + 1e-6).sqrt()


def by_sums(x: Tensor) -> Tensor:
    mean = x.sum(1, keepdim=True) / x.shape[1]
    return (x - mean) * ((x - mean) * (x - mean)).sum(1, keepdim=True).div(x.shape[1]).add(1e-6).pow(-0.5)


def by_norm(x: Tensor) -> Tensor:
    return x / (x.norm(dim=1, keepdim=True) * x.shape[1] ** -0.5 + 1e-6)


def over_the_image(x: Tensor) -> Tensor:
    """As GlobalResponseNorm."""
    size = x.norm(dim=(2, 3), keepdim=True)
    return x * (size / (size.mean(1, keepdim=True) + 1e-6))


def whitened(x: Tensor) -> Tensor:
    """Over a batch, which a group of activations is."""
    flat = x.flatten(2)
    std, mean = torch.std_mean(flat, dim=2, keepdim=True)
    return ((flat - mean) / std.clamp_min(1e-5)).view_as(x)


FUNCTIONS = [annotated, by_var_mean, by_squares, by_sums, by_norm, over_the_image, whitened, F.normalize]
MODULES = [
    nn.BatchNorm2d(8, track_running_stats=False),
    nn.GroupNorm(2, 8),
    nn.LocalResponseNorm(3, alpha=1.0),
]


class Net(nn.Module):
    """A convolution whose outputs are around ``gain``, a norm, a convolution."""

    def __init__(self, norm: nn.Module | object, gain: float) -> None:
        super().__init__()
        self.norm, self.gain = norm, gain
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x) * self.gain))  # type: ignore[operator]


def narrow_averages(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type in AVERAGES and node.inputs[0].dtype == ir.DataType.FLOAT16:
            yield f"{node.op_type} {node.name}"


def name_of(norm: object) -> str:
    """Return what a test of ``norm`` is called; not by its address, which differs from process to process."""
    return getattr(norm, "__name__", str(norm))


@pytest.mark.parametrize("norm", [*FUNCTIONS, *MODULES], ids=name_of)
def test_no_statistics_are_averaged_in_float16(norm: nn.Module | object) -> None:
    torch.manual_seed(0)
    net = Net(norm, 1500.0).eval()
    exported = to_graph(net, parse(["x:N=2..2..3x3x5x6"])).model
    assert not list(narrow_averages(exported))
    for graph in (exported, fold(exported).model):
        narrow = to_precision(graph, "fp16")
        assert not list(narrow_averages(narrow))
        heavy = [node for node in narrow.graph if node.op_type == "Conv"]
        assert heavy
        assert all(node.inputs[0].dtype == ir.DataType.FLOAT16 for node in heavy)
        x = torch.randn(2, 3, 5, 6)
        exact = net.double()(x.double()).detach().numpy()
        net.float()
        session = OnnxRuntimeRunner(ir.to_proto(narrow).SerializeToString(), threads=1)
        actual = session({"x": x.numpy()})["output"]
        # what 16-bit operators before and behind the norm lose: 16 units of half precision
        assert np.abs(actual - exact).max() < 16 * 2.0**-11 * np.abs(exact).max()


@pytest.mark.parametrize("norm", [annotated, by_squares, MODULES[0]], ids=name_of)
def test_a_graph_that_averages_in_float16_is_told_before_an_engine_is_built(norm: nn.Module | object) -> None:
    """Exported from a module in float16, where torch averages in float32 and the graph it writes does not."""
    specs = parse(["x:N=2..2..3x3x5x6@f16"])
    exported = to_graph(Net(norm, 1.0).eval().half(), specs, opset=22).model
    assert list(narrow_averages(exported))
    assert any("a norm spelled out in" in problem.what for problem in lint(exported, specs))
