"""What goes in and comes out of a module, by name: forward's parameters, and the tensors of whatever it returns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # the tree that torch.export itself flattens by; torch has no public name

from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec


def bind_inputs(module: nn.Module, specs: Sequence[TensorSpec]) -> None:
    """Check that the specs are keyword arguments of ``module.forward``, and all that it requires.

    Raises InputError, with forward's parameters, at a name that does not fit and at a parameter that is missing.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted, given = {p.name for p in keywords}, {spec.name for spec in specs}
    unknown = set() if takes_any else given - accepted
    missing = [p.name for p in keywords if p.default is p.empty and p.name not in given]
    missing += [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    problems = [] if specs else ["no input is given"]
    problems += [f"forward takes no input {name!r}" for name in sorted(unknown)]
    problems += [f"forward requires the input {name!r}" for name in missing]
    if problems:
        signature = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
        raise InputError(
            "; ".join(problems),
            where=f"{type(module).__name__}.forward({signature})",
            fix="give one --input for each keyword parameter of forward that is a tensor",
        )


def example_inputs(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """One tensor an input, of the spec's shape at ``sizes`` and dtype, filled with the least value it may take."""
    return {spec.name: torch.full(spec.shape(sizes), spec.low or 0, dtype=getattr(torch, spec.dtype)) for spec in specs}


def flatten_outputs(result: Any, *, inputs: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of what a module returned, by stable names, in order; None is dropped.

    A bare tensor is ``output``; containers add the key, field or index: ``logits``, ``hidden_states.0``; a bare
    sequence is ``output.0``, ``output.1``. A name that is taken, by another output or in ``inputs``, gets ``_out``.
    Raises InputError at anything that is no tensor, and where there is no tensor at all.
    """
    outputs: dict[str, torch.Tensor] = {}
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
    return outputs


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
    """What a container holds; None for what is none. Types that are registered with torch's pytree are, by index."""
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
