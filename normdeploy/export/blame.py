"""Where in the user's code a trace stands, and who asks what of sizes there.

torch.export says which sizes a trace does not hold for, not whose code asked. So each condition is kept as it arises,
with the module and the line it arises in; what is told to the user is the first that some size asked for breaks.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import sympy
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import TruncToInt

from normdeploy.errors import InputError
from normdeploy.specs import Dim, TensorSpec

_TORCH, _HERE = Path(torch.__file__).parent, Path(__file__).parent
_SOURCE = re.compile(r"\[(\d+)\]\.size\(\)\[(\d+)\]$")
_MOST, _EACH = 256, 64
"""Combinations of sizes, and sizes of one dimension, that a condition is tried at."""


@dataclass(frozen=True)
class Asked:
    """A condition on sizes, of which ``places`` tells the input and the axis by symbol, and where it was set."""

    condition: Any
    places: dict[Any, tuple[int, int]]
    where: str


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[list[Asked]]:
    """Yield the list of what is asked of sizes while ``module`` is traced, in order."""
    asked: list[Asked] = []
    owner: Any = ShapeEnv
    original = owner._log_guard

    def log(env: ShapeEnv, prefix: str, g: Any, forcing_spec: bool) -> None:
        if "suppressed" not in prefix and (places := _places(env, g)):
            asked.append(Asked(g, places, place(_stack(), module)))
        original(env, prefix, g, forcing_spec)

    owner._log_guard = log
    try:
        yield asked
    finally:
        owner._log_guard = original


@contextlib.contextmanager
def fixed_by_int(module: nn.Module) -> Iterator[list[Asked]]:
    """Yield the list of what ``int()`` makes constants of while ``module`` is traced, in order.

    Of a float that is computed of sizes it takes the value at the traced sizes, and torch.export mostly says nothing.
    """
    fixed: list[Asked] = []
    owner: Any = torch.SymFloat
    original = owner.__int__

    def whole(number: Any) -> int:
        expression, value = number.node.expr, int(original(number))
        condition = sympy.Eq(TruncToInt(expression), value)
        if places := _places(number.node.shape_env, condition):
            fixed.append(Asked(condition, places, place(_stack(), module)))
        return value

    owner.__int__ = whole
    try:
        yield fixed
    finally:
        owner.__int__ = original


def require_none_broken(fixed: Sequence[Asked], specs: Sequence[TensorSpec]) -> None:
    """Raise InputError where what ``int()`` made a constant is another number at some size of ``specs``."""
    for each in fixed:
        if _breaks(each, specs):
            raise InputError(
                "int() of a number that is computed of sizes takes its value at the size that is traced, for all sizes",
                where=f"{each.where}; {', '.join(f'--input {spec}' for spec in specs)}",
                fix="write math.trunc() for int(), or integer arithmetic such as T // 2 for int(T * 0.5)",
            )


def _places(env: ShapeEnv, condition: Any) -> dict[Any, tuple[int, int]]:
    """Return the input and the axis whose size each symbol is; nothing if one is no size of an input."""
    places = {}
    for symbol in condition.free_symbols:
        found = [_SOURCE.search(source.name) for source in env.var_to_sources.get(symbol, ())]
        match = next(filter(None, found), None)
        if match is None:
            return {}
        places[symbol] = int(match[1]), int(match[2])
    return places


def _stack() -> Iterator[tuple[FrameType, int]]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and Path(frame.f_code.co_filename) != _HERE / "capture.py":
        yield frame, frame.f_lineno
        frame = frame.f_back


def place(frames: Iterable[tuple[FrameType, int]], module: nn.Module) -> str:
    """Return the innermost part of ``module`` in ``frames``, innermost first, and the user's own line in it."""
    names = {id(part): name for name, part in module.named_modules()}
    label, line = "", ""
    for frame, number in frames:
        file, part = Path(frame.f_code.co_filename), frame.f_locals.get("self")
        if not line and is_users(file):
            line = f", {file.name} line {number}"
        if not label and isinstance(part, nn.Module) and id(part) in names:
            label = module_label(names[id(part)], module)
    return (label or module_label("", module)) + line


def is_users(file: Path) -> bool:
    """Return True if ``file`` is neither torch's nor of this room."""
    return not any(file.is_relative_to(folder) for folder in (_TORCH, _HERE))


def module_label(name: str, module: nn.Module) -> str:
    """Return how a part of ``module`` is called before a user."""
    return f"module {name!r}" if name else f"module {type(module).__name__}"


def where(asked: Sequence[Asked], specs: Sequence[TensorSpec]) -> str:
    """Return the places of the conditions that sizes of ``specs`` break, and the specs."""
    broken = (each.where for each in asked if _breaks(each, specs))
    places = itertools.islice(dict.fromkeys(broken), 3)
    return "; ".join((*places, ", ".join(f"--input {spec}" for spec in specs)))


def _breaks(asked: Asked, specs: Sequence[TensorSpec]) -> bool:
    dims = {symbol: specs[index].dims[axis] for symbol, (index, axis) in asked.places.items()}
    named = {dim.name: dim for dim in dims.values()}
    for sizes in itertools.islice(itertools.product(*map(_sizes, named.values())), _MOST):
        by_name = dict(zip(named, sizes, strict=True))
        values = {symbol: sympy.Integer(by_name[dim.name]) for symbol, dim in dims.items()}
        if asked.condition.xreplace(values) == sympy.false:
            return True
    return False


def _sizes(dim: Dim) -> list[int]:
    """Return sizes of ``dim`` from two units on, the ends first: at one, torch asks for what nothing depends on."""
    low = min(max(dim.min, 2 * dim.multiple), dim.max)
    sizes = range(low, dim.max + 1, dim.multiple)
    return list(dict.fromkeys([low, sizes[-1], *sizes[:: -(-len(sizes) // _EACH) | 1]]))
