"""linspace, logspace and affine_grid of as many steps as an input has elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exporting import hold, lived_in
from torch import nn

Function = Callable[[torch.Tensor], torch.Tensor]


class Line(nn.Module):
    """(1, T, 6) beside a norm."""

    def __init__(self, of: Function) -> None:
        super().__init__()
        self.norm, self.of = nn.LayerNorm(6), of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) + self.of(x)[None, :, None]


@pytest.mark.parametrize("low", [1, 2, 4])
@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda x: torch.linspace(-1, 1, x.shape[1], dtype=x.dtype), id="linspace"),
        pytest.param(lambda x: torch.linspace(0.3, -2.7, steps=2 * x.shape[1] - 1, dtype=x.dtype)[::2], id="computed"),
        pytest.param(lambda x: torch.linspace(0.5, x.shape[1] - 0.5, x.shape[1], dtype=x.dtype), id="to a size"),
        pytest.param(lambda x: torch.linspace(x.min(), x.max(), x.shape[1], dtype=x.dtype), id="of tensors"),
        pytest.param(lambda x: torch.logspace(-1, 0.5, x.shape[1], dtype=x.dtype), id="logspace"),
        pytest.param(
            lambda x: torch.logspace(-1, 2, x.shape[1], base=2.0, dtype=x.dtype), id="logspace of another base"
        ),
    ],
)
def test_steps_follow_a_size(of: Function, low: int) -> None:
    hold(lived_in(Line(of)), f"x:1xT={low}..9..40x6")


class Sampler(nn.Module):
    """(B, 2, H, W) turned by an angle and taken at half as many places as it has rows."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.norm, self.align_corners = nn.BatchNorm2d(2), align_corners
        self.turn = nn.Parameter(torch.tensor([[[0.8, -0.3, 0.1], [0.2, 0.9, -0.2]]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        turn = self.turn.expand(batch, -1, -1)
        grid = F.affine_grid(turn, [batch, channels, height // 2, width], align_corners=self.align_corners)
        return F.grid_sample(self.norm(x), grid, align_corners=self.align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_affine_grid_follows_the_sizes(align_corners: bool) -> None:
    torch.manual_seed(0)
    module = Sampler(align_corners)
    module.norm.running_var.uniform_(0.5, 4)
    hold(module, "x:B=1..2..3x2xH=4..8..30xW=3..7..20")


def test_an_affine_grid_of_three_axes_follows_the_sizes() -> None:
    class Volume(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            turn = torch.eye(3, 4, dtype=x.dtype)[None] + 0.1 * torch.ones(1, 3, 4, dtype=x.dtype)
            return F.affine_grid(turn, [1, 1, x.shape[1], x.shape[2], 3], align_corners=False)

    hold(Volume(), "x:1xD=2..5..9xH=2..4..8")
