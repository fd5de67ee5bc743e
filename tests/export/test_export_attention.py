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


class Heads(nn.Module):
    """(B, 2, T, 6), whose heads have a mask of their own: (2, T, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x, (x @ x.mT).mean(0) > 0)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("batch", ["2", "3"])
def test_a_mask_of_three_axes_is_the_heads(batch: str, opset: int) -> None:
    hold(Heads(), f"x:{batch}x2xT=2..5..9x6", opset=opset)


class Grouped(nn.Module):
    """(4, T, 6): four heads of no batch, which share two of keys and values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x[:2], x[2:], enable_gqa=True)


@pytest.mark.parametrize("opset", [18, 23])
def test_grouped_heads_without_a_batch_are_exported(opset: int) -> None:
    hold(Grouped(), "x:4xT=2..5..9x6", opset=opset)
