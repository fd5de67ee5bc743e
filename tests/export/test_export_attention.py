"""Attention without heads, or without a batch: torch's own translation takes four axes alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exporting import hold, lived_in
from torch import nn


class Attention(nn.Module):
    """(…, T, 6) that attends to itself, its mask of as many axes as are asked for."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.norm, self.mask = nn.LayerNorm(6), mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        near = (y @ y.mT) > 0
        if self.mask == "causal":
            return F.scaled_dot_product_attention(y, 2 * y, y, is_causal=True)
        masks = {
            "none": None,
            "bool": near,
            "real": near.to(y.dtype) - 1,
            "first": near.reshape(-1, *near.shape[-2:])[0],
        }
        return F.scaled_dot_product_attention(y, 2 * y, y, masks[self.mask], scale=0.3)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "real", "first"])
def test_attention_without_heads_is_exported(mask: str, opset: int) -> None:
    hold(lived_in(Attention(mask)), "x:B=1..2..3xT=2..5..9x6", opset=opset)


def test_attention_without_a_batch_is_exported() -> None:
    hold(lived_in(Attention("bool")), "x:T=2..5..9x6")
