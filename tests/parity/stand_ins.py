"""Nets and runners that the parity tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner


class FunctionRunner:
    """A runner that computes its outputs by a function of its inputs; ``calls`` counts how often."""

    def __init__(self, function: Callable[..., dict[str, Any]]) -> None:
        self._function, self.calls = function, 0
        self.name, self.inputs, self.outputs = "stand-in", (), ()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        return {name: np.asarray(array) for name, array in self._function(**feeds).items()}


def onnxruntime_runner(model: ir.Model) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(ir.to_proto(model).SerializeToString(), threads=2)


class Block(nn.Module):
    """A residual block whose BatchNorm is not the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)) + x)


class FourBlocks(nn.Module):
    """(N, 5, H, W) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(5) for _ in range(4)])
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` in eval mode, with weights and statistics that no norm leaves unchanged."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d):
            inner.running_mean.copy_(torch.randn(inner.num_features, generator=generator))
            inner.running_var.copy_(0.5 + torch.rand(inner.num_features, generator=generator))
            inner.weight.copy_(0.5 + torch.rand(inner.num_features, generator=generator))
    return module.eval()
