"""A module → input specs that its forward takes: guessed from its first layers, kept only if forward runs on them."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from normdeploy.export.call import arguments
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.specs import TensorSpec, parse, sizes_at

_SIZES = (224, 32, 64, 28, 8, 128, 256)
"""Of an image, the likeliest first."""
_TRIES, _SECONDS = 100, 20.0
"""Calls of forward, and the time after which no other is begun."""
_FIRST = 4
"""Layers of unlike inputs that are looked at: a module is not bound to list them in the order of its forward."""
_ENTRIES = 8
"""The most entries of a dictionary that are asked for."""
_BATCH, _LENGTH = "N=1..1..8", "T=2..16..64"
_EXAMPLE = (f"{_BATCH}x3x224x224", "f32")

_BatchNorm = nn.modules.batchnorm._BatchNorm
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.LayerNorm, _BatchNorm)
_AXES: dict[type, int] = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
"""Spatial axes of what a BatchNorm reads; one of 1d may have none."""

Shape = tuple[str, str]
"""Dimensions and dtype of a spec."""


class Guess(NamedTuple):
    """What was found: specs, as texts, and whether forward runs on them or they are no more than likely."""

    texts: tuple[str, ...]
    runs: bool


def guess_inputs(module: nn.Module) -> tuple[TensorSpec, ...]:
    """Return specs under which ``forward`` returns tensors at their smallest and largest sizes; none where none do."""
    found = guess(module)
    return tuple(parse(found.texts)) if found.runs else ()


def guess(module: nn.Module) -> Guess:
    """Return inputs on which ``forward`` runs at their smallest and largest sizes; else the likeliest for each."""
    names, shapes = _names(module), _shapes(module)
    end = time.monotonic() + _SECONDS
    likely = tuple(_spec(name, *(shapes[0] if shapes else _EXAMPLE)) for name in names)
    if len(names) == 1 and (found := _entries(module, names[0], shapes)).texts:
        return found
    for texts in itertools.islice(_guesses(names, shapes), _TRIES) if names else ():
        if time.monotonic() > end:
            break
        if _ends_with(module, texts) is None:
            return Guess(tuple(map(str, parse(texts))), True)
    return Guess(likely, False)


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


def _guesses(names: Sequence[str], shapes: Sequence[Shape]) -> Iterator[list[str]]:
    """Yield specs of all ``names``: alike, in a sequence a mask of ones and zeros an item; then unlike each other."""
    for dims, kind in shapes:
        masks = {name for name in names if "mask" in name and "T=" in dims}
        yield [f"{name}:NxT@i64[0..1]" if name in masks else _spec(name, dims, kind) for name in names]
    for unlike in itertools.product(shapes, repeat=len(names)):
        if len(set(unlike)) > 1:
            yield [_spec(name, *shape) for name, shape in zip(names, unlike, strict=True)]


def _spec(name: str, dims: str, kind: str) -> str:
    return f"{name}:{dims}@{kind}"


def _entries(module: nn.Module, name: str, shapes: Sequence[Shape]) -> Guess:
    """Return specs of the entries that forward asks the dictionary ``name`` for; no texts where it takes none."""
    texts: list[str] = []
    wanted = _asked(_ends_with(module, [f"{name}={{}}"]), name, texts)
    while wanted is not None and len(texts) < _ENTRIES:
        tried = [[*texts, _spec(f"{name}.{wanted}", *shape)] for shape in shapes or (_EXAMPLE,)]
        ends = [_ends_with(module, each) for each in tried]
        if None in ends:
            return Guess(tuple(map(str, parse(tried[ends.index(None)]))), True)
        # where it asks for another entry, it took this one
        further = [(each, key) for each, end in zip(tried, ends, strict=True) if (key := _asked(end, name, each))]
        texts, wanted = further[0] if further else (tried[0], None)
    return Guess(tuple(texts), False)


def _asked(end: Exception | None, name: str, texts: Sequence[str]) -> str | None:
    """Return the entry that forward found missing, where ``texts`` have none of that name."""
    key = end.args[0] if isinstance(end, KeyError) and end.args else None
    if not isinstance(key, str) or not key.isidentifier() or any(t.startswith(f"{name}.{key}:") for t in texts):
        return None
    return key


def _shapes(module: nn.Module) -> list[Shape]:
    """Return what the first layers of ``module`` read, the likeliest first."""
    layers = [part for part in module.modules() if isinstance(part, _LAYERS)]
    unlike = list(dict.fromkeys(tuple(_read_by(layer)) for layer in layers))[:_FIRST]
    return list(dict.fromkeys(itertools.chain.from_iterable(unlike)))


def _read_by(layer: nn.Module) -> Iterator[Shape]:
    if isinstance(layer, nn.modules.conv._ConvNd):
        yield from _images(layer.in_channels, len(layer.kernel_size))
    elif isinstance(layer, nn.Embedding):
        yield f"{_BATCH}x{_LENGTH}", f"i64[0..{layer.num_embeddings - 1}]"
    elif axes := _AXES.get(type(layer)):
        yield from _images(_features(layer), axes)
    elif features := _features(layer):
        yield f"{_BATCH}x{features}", "f32"
        yield (
            f"{_BATCH}x{features}x{_LENGTH}" if isinstance(layer, _BatchNorm) else f"{_BATCH}x{_LENGTH}x{features}",
            "f32",
        )


def _images(channels: int, axes: int) -> Iterator[Shape]:
    for size in _SIZES:
        spread = {1: [size * 64], 2: [size, size], 3: [16, size, size]}[axes]
        yield "x".join(map(str, (_BATCH, channels, *spread))), "f32"


def _features(layer: Any) -> int:
    found = (getattr(layer, name, 0) for name in ("in_features", "input_size", "num_features", "normalized_shape"))
    first = next((each for each in found if each), 0)
    return int(first if isinstance(first, int) else first[-1])


def _ends_with(module: nn.Module, texts: Sequence[str]) -> Exception | None:
    """Return what forward raises at the smallest or largest sizes of ``texts``; None where it gives tensors at both."""
    specs = parse(texts)
    for sizes in (sizes_at(specs, "min"), sizes_at(specs, "max")):
        try:
            positional, named = arguments(module, specs, example_inputs(specs, sizes))
            with torch.inference_mode():
                flatten_outputs(module(*positional, **named))
        except Exception as error:  # a guess: whatever forward raises at another input
            return error
    return None
