"""Every norm of torch.nn leaves PyTorch as it came: same values, one node where ONNX has one, its eps to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exporting import export, hold, lived_in, operators, run
from torch import nn

from normdeploy.export import OPSETS

# Sizes are pairwise distinct: a norm over the wrong axis cannot give the right shape.
BATCH_NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bn1d of N,C": (lambda: nn.BatchNorm1d(3), "input:N=1..2..5x3"),
    "bn1d of N,C,L": (lambda: nn.BatchNorm1d(3), "input:N=1..2..5x3xL=2..4..7"),
    "bn2d": (lambda: nn.BatchNorm2d(3), "input:N=1..2..5x3x4x6"),
    "bn2d of dynamic size": (lambda: nn.BatchNorm2d(3), "input:2x3xH=4..5..8xW=6..6..9"),
    "bn3d": (lambda: nn.BatchNorm3d(3), "input:N=1..2..5x3x4x6x2"),
    "bn without affine": (lambda: nn.BatchNorm2d(3, affine=False), "input:N=1..2..5x3x4x6"),
    "bn of tiny eps": (lambda: nn.BatchNorm2d(3, eps=1e-12), "input:N=1..2..5x3x4x6"),
    "bn of cumulative momentum": (lambda: nn.BatchNorm2d(3, momentum=None), "input:N=1..2..5x3x4x6"),
    "in1d with statistics": (
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        "input:N=1..2..5x3xL=2..4..7",
    ),
    "in2d with statistics": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        "input:N=1..2..5x3x4x6",
    ),
    "in3d with statistics, no affine": (
        lambda: nn.InstanceNorm3d(3, track_running_stats=True),
        "input:N=1..2..5x3x4x6x2",
    ),
}
LAYER_NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ln over W": (lambda: nn.LayerNorm(4), "input:N=1..2..5xT=1..3..7x4"),
    "ln over H,W": (lambda: nn.LayerNorm((3, 4)), "input:N=1..2..5x2x3x4"),
    "ln over C,H,W": (lambda: nn.LayerNorm((2, 3, 4)), "input:N=1..2..5x2x3x4"),
    "ln without affine": (lambda: nn.LayerNorm(4, elementwise_affine=False), "input:N=1..2..5xT=1..3..7x4"),
    "ln without bias": (lambda: nn.LayerNorm(4, bias=False), "input:N=1..2..5xT=1..3..7x4"),
}
OTHER_NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gn": (lambda: nn.GroupNorm(2, 6), "input:N=1..2..5x6x4x3"),
    "gn of one group": (lambda: nn.GroupNorm(1, 6), "input:N=1..2..5x6xL=2..4..7"),
    "gn without affine": (lambda: nn.GroupNorm(3, 6, affine=False), "input:N=1..2..5x6x4x2"),
    "rms": (lambda: nn.RMSNorm(4), "x:N=1..2..5xT=1..3..7x4"),
    "rms of tiny eps": (lambda: nn.RMSNorm((3, 4), eps=1e-12), "x:N=1..2..5x3x4"),
    "in2d of its own statistics": (lambda: nn.InstanceNorm2d(3, affine=True), "input:N=1..2..5x3x4x6"),
    "in1d without affine": (lambda: nn.InstanceNorm1d(3), "input:N=1..2..5x3xL=3..4..7"),
}
NORMS = BATCH_NORMS | LAYER_NORMS | OTHER_NORMS


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_means_in_onnx_what_it_means_in_float64(name: str) -> None:
    make, spec = NORMS[name]
    exported = hold(lived_in(make()), spec)
    if name in BATCH_NORMS:
        assert operators(exported) == {"BatchNormalization": 1}
    if name in LAYER_NORMS:
        assert operators(exported) == {"LayerNormalization": 1}


class AllNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.gn = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.ln, self.rms = nn.LayerNorm(5, eps=1e-12), nn.RMSNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rms(self.ln(self.instance(self.gn(self.bn(x)))))


@pytest.mark.parametrize("opset", OPSETS)
def test_the_norms_are_right_at_every_opset(opset: int) -> None:
    exported = hold(lived_in(AllNorms()), "x:N=1..2..4x6x3x5", opset=opset)
    assert exported.model.opset_imports == {"": opset}


def test_a_norm_behind_a_convolution_is_not_merged_into_it() -> None:
    for convolution, spec in (
        (nn.Conv2d(3, 4, 3), "input:N=1..2..4x3x5x6"),
        (nn.ConvTranspose2d(3, 4, 3), "input:N=1..2..4x3x5x6"),
    ):
        exported = hold(lived_in(nn.Sequential(convolution, nn.BatchNorm2d(4))), spec)
        assert operators(exported)["BatchNormalization"] == 1


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4, eps=1e-12), nn.LayerNorm(4, eps=1e-12), nn.LayerNorm(4, eps=1e-9)], ids=str
)
def test_the_eps_of_a_norm_is_kept_to_the_bit(norm: nn.BatchNorm1d | nn.LayerNorm) -> None:
    exported = export(lived_in(norm), "input:N=1..2..4x4")
    (node,) = exported.model.graph
    assert np.float32(node.attributes["epsilon"].as_float()) == np.float32(norm.eps)


class HandWritten(nn.Module):
    """A LayerNorm out of operators, with an eps that is below float32's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-12)


def test_a_tiny_constant_is_not_dropped() -> None:
    exported = export(HandWritten(), "x:N=1..2..4x8")
    constant = np.full((2, 8), 3, np.float32)
    np.testing.assert_array_equal(run(exported, {"x": constant})["output"], np.zeros((2, 8), np.float32))
    hold(HandWritten(), "x:N=1..2..4x8")


class NormOfConstants(nn.Module):
    """A norm whose input is no input: all that it is could be evaluated, and none of it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4))
        self.bn, self.ln = nn.BatchNorm1d(4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn(self.table * 2) + self.ln(self.table)


def test_a_norm_of_constants_stays_a_node() -> None:
    exported = hold(lived_in(NormOfConstants()), "x:N=1..2..4x5x4")
    assert operators(exported) == {"BatchNormalization": 1, "LayerNormalization": 1, "Add": 2}


class NormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x) * self.bn(self.bn(x))


def test_each_call_of_a_norm_is_a_node_of_its_own() -> None:
    exported = hold(lived_in(NormTwice()), "x:N=1..2..5x4")
    assert operators(exported)["BatchNormalization"] == 3


@pytest.mark.parametrize("eps", [1e-5, 1e-3], ids=str)  # as float32 it is below, and above
@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.InstanceNorm1d], ids=["bn", "in with statistics"])
def test_in_float64_the_eps_is_that_of_float64(make: Callable[..., nn.Module], eps: float) -> None:
    norm = make(3, eps=eps, affine=True, track_running_stats=True).double().eval()
    norm.running_mean.copy_(torch.tensor([0.3, -2.0, 0.0]))
    norm.running_var.copy_(torch.tensor([0.0, 1e-6, 2.0]))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    deviation = np.sqrt(norm.running_var.numpy() + eps)[:, None]
    wanted = (x - norm.running_mean.numpy()[:, None]) / deviation
    (actual,) = run(export(norm, "input:2x3x4@f64"), {"input": x}).values()
    np.testing.assert_allclose(actual, wanted, rtol=1e-14)
