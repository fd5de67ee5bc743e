"""What goes in and comes out of a module, by name: examples of its inputs, and the tensors of whatever it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree  # the tree that torch.export itself flattens by; torch has no public name

from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec, output_names


def example_inputs(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return one tensor an input, of the spec's shape at ``sizes`` and dtype, filled with the least value it may
    take.
    """
    return {spec.name: torch.full(spec.shape(sizes), spec.low or 0, dtype=getattr(torch, spec.dtype)) for spec in specs}


def flatten_outputs(result: Any, *, specs: Sequence[TensorSpec] = ()) -> dict[str, torch.Tensor]:
    """Return the tensors of what a module returned, by stable names, in order; None is dropped.

    A bare tensor is ``output``; containers add the key, field or index: ``logits``, ``hidden_states.0``; a bare
    sequence is ``output.0``, ``output.1``. A name that is taken, by another output or an input, gets ``_out``. Where
    ``specs`` name as many outputs, those names are given instead.
    Raises InputError at anything that is no tensor, and where there is no tensor at all.
    """
    outputs: dict[str, torch.Tensor] = {}
    inputs, names = {spec.name for spec in specs}, output_names(specs)
    for path, leaf in _leaves(result):
        name = _name(path)
        if not isinstance(leaf, torch.Tensor):
            kind = "number" if isinstance(leaf, (int, float, torch.SymInt)) else type(leaf).__name__
            raise InputError(
                f"the module returns a {kind}, which a graph cannot",
                where=f"output {name!r}",
                fix="let the module return tensors, in any nesting of dict, list, tuple and dataclass",
            )
        while name in outputs or name in inputs:
            name += "_out"
        outputs[name] = leaf
    if not outputs:
        raise InputError("the module returns no tensor", fix="let forward return what the deployed model should")
    return dict(zip(names, outputs.values(), strict=True)) if len(names) == len(outputs) else outputs


def _name(path: tuple[Any, ...]) -> str:
    head = () if path and isinstance(path[0], str) else ("output",)
    return ".".join(str(key) for key in (*head, *path))


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every leaf that is not None, with the keys, fields and indices that lead to it."""
    children = _children(value)
    if children is not None:
        for key, child in children:
            yield from _leaves(child, (*path, key))
    elif value is not None:
        yield path, value


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return what a container holds; None for what is none. Types that are registered with torch's pytree are, by
    index.
    """
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    leaves, tree = pytree.tree_flatten(value)
    return None if tree.is_leaf() else enumerate(leaves)
