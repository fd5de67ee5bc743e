"""The part of a module that can be exported by itself, where the whole cannot: a detector's backbone, for one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from normdeploy.errors import words
from normdeploy.specs import Dim, TensorSpec

LACKS_OPERATORS = "forward needs the C++ operators of torchvision, which are not there, or not for this PyTorch"
INSTALL = "install the torchvision that is built for this PyTorch"
_LEAST = 0.1
"""Share of a module's weights that a part holds which is worth an export."""


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[dict[str, tuple[TensorSpec, ...]]]:
    """Yield the parts of ``module`` that run to their end on real tensors alone, and what their inputs are.

    Name → specs, of the last call of each; of those parts alone that hold a tenth of its weights or more.
    """
    ran: dict[str, tuple[TensorSpec, ...]] = {}
    handles = [
        part.register_forward_hook(_hook(ran, name), with_kwargs=True)
        for name, part in module.named_modules()
        if name and _weights(part) >= _LEAST * _weights(module) > 0
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def advice(ran: Mapping[str, tuple[TensorSpec, ...]]) -> str:
    """Return how to export the outermost of the parts that ran; empty where none did."""
    if not ran:
        return ""
    name = min(ran, key=lambda each: each.count("."))
    specs = ran[name]
    inputs = " ".join(f'--input "{spec}"' for spec in specs)
    return f"export the part that is a graph by itself: let the factory return module.{name}, with {inputs}"


def lacks_operators(error: BaseException) -> bool:
    """Return True if ``error`` says that torchvision has no C++ operators here: only they choose boxes."""
    text = words(error)
    return "torchvision" in text and ("C++ ops" in text or "torchvision::" in text)


def _hook(ran: dict[str, tuple[TensorSpec, ...]], name: str) -> Any:
    def record(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ran.pop(name, None)
        with contextlib.suppress(TypeError, ValueError):  # what has no signature is not told of
            given = inspect.signature(part.forward).bind(*args, **kwargs).arguments
            if all(isinstance(each, torch.Tensor) for each in tree_leaves(output)) and all(
                map(_is_real, given.values())
            ):
                ran[name] = tuple(_spec(key, tensor) for key, tensor in given.items())

    return record


def _is_real(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    dims = tuple(Dim(None, size, size, size) for size in tensor.shape)
    return TensorSpec(name, dims, str(tensor.dtype).removeprefix("torch."))
