"""Attention without heads, without a batch, or of windows: torch's own translation takes four axes alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exporting import hold, lived_in
from torch import nn

from normdeploy.errors import InputError


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


class Windows(Attention):
    """(B, 3, 2, T, 6): a batch of windows of heads, with masks of as many axes as are asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        near = (y @ y.mT) > 0
        masks = {
            "none": None,
            "all": near,
            "windows": near[:1].to(y.dtype) - 1,
            "batches": near[:, :1],
            "one for all heads": near[:, :, :1],
            "heads": near[0, 0],
            "positions": near[0, 0, 0],
        }
        if self.mask == "causal":
            return F.scaled_dot_product_attention(y, 2 * y, y[..., :4], is_causal=True)
        return F.scaled_dot_product_attention(y, 2 * y, y[..., :4], masks[self.mask])


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(
    "mask", ["none", "causal", "all", "windows", "batches", "one for all heads", "heads", "positions"]
)
def test_attention_in_windows_is_exported(mask: str, opset: int) -> None:
    hold(lived_in(Windows(mask)), "x:B=1..2..3x3x2xT=2..5..9x6", opset=opset)


class Folded(nn.Module):
    """(B, 2, 3, 4, T, 6): four heads that share two of keys and values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x[..., :2, :, :], x[..., 2:, :, :], enable_gqa=True)


@pytest.mark.parametrize("opset", [18, 23])
def test_grouped_heads_in_windows_are_exported(opset: int) -> None:
    hold(Folded(), "x:B=1..2..3x2x3x4xT=2..5..9x6", opset=opset)


class Spread(nn.Module):
    """Keys and values that all windows share: torch spreads them, its translation does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x[:, :1], x[:, :1])


def test_keys_that_are_spread_over_windows_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="scaled_dot_product_attention"):
        hold(Spread(), "x:2x3x2x5x6")
