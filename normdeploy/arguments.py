"""What Python callers hand to a public function, held to its annotations: a wrong type is told as bad input is."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from functools import reduce, wraps
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, is_typeddict

from normdeploy.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
Words = Mapping[str, Any]


def checked(options: type | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: the function raises InputError where an argument is not what its annotation says.

    Plain types, paths, classes, sequences and mappings of them, and the words of a Literal are held to; of other
    annotations nothing is said. The annotations are read as they are written: the module has them postponed.

    Args:
        options: the TypedDict of the function's further keywords, each of which must be one of its keys.
    """
    further = {} if options is None else {name: kind.__forward_arg__ for name, kind in options.__annotations__.items()}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, words = inspect.signature(function), vars(sys.modules[function.__module__])
        named = {name: each for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD}
        kinds = {name: str(each.annotation) for name, each in named.items()} | further

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in {**dict(zip(named, args, strict=False)), **kwargs}.items():
                if name in kinds:
                    _require(name, value, kinds[name], words)
                elif further:  # of another keyword Python itself says that there is none such
                    raise _unknown(function.__name__, name, kinds)
            return function(*args, **kwargs)

        return call

    return decorate


def _require(name: str, value: object, kind: str, words: Words) -> None:
    if _fits(value, kind, words):
        return
    shown = repr(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    wanted = _told(kind, _ONE, words)
    fix = f"give {wanted}"
    if isinstance(value, str) and _fits([value], kind, words):
        fix = f"give [{value!r}]"
    elif kind == "str" and name == "model":
        fix = 'name the function or class that makes the module: "package.module:factory"'
    raise InputError(f"{name} must be {wanted}", where=f"{name}: {shown}", fix=fix)


def _unknown(function: str, name: str, known: Mapping[str, str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
    return InputError(f"{function} takes no argument {name!r}", where=f"{function}({name}=…)", fix=fix)


def _alternatives(kind: str) -> list[str]:
    """Return the parts of a union; what stands in brackets is one."""
    return re.split(r" \| (?![^\[]*\])", kind)


def _fits(value: object, kind: str, words: Words) -> bool:
    return any(_fits_one(value, each, words) for each in _alternatives(kind))


def _fits_one(value: object, kind: str, words: Words) -> bool:
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    if (of := re.fullmatch(r"Sequence\[(.+)\]", kind)) is not None:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
            return False
        return all(_fits(item, of[1], words) for item in value)
    if (of := re.fullmatch(r"Mapping\[(.+), (.+)\]", kind)) is not None:
        if not isinstance(value, Mapping):
            return False
        return all(_fits(key, of[1], words) and _fits(item, of[2], words) for key, item in value.items())
    named = _named(kind, words)
    if get_origin(named) is Literal:
        return value in get_args(named)
    if isinstance(named, UnionType):
        return _fits(value, _spelled(named), words)
    is_class = isinstance(named, type) and not is_typeddict(named) and not getattr(named, "_is_protocol", False)
    return isinstance(value, named) if is_class else True


def _named(kind: str, words: Words) -> Any:
    """Return what ``kind`` names in the module of the function; None where that is imported for type checkers alone."""
    first, *rest = kind.split(".")
    return reduce(lambda found, name: getattr(found, name, None), rest, words.get(first))


def _spelled(union: UnionType) -> str:
    return re.sub(r"[\w.]+\.(\w+)", r"\1", str(union))


def _told(kind: str, plain: Mapping[str, str], words: Words) -> str:
    return " or ".join(_told_one(each, plain, words) for each in _alternatives(kind))


def _told_one(kind: str, plain: Mapping[str, str], words: Words) -> str:
    if (of := re.fullmatch(r"Sequence\[(.+)\]", kind)) is not None:
        return f"{'a list' if plain is _ONE else 'lists'} of {_told(of[1], _MANY, words)}"
    if (of := re.fullmatch(r"Mapping\[(.+), (.+)\]", kind)) is not None:
        return f"a mapping of {_told(of[1], _MANY, words)} to {_told(of[2], _MANY, words)}"
    named = _named(kind, words)
    if isinstance(named, UnionType):
        return _told(_spelled(named), plain, words)
    return f"one of {', '.join(get_args(named))}" if get_origin(named) is Literal else plain.get(kind, kind)


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "str": lambda value: isinstance(value, str),
    "Path": lambda value: isinstance(value, os.PathLike),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, Real) and not isinstance(value, bool),
}
_ONE = {"str": "a text", "Path": "a path", "bool": "True or False", "int": "a whole number", "float": "a number"}
_MANY = {"str": "texts", "Path": "paths", "int": "whole numbers"}
