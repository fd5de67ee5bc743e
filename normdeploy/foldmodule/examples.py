"""Example inputs → input specs of exactly their sizes, and a feed that holds them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.runtime.eager import array_of
from normdeploy.specs import Dim, Signature, TensorSpec


def example_feed(module: nn.Module, example_inputs: Any) -> tuple[Signature, Feed]:
    """Return the specs of ``example_inputs`` and a feed of them.

    Args:
        module: whose forward takes them.
        example_inputs: a tensor, a tuple or list of positional arguments, or a dictionary of arguments by name; they
            may hold tensors in dictionaries and lists, and values that are no tensors.

    Raises InputError where there is no value in any tensor, or more arguments than forward has.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, argument in _named(module, example_inputs).items():
        for place, leaf in _leaves(argument, name):
            if isinstance(leaf, Tensor):
                tensors[place] = leaf
            else:
                values[place] = leaf
    if not any(tensor.numel() for tensor in tensors.values()):
        what = "there is no tensor of torch that holds a value among the example inputs"
        given = ", ".join(sorted({type(value).__name__ for value in values.values()}))
        raise InputError(what, where=given, fix="give those that forward is called with, as tensors of torch")
    specs = [_spec(name, tensor) for name, tensor in tensors.items()]
    return Signature(specs, values), Feed("example", {name: array_of(tensor.cpu()) for name, tensor in tensors.items()})


def _named(module: nn.Module, given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    arguments = tuple(given) if isinstance(given, tuple | list) else (given,)
    try:
        bound = inspect.signature(module.forward).bind(*arguments).arguments
    except TypeError as error:
        raise InputError(
            f"the example inputs are not what forward takes: {error}",
            where=f"{type(module).__name__}.forward{inspect.signature(module.forward)}",
            fix="give a tuple of its arguments, or a dictionary of them by name",
        ) from error
    return dict(bound)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{place}.{key}")
    elif isinstance(value, tuple | list) and any(isinstance(each, Tensor) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{place}.{index}")
    else:
        yield place, value


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dims = tuple(Dim(None, size, size, size) for size in tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    ends = (int(tensor.min()), int(tensor.max())) if whole and tensor.numel() else (None, None)
    return TensorSpec(name, dims, dtype, *ends)
