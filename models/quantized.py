"""A residual perceptron whose last LayerNorm is quantized to int8, with weights that its factory draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def perceptron() -> nn.Module:
    """Return the network, the same each time: ``x``, float32 ``[N, 16]``, to ``[N, 4]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Perceptron()


class Int8LayerNorm(nn.LayerNorm):
    """A LayerNorm whose output is rounded to int8 and back, as after training for quantization."""

    scale = 1 / 16

    def forward(self, input: Tensor) -> Tensor:
        """Return multiples of ``scale`` from -128 to 127."""
        return torch.fake_quantize_per_tensor_affine(super().forward(input), self.scale, 0, -128, 127)


class Perceptron(nn.Module):
    """See :func:`perceptron`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(32), nn.LayerNorm(32), Int8LayerNorm(32)
        self.linear1, self.linear2, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each of four classes."""
        x = self.embed(x)
        x = x + self.linear1(self.norm1(x))
        x = x + self.linear2(self.norm2(x))
        logits: Tensor = self.head(self.norm3(x))
        return logits
