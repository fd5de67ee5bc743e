"""A network keeps its dynamic sizes, whatever torch exported before it in this process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normdeploy.export.capture import capture
from normdeploy.specs import parse


class First(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(x)[0]
        return output


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_length_is_not_that_of_the_export_before(kind: type[nn.RNNBase]) -> None:
    module = First(kind(5, 4, num_layers=2, batch_first=True, bidirectional=True)).eval()
    torch.export.export(module, (torch.zeros(2, 7, 5),), strict=False)  # torch keeps the kernel that it looked up
    program = capture(module, parse(["x:2xT=2..7..9x5@f32"]))
    x = torch.randn(2, 9, 5)
    with torch.no_grad():
        torch.testing.assert_close(next(iter(program.module()(x).values())), module(x))


class Doubling(nn.Module):
    """Double ``x`` until its sum is large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (doubled,) = torch.while_loop(lambda x: x.sum() < 100, lambda x: (2 * x,), (x,))
        output: torch.Tensor = doubled
        return output


def test_the_sizes_of_a_loop_are_not_those_of_other_exports() -> None:  # LSTM and GRU are exported as loops, too
    module = Doubling()
    for specs in ("x:2x9x5@f32", "x:3x6x5@f32", "x:T=2..7..11x2x5@f32", "x:4xN=2..3..8x5@f32"):
        program = capture(module, parse([specs]))
    x = torch.rand(4, 8, 5)
    with torch.no_grad():
        torch.testing.assert_close(next(iter(program.module()(x).values())), module(x))
