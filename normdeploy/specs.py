"""Tensor specs: name, shape with fixed and ranged dimensions, dtype and value range; parsed and printed here.

One syntax, ``name:dims@dtype[low..high]``, e.g. ``ids:B=1..4..8xT=1..64..128@i64[0..30521]``:

- dims are joined by ``x``; one is ``8``, ``1..4`` (opt = min), ``1..4..8`` (min..opt..max), ``B=1..4..8``, or ``B``,
  which is the dimension that ``B=...`` defines in this or another input. A dimension's name has no ``x`` in it.
- ``H=64..128..256%4`` takes multiples of 4 only; all three sizes are.
- ``name:[1,3,224,224]`` is accepted too, and is the only spelling of a scalar: ``t:[]@i64``.
- the dtype is f32 where none is given; the value range, both ends included, is optional.
- ``batch.image:1x3x8x8`` is an entry of a dictionary or a field of a dataclass, ``views.0:1x3x8x8`` of a list.
- ``training=False`` fixes an argument that is no tensor: a Python literal, or a string.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from normdeploy.errors import InputError

DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
}
"""Shorthand in a spec → numpy (or ml_dtypes) name; the long name is accepted in a spec too."""

_SHORT = {long: short for short, long in DTYPES.items()}
_LIMITS: dict[str, tuple[float, float]] = {
    "float32": (-3.4028234663852886e38, 3.4028234663852886e38),
    "float16": (-65504.0, 65504.0),
    "bfloat16": (-3.3895313892515355e38, 3.3895313892515355e38),
    "float64": (-1.7976931348623157e308, 1.7976931348623157e308),
    "int64": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "bool": (0, 1),
}
_SYNTAX = "write name:dims@dtype[low..high], e.g. x:N=1..1..64x3x224x224@f32 or ids:[1,128]@i64[0..30521]"
_SPEC = re.compile(
    r"(?P<name>[^:]*):(?P<dims>\[[^\]]*\]|[^@\[\]]+)(?:@(?P<dtype>\w+)(?:\[(?P<low>[^\]]+?)\.\.(?P<high>[^\]]+)\])?)?"
)
_VALUE = re.compile(r"(?P<name>[\w.]+)=(?P<value>.*)", re.DOTALL)
_DIM = re.compile(
    r"(?:(?P<name>[A-Za-wyz_][A-Za-wyz_0-9]*)(?:=(?=\d)|$))?"
    r"(?:(?P<range>\d{1,10}(?:\.\.\d{1,10}){0,2})(?:%(?P<multiple>\d{1,10}))?)?",
    re.A,
)


@dataclass(frozen=True)
class Dim:
    """One dimension: multiples of ``multiple`` from ``min`` to ``max``, ``opt`` the usual size.

    ``name`` is None only where it is fixed.
    """

    name: str | None
    min: int
    opt: int
    max: int
    multiple: int = 1

    @property
    def fixed(self) -> bool:
        """Return True if it has one size only."""
        return self.min == self.max and self.name is None

    def takes(self, size: int) -> bool:
        """Return True if ``size`` is one of its sizes."""
        return self.min <= size <= self.max and size % self.multiple == 0

    @property
    def span(self) -> str:
        """Return its sizes without the usual one: ``8``, ``1..8``, ``64..256%4``."""
        return str(self.min) if self.fixed else f"{self.min}..{self.max}{self._unit}"

    def __str__(self) -> str:
        """Return its sizes as they are spelled: ``8``, ``1..4..8``, ``64..128..256%4``."""
        return str(self.min) if self.fixed else f"{self.min}..{self.opt}..{self.max}{self._unit}"

    @property
    def _unit(self) -> str:
        return "" if self.multiple == 1 else f"%{self.multiple}"


@dataclass(frozen=True)
class TensorSpec:
    """One input: the name of forward's parameter, its dimensions, numpy dtype name and inclusive value range."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    low: float | None = None
    high: float | None = None

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape where each named dimension has its size in ``sizes``; KeyError where that lacks one."""
        return tuple(dim.min if dim.name is None else sizes[dim.name] for dim in self.dims)

    def __str__(self) -> str:
        dims = "x".join(self._dim(axis, dim) for axis, dim in enumerate(self.dims)) or "[]"
        values = "" if self.low is None else f"[{self.low}..{self.high}]"
        return f"{self.name}:{dims}@{_SHORT[self.dtype]}{values}"

    def _dim(self, axis: int, dim: Dim) -> str:
        if dim.fixed:
            return str(dim)
        name = "" if dim.name == _default_name(self.name, axis) else f"{dim.name}="
        return f"{name}{dim}"


class Signature(tuple[TensorSpec, ...]):
    """The specs of all inputs, and what else is settled of a call.

    Attributes:
        values: what is fixed: the name of an argument, or of a place inside one → its value.
        outputs: names of the outputs, in order; empty where they have those of what the module returns.
    """

    values: Mapping[str, Any]
    outputs: tuple[str, ...]

    def __new__(
        cls, specs: Iterable[TensorSpec], values: Mapping[str, Any] | None = None, outputs: Sequence[str] = ()
    ) -> Signature:
        """Settle a call."""
        made = super().__new__(cls, specs)
        made.values, made.outputs = dict(values or {}), tuple(outputs)
        return made

    def with_outputs(self, names: Sequence[str]) -> Signature:
        """Return this with names of the outputs. Raises InputError where one is empty, or taken."""
        for name in names:
            if not name.strip() or names.count(name) > 1 or name in (spec.name for spec in self):
                fix = "write --output-names logits,boxes: each once, none that of an input"
                raise InputError(f"{name!r} cannot be the name of an output", where="--output-names", fix=fix)
        return Signature(self, self.values, names)

    def texts(self) -> list[str]:
        """Return what :func:`parse` reads as this, without the names of the outputs."""
        return [*map(str, self), *(f"{name}={value!r}" for name, value in self.values.items())]


def fixed_values(specs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """Return what is fixed beside ``specs``."""
    return specs.values if isinstance(specs, Signature) else {}


def output_names(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the names that are given to the outputs of what ``specs`` go into."""
    return specs.outputs if isinstance(specs, Signature) else ()


def parse(texts: Sequence[str]) -> Signature:
    """Return the specs and values that ``texts`` spell, in order; a dimension's name means the same one in all.

    Every ranged dimension gets a name: without one of its own, axis 0 of input ``ids`` is ``ids_d0``.
    A dimension with one size is fixed and has none, however it was spelled. Raises InputError.
    """
    values = [match for text in texts if (match := _VALUE.fullmatch(text.strip()))]
    drafts = [_Draft.of(text) for text in texts if not _VALUE.fullmatch(text.strip())]
    _check_places([*((draft.name, draft.text) for draft in drafts), *((match["name"], match[0]) for match in values)])
    named: dict[str, Dim] = {}
    for draft in drafts:
        for dim in draft.dims:
            if isinstance(dim, Dim) and dim.name is not None and named.setdefault(dim.name, dim) != dim:
                raise _error(
                    f"dimension {dim.name!r} is {dim} here and {named[dim.name]} elsewhere",
                    draft.text,
                    f"give {dim.name} one range, or two names to two dimensions",
                )
    specs = (draft.resolve(named) for draft in drafts)
    return Signature(specs, {match["name"]: _literal(match["value"]) for match in values})


def _check_places(named: Sequence[tuple[str, str]]) -> None:
    """Raise InputError where two inputs or values have one name, or one place, or a list has a gap."""
    names = [name for name, _ in named]
    for name, text in named:
        head, *places = name.split(".")
        if not head.isidentifier() or not all(place.isidentifier() or place.isdecimal() for place in places):
            fix = "use the name of a parameter of forward, or of a place in it: x, x.image, x.0"
            raise _error(f"{name!r} cannot be the name of an input", text, fix)
        if names.count(name) > 1:
            raise _error(f"input {name!r} is given more than once", text, "give each input one --input")
        if any(other.startswith(f"{name}.") for other in names):
            fix = "give a tensor, or what is inside a container"
            raise _error(f"input {name!r} is a tensor and holds tensors", text, fix)
        if _flat(name) in (_flat(other) for other in names if other != name):
            fix = "let the factory wrap the module in one with other names"
            raise _error(f"input {name!r} and another have the same dimensions' names", text, fix)
    _check_lists(names)


def _check_lists(names: Sequence[str]) -> None:
    """Raise InputError where a list has a gap, or other places than numbers."""
    places: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            places.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    for owner, found in places.items():
        wanted = {str(index) for index in range(len(found))}
        if any(place.isdecimal() for place in found) and found != wanted:
            told = ", ".join(sorted(found))
            fix = f"name the items of a list {owner}.0, {owner}.1 …, without a gap"
            raise _error(f"the places {told} are no list", owner, fix)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def dynamic_dims(specs: Iterable[TensorSpec]) -> dict[str, Dim]:
    """Name → dimension, of every dimension that is not fixed, in order of appearance."""
    return {dim.name: dim for spec in specs for dim in spec.dims if dim.name is not None}


def sizes_at(specs: Iterable[TensorSpec], point: Literal["min", "opt", "max"]) -> dict[str, int]:
    """Name → size of every dynamic dimension at one end, or at the usual point, of its range."""
    return {name: int(getattr(dim, point)) for name, dim in dynamic_dims(specs).items()}


def tracing_sizes(specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Name → the size to trace each dynamic dimension at: inside its range and at least 2, opt where that can be.

    A tracer takes a size of 1 for a constant and equal sizes for one dimension. So sizes are pairwise distinct, and
    distinct from every fixed size, as far as the ranges allow: a maximum matching of dimensions with sizes. Of a
    dimension of multiples, the size in units of its multiple is at least 2 where that can be.
    """
    dims = dynamic_dims(specs)
    fixed = {dim.min for spec in specs for dim in spec.dims if dim.fixed}
    wanted = {name: _candidates(dim, len(dims) + len(fixed)) for name, dim in dims.items()}
    owner: dict[int, str] = {}
    for avoid in (fixed, set[int]()):
        for name in dims:
            if name not in owner.values():
                _match(name, wanted, owner, set(avoid))
    matched = {name: size for size, name in owner.items()}
    return {name: matched.get(name, wanted[name][0]) for name in dims}


def _candidates(dim: Dim, count: int) -> list[int]:
    """Sizes of ``dim`` in the order they are preferred; ``count`` beside opt are enough to get past all others."""
    unit = dim.multiple
    low = max(dim.min, 2 * unit)
    return list(dict.fromkeys([max(dim.opt, low), *range(low, min(dim.max, low + count * unit) + 1, unit)]))


def _match(name: str, wanted: Mapping[str, list[int]], owner: dict[int, str], tried: set[int]) -> bool:
    """Kuhn's augmenting path: give ``name`` a size that is not in ``tried``, moving earlier owners if need be."""
    for size in wanted[name]:
        if size in tried:
            continue
        tried.add(size)
        if size not in owner or _match(owner[size], wanted, owner, tried):
            owner[size] = name
            return True
    return False


@dataclass(frozen=True)
class _Draft:
    """A spec whose dimensions may still be names that another input defines."""

    text: str
    name: str
    dims: tuple[Dim | str, ...]
    dtype: str
    low: float | None
    high: float | None

    @classmethod
    def of(cls, text: str) -> _Draft:
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise _error("an input spec that cannot be read", text, _SYNTAX)
        name = match["name"].strip()
        dtype = DTYPES.get(match["dtype"] or "f32", match["dtype"])
        if dtype not in _LIMITS:
            raise _error(f"unknown dtype {dtype!r}", text, f"use one of {', '.join(DTYPES)}")
        dims = tuple(_dim(part, axis, name, text) for axis, part in enumerate(_split(match["dims"].strip())))
        low, high = _values(match["low"], match["high"], dtype, text)
        return cls(text, name, dims, dtype, low, high)

    def resolve(self, named: Mapping[str, Dim]) -> TensorSpec:
        dims = tuple(_without_idle_name(self._known(dim, named)) for dim in self.dims)
        return TensorSpec(self.name, dims, self.dtype, self.low, self.high)

    def _known(self, dim: Dim | str, named: Mapping[str, Dim]) -> Dim:
        if isinstance(dim, Dim):
            return dim
        if dim not in named:
            fix = f"define it in one input, as {dim}=1..4..8; a dimension's name cannot contain the letter x"
            raise _error(f"dimension {dim!r} has no range in any input", self.text, fix)
        return named[dim]


def _split(dims: str) -> list[str]:
    if dims.startswith("["):
        return dims[1:-1].split(",") if dims[1:-1].strip() else []
    return dims.split("x")


def _dim(part: str, axis: int, owner: str, text: str) -> Dim | str:
    match = _DIM.fullmatch(part.strip())
    if match is None or not match[0]:
        fix = "write 8, 1..4..8, B=1..4..8, H=64..128..256%4 or B; a dimension's name cannot contain the letter x"
        raise _error(f"{part.strip()!r} is not a dimension", text, fix)
    if match["range"] is None:
        return str(match["name"])
    sizes, multiple = [int(size) for size in match["range"].split("..")], int(match["multiple"] or 1)
    low, opt, high = sizes[0], sizes[len(sizes) // 2] if len(sizes) == 3 else sizes[0], sizes[-1]
    if low < 1:
        raise _error(f"{part.strip()!r} allows a size of 0", text, "the smallest size is 1")
    if not low <= opt <= high:
        raise _error(f"{part.strip()!r} is out of order", text, "write min..opt..max")
    if multiple < 1 or any(size % multiple for size in (low, opt, high)):
        fix = "write min..opt..max%multiple, where the multiple divides all three, e.g. H=64..128..256%4"
        raise _error(f"{part.strip()!r} has sizes that are no multiples of {multiple}", text, fix)
    return Dim(match["name"] or (_default_name(owner, axis) if low < high else None), low, opt, high, multiple)


def _default_name(owner: str, axis: int) -> str:
    return f"{_flat(owner)}_d{axis}"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _without_idle_name(dim: Dim) -> Dim:
    return Dim(None, dim.min, dim.opt, dim.max) if dim.min == dim.max else dim


def _values(low: str | None, high: str | None, dtype: str, text: str) -> tuple[float | None, float | None]:
    if low is None or high is None:
        return None, None
    number = float if "float" in dtype else int
    try:
        ends = number(low), number(high)
    except ValueError:
        fix = f"write [low..high] with two {'numbers' if number is float else 'whole numbers'}"
        raise _error(f"[{low}..{high}] is not a range of {dtype} values", text, fix) from None
    least, most = _LIMITS[dtype]
    if not (all(math.isfinite(end) for end in ends) and least <= ends[0] <= ends[1] <= most):
        raise _error(f"[{low}..{high}] is no range of {dtype} values", text, f"write {least} <= low <= high <= {most}")
    return ends


def whole_number(text: str) -> int | None:
    """Return the whole number of 0 or more that ``text`` spells; None for what is none, or beyond 32 bits."""
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else _LARGEST + 1
    return number if number <= _LARGEST else None


_DIGITS, _LARGEST = 10, 2**31 - 1


def _error(what: str, text: str, fix: str) -> InputError:
    return InputError(what, where=f"--input {text}", fix=fix)
