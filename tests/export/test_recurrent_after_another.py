"""A recurrent network keeps its dynamic length, whatever torch exported before it in this process."""

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
