"""What is told to a caller from Python names no option of a command, and helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normdeploy
from normdeploy.errors import InputError


def conv_bn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def in_training() -> nn.Module:
    module = conv_bn()
    module[1].train()
    return module


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > 0 else x  # type: ignore[no-any-return]  # a module returns anything


X = torch.randn(2, 3, 5, 6)
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "half": (conv_bn, X.half(), "the weights are float32, the inputs float16: cast the inputs"),
    "channels": (conv_bn, torch.randn(2, 5, 5, 6), "check the example inputs against forward"),
    "names": (conv_bn, {"x": X}, "give one for each parameter of forward that is a tensor"),
    "training": (in_training, X, "call .eval() on it"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)).eval(), X, "run the module once on an example"),
    "lazy norm": (lambda: nn.Sequential(nn.LazyBatchNorm2d()).eval(), X, "run the module once on an example"),
    "script": (lambda: torch.jit.script(conv_bn()), X, "give the module that was scripted or traced"),
    "meta": (lambda: conv_bn().to("meta"), X, "build the module on the CPU, or call .to_empty(device='cpu') on it"),
    "branches": (lambda: Branches().eval(), X, "torch.cond, or move it out of forward"),
    "empty": (conv_bn, X[:0], "give those that forward is called with"),
}


@pytest.mark.parametrize(("make", "inputs", "fix"), REFUSED.values(), ids=REFUSED)
def test_advice_is_for_callers(make: Callable[[], nn.Module], inputs: Any, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        normdeploy.fold_module(make(), inputs)
    assert fix in caught.value.fix
    assert not any(word in str(caught.value) for word in ("--", "@f", "factory"))
