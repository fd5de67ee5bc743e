"""How forward is called: its arguments built from named tensors and from the values that are fixed.

A name with dots is a place inside an argument: ``batch.image`` the entry of a dictionary, ``views.0`` that of a list,
``x.mask`` the field of a dataclass, which forward's annotation names. ``images.0`` of ``*images`` is its first tensor.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec, fixed_values

HOW = (
    "name a tensor by its place, as --input batch.image:… of a dictionary or views.0:… of a list; fix what is no "
    "tensor by --input-value NAME=VALUE; or wrap the module, in the factory, in one whose forward takes tensors"
)
"""What to do where forward takes more than tensors."""


def bind_inputs(module: nn.Module, specs: Sequence[TensorSpec]) -> None:
    """Check that the specs, and the values fixed beside them, are arguments of forward, and all that it requires.

    Raises InputError, with forward's parameters, at a name that does not fit and at a parameter that is missing.
    """
    parameters, names = inspect.signature(module.forward).parameters.values(), {s.name for s in specs}
    heads = {name.partition(".")[0] for name in (*names, *fixed_values(specs))}
    variable = {p.name for p in parameters if p.kind is p.VAR_POSITIONAL}
    rest = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
    single = {p.name: p for p in parameters if p.name not in variable | rest}
    problems = [] if specs else ["no input is given"]
    problems += [] if rest else [f"forward takes no input {name!r}" for name in sorted(heads - variable - set(single))]
    problems += [
        f"forward requires the input {n!r}" for n, p in single.items() if p.default is p.empty and n not in heads
    ]
    problems += [f"forward takes *{name}, so {name}.0, {name}.1 …" for name in sorted(variable & names)]
    if problems:
        signature = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
        raise InputError(
            "; ".join(problems),
            where=f"{type(module).__name__}.forward({signature})",
            fix=f"give one --input for each parameter of forward that is a tensor; {HOW}",
        )


def arguments(
    module: nn.Module, specs: Sequence[TensorSpec], tensors: Mapping[str, torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, by position and by name, that the module is called with.

    By name, but where forward, or a hook of the module, looks for them by position.
    ``tensors`` are those of ``specs``, by name. Raises InputError where a container cannot be built of its parts.
    """
    hints, given = _hints(module.forward), _tree({**fixed_values(specs), **tensors})
    parameters = inspect.signature(module.forward).parameters
    named = {name: _built(part, hints.get(name), name) for name, part in given.items() if name in parameters}
    kinds = {parameters[name].kind for name in named}
    if not kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL} and not _is_hooked(module):
        return (), {name: named.get(name, part) for name, part in given.items()}
    ordered = {name: named[name] for name in parameters if name in named}
    bound = inspect.BoundArguments(inspect.signature(module.forward), OrderedDict(ordered))
    return bound.args, bound.kwargs | {name: part for name, part in given.items() if name not in parameters}


def _is_hooked(module: nn.Module) -> bool:
    """Return True where a hook of the module is given arguments by position alone."""
    hooks = {*module._forward_pre_hooks, *module._forward_hooks}
    return bool(hooks - {*module._forward_pre_hooks_with_kwargs, *module._forward_hooks_with_kwargs})


class _Branch(dict[str, Any]):
    """The parts of an argument, by the next part of their names."""


def _tree(named: Mapping[str, Any]) -> dict[str, Any]:
    root = _Branch()
    for name, value in named.items():
        *path, last = name.split(".")
        branch = root
        for part in path:
            branch = branch.setdefault(part, _Branch())
        branch[last] = value
    return dict(root)


def _built(part: Any, hint: Any, name: str) -> Any:
    """Return ``part`` as it is, or the container of its parts that ``hint``, forward's annotation, asks for."""
    if not isinstance(part, _Branch):
        return part
    kind: Any = _container(hint)
    fields = _hints(kind) if isinstance(kind, type) else {}
    built = {key: _built(each, fields.get(key, _item(hint)), f"{name}.{key}") for key, each in part.items()}
    try:
        if kind is not None and not issubclass(kind, (list, tuple)):
            return kind(**built) if _has_fields(kind) else kind(built)
        if kind is not None and _has_fields(kind):  # a named tuple
            return kind(**built)
    except Exception as error:  # whatever the class's own construction raises
        raise InputError(
            f"the argument {name!r} cannot be built: {type(error).__name__}: {error}", where=str(kind), fix=HOW
        ) from error
    if not all(key.isdecimal() for key in built):
        return built
    ordered = [built[key] for key in sorted(built, key=int)]
    return tuple(ordered) if kind is tuple else ordered


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def _container(hint: Any) -> type | None:
    """Return the class of container that ``hint`` names: a dataclass, named tuple, mapping, list or tuple."""
    for option in _options(hint):
        kind = typing.get_origin(option) or option
        if isinstance(kind, type) and (_has_fields(kind) or issubclass(kind, (list, tuple, dict, UserDict))):
            return None if kind is dict or typing.is_typeddict(kind) else kind
    return None


def _options(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        for option in typing.get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _item(hint: Any) -> Any:
    """Return what ``hint`` says of the items of a container: the last of ``dict[str, Box]``, ``list[Box]``."""
    for option in _options(hint):
        if given := [each for each in typing.get_args(option) if each is not Ellipsis]:
            return given[-1]
    return None


def _hints(of: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except Exception:  # an annotation of a name that only a type checker imports
        return {}
