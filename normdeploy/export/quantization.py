"""Networks of quantization-aware training: what torch.export lacks for their fake quantization.

Its operators have no rule for symbolic sizes, and a FakeQuantize module reads its switches from tensors, which a trace
takes for control flow that depends on values. The switches are constants of a trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from normdeploy.errors import InputError

_OPERATORS = (
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)


@contextmanager
def fake_quantization(module: nn.Module) -> Iterator[None]:
    """Let the fake quantization in ``module`` be traced. Raises InputError where an observer is still on."""
    switched = [(name, part) for name, part in module.named_modules() if _has_switches(part)]
    for name, part in switched:
        if bool(part.observer_enabled[0]):
            raise InputError(
                "the observer of a FakeQuantize is on: it would go on to change the scale",
                where=f"module {name!r}",
                fix="call torch.ao.quantization.disable_observer on the module in the factory",
            )
    with torch.library._scoped_library("aten", "IMPL") as library:
        for operator in _OPERATORS:
            library.impl(operator, _shapes, "Meta")
        for _, part in switched:
            part.forward = _with_constants(part)
        try:
            yield
        finally:
            for _, part in switched:
                del part.forward


def _shapes(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def _has_switches(part: nn.Module) -> bool:
    return all(hasattr(part, name) for name in ("fake_quant_enabled", "observer_enabled", "scale", "zero_point"))


def _with_constants(part: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward of a FakeQuantize with its switches, and the scale of a tensor, as numbers."""
    low, high = int(part.activation_post_process.quant_min), int(part.activation_post_process.quant_max)
    if not bool(part.fake_quant_enabled[0]):
        return lambda x: x
    if part.is_per_channel:
        scale, zero, axis = part.scale.detach(), part.zero_point.detach(), part.ch_axis
        return lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero, axis, low, high)
    number, point = float(part.scale), int(part.zero_point)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, number, point, low, high)
