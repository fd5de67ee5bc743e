"""A recurrent network is exported at every batch size, whatever this process exported before."""

from __future__ import annotations

import torch
from torch import nn

from normdeploy.export.capture import capture
from normdeploy.specs import parse


def test_what_torch_exported_before_has_no_say() -> None:
    module = nn.LSTM(5, 4, num_layers=2, batch_first=True, bidirectional=True).eval()
    torch.export.export(module, (torch.zeros(2, 7, 5),), strict=False)
    program = capture(module, parse(["input:N=1..2..4x7x5@f32"]))
    x = torch.randn(3, 7, 5)
    with torch.no_grad():
        torch.testing.assert_close(next(iter(program.module()(x).values())), module(x)[0])
