"""Pooling at dynamic sizes: as in PyTorch at every size, or refused with what works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exporting import export, hold, nodes
from test_export_sizes import advised
from torch import nn

from normdeploy.errors import InputError
from normdeploy.export import to_graph
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.specs import parse

PLANE = "x:N=1..2..3x3xH=2..7..9xW=5..8..11"


class Pools(nn.Module):
    """Several layers on one input, each an output of its own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


@pytest.mark.parametrize(
    ("layers", "spec"),
    [
        (
            (nn.AdaptiveAvgPool1d(4), nn.AdaptiveMaxPool1d(4), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, ceil_mode=True)),
            "x:N=1..2..3x3xT=2..7..9",
        ),
        ((nn.AdaptiveAvgPool2d((4, None)), nn.AdaptiveMaxPool2d((3, 4)), nn.AdaptiveMaxPool2d(1)), PLANE),
        ((nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4)), "x:1x3xH=4..8..24%4x10"),
        ((nn.AdaptiveAvgPool3d(3), nn.AdaptiveMaxPool3d((2, 3, 1))), "x:N=1..2..3x2xD=2..4..5xH=5..6..7x3"),
        (
            (nn.AdaptiveAvgPool3d(2), nn.AdaptiveMaxPool2d((3, 4)), nn.AvgPool2d(3, 2, 1, divisor_override=5)),
            "x:2x3x7x10",
        ),
    ],
    ids=["length", "plane", "multiples", "volume", "fixed"],
)
def test_pools_are_pytorchs_at_every_size(layers: tuple[nn.Module, ...], spec: str) -> None:
    hold(Pools(*layers), spec)


def test_adaptive_pooling_by_whole_windows_is_plain_pooling() -> None:
    (node,) = nodes(hold(Pools(nn.AdaptiveMaxPool2d((3, 4))), "x:2x3x9x8"))
    assert node.op_type == "MaxPool"
    assert len(node.outputs) == 1  # no indices, which TensorRT has not


def test_a_window_that_may_begin_beyond_the_input_is_refused_with_the_multiples_that_work() -> None:
    pool = nn.MaxPool1d(2, 3, ceil_mode=True)
    spec = "input:N=1..2..3x3xT=7..10..15"
    assert advised(pool, spec) == ["input:N=1..2..3x3xT=9..9..15%3@f32"]
    hold(pool, "input:N=1..2..3x3xT=9..9..15%3@f32")


def test_what_pools_by_a_divisor_of_its_own_beyond_the_input_is_refused() -> None:
    with pytest.raises(InputError, match="by a divisor of its own, cannot be exported"):
        export(nn.AvgPool2d(2, 2, ceil_mode=True, divisor_override=3), "input:1x3x5x5")
    padded = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 2, divisor_override=3))
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(padded(x), nn.AvgPool2d(2, 2, ceil_mode=True, divisor_override=3)(x))
    hold(padded, "input:1x3x5x5")


def test_indices_of_adaptive_maxima_are_refused() -> None:
    with pytest.raises(InputError, match="adaptive_max_pool2d cannot be exported"):
        export(nn.AdaptiveMaxPool2d(3, return_indices=True), "input:1x3x7x8")


def test_a_divisor_is_float64s_in_float64() -> None:
    module, x = nn.AvgPool2d(3, 2, divisor_override=7), torch.rand(1, 3, 7, 7, dtype=torch.float64)  # no sum cancels
    got = Float64Runner(to_graph(module, parse(["input:1x3x7x7@f64"])).model)({"input": x.numpy()})["output"]
    np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-14)
