"""A module → input specs that its forward takes: guessed from its first layer, kept only if forward runs on them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.specs import TensorSpec, parse, sizes_at

_SIZES = (224, 32, 64, 28, 8, 128, 256)
"""Of an image, the likeliest first."""


_BatchNorm = nn.modules.batchnorm._BatchNorm
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.LayerNorm, _BatchNorm)


def guess_inputs(module: nn.Module) -> tuple[TensorSpec, ...]:
    """Return specs under which ``forward`` returns tensors at their smallest and largest sizes; none where none do."""
    names = _names(module)
    for texts in itertools.islice(_guesses(names, _first_layer(module)), len(_SIZES) * 4) if names else ():
        specs = parse(texts)
        if all(_runs(module, specs, sizes) for sizes in (sizes_at(specs, "min"), sizes_at(specs, "max"))):
            return specs
    return ()


def signature(module: nn.Module) -> str:
    """Return forward's parameters as they are written, without annotations."""
    parameters = inspect.signature(module.forward).parameters.values()
    return ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)


def _names(module: nn.Module) -> list[str]:
    """Return the inputs that forward needs; of networks of transformers, what they say is their main one."""
    parameters = inspect.signature(module.forward).parameters
    if (main := getattr(module, "main_input_name", None)) in parameters:
        return [str(main), *(name for name in ("attention_mask",) if main == "input_ids" and name in parameters)]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    usual = [p for p in parameters.values() if p.kind in kinds]
    return [p.name for p in usual if p.default is p.empty] or [p.name for p in usual[:1]]


def _first_layer(module: nn.Module) -> nn.Module | None:
    kinds = (
        nn.modules.conv._ConvNd,
        nn.Linear,
        nn.Embedding,
        nn.RNNBase,
        nn.LayerNorm,
        nn.modules.batchnorm._BatchNorm,
    )
    return next((part for part in module.modules() if isinstance(part, kinds)), None)


def _guesses(names: Sequence[str], layer: nn.Module | None) -> Iterator[list[str]]:
    """Yield specs of all ``names``; of a sequence, a mask has a one or a zero an item."""
    for dims, kind in _shapes(layer):
        masks = {name for name in names if "mask" in name and "T=" in dims}
        yield [f"{name}:NxT@i64[0..1]" if name in masks else f"{name}:{dims}@{kind}" for name in names]


def _shapes(layer: nn.Module | None) -> Iterator[tuple[str, str]]:
    batch, length = "N=1..1..8", "T=2..16..64"
    if isinstance(layer, nn.modules.conv._ConvNd):
        for size in _SIZES:
            spread = {1: [size * 64], 2: [size, size], 3: [16, size, size]}[len(layer.kernel_size)]
            yield "x".join(map(str, (batch, layer.in_channels, *spread))), "f32"
    elif isinstance(layer, nn.Embedding):
        yield f"{batch}x{length}", f"i64[0..{layer.num_embeddings - 1}]"
    elif features := _features(layer):
        yield f"{batch}x{features}", "f32"
        yield f"{batch}x{length}x{features}", "f32"


def _features(layer: Any) -> int:
    found = (getattr(layer, name, 0) for name in ("in_features", "input_size", "num_features", "normalized_shape"))
    first = next((each for each in found if each), 0)
    return int(first if isinstance(first, int) else first[-1])


def _runs(module: nn.Module, specs: Sequence[TensorSpec], sizes: dict[str, int]) -> bool:
    try:
        with torch.inference_mode():
            flatten_outputs(module(**example_inputs(specs, sizes)))
    except Exception:  # a guess: whatever forward raises at another input
        return False
    return True
