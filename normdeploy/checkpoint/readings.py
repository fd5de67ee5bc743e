"""The ways to read a file as the weights of a module, by name and shape alone: the one that fits, or why none is it.

A reading is an entry of the file, a prefix that goes and one that comes, and wrappers' parts of names left out. It fits
where it finds every weight of the module in its shape. What else the file holds may be left out where it cannot belong
to the module: behind another prefix, or known not to be read in inference. A network with layers that the module lacks
is another network, whose remainder would fit.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normdeploy.checkpoint.names import Names

_COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS: tuple[frozenset[str], ...] = (frozenset(), _COMPILED, _COMPILED | {"module"})
"""Parts that wrappers put into names, anywhere: torch.compile, FSDP, activation checkpointing; DDP of a part."""

_NOT_WEIGHTS = frozenset(
    {"num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index", "total_ops", "total_params"}
)
"""Buffers that versions and tools add or drop: counters, and indices that follow from the sizes."""

_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
_MAX_PLACES, _MAX_DEPTH, _ANCHORS = 64, 4, 8


@dataclass(frozen=True)
class Wanted:
    """What a module holds.

    Attributes:
        shapes: name → shape; None takes any, as a lazy parameter does, and what is no tensor.
        twins: name → the other names of the same tensor.
        fixed: buffers that its state dict leaves out, by name.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    twins: Mapping[str, Sequence[str]]
    fixed: Mapping[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """What one way of reading finds.

    Attributes:
        names: the options that spell it.
        wrappers: parts that were left out of the file's names.
        sources: name in the module → name in the entry.
        missing: names that the module has and the entry has not.
        excused: the same, where that does no harm.
        misshaped: names whose shapes differ.
        unexpected: name in the entry → what it would be called in the module, which has no such name.
        unused: other names of the entry that are not read.
    """

    names: Names
    wrappers: tuple[str, ...]
    sources: Mapping[str, str]
    missing: tuple[str, ...]
    excused: tuple[str, ...]
    misshaped: tuple[str, ...]
    unexpected: Mapping[str, str]
    unused: tuple[str, ...]

    def renamed(self, name: str) -> str:
        """Return what ``name`` of the file becomes."""
        short = ".".join(part for part in name.split(".") if part not in self.wrappers)
        return (self.names.add or "") + _renamed(short.removeprefix(self.names.strip or ""), self.names)

    @property
    def fits(self) -> bool:
        """Return True if every weight is found in its shape."""
        return not (self.missing or self.misshaped)

    @property
    def problems(self) -> tuple[int, int]:
        """Return weights that do not fit, then names too many: the fewer, the nearer."""
        return len(self.missing) + len(self.misshaped), len(self.unexpected)


class Collision(Exception):
    """Two names of the file become one."""


def places(contents: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every state dict in ``contents`` with its dotted key, the outer ones first; '' is the file itself."""
    level: list[tuple[str, Any]] = [("", contents)]
    found = 0
    for _ in range(_MAX_DEPTH):
        for key, value in level:
            if is_state(value) and any(isinstance(each, Tensor) for each in value.values()):
                found += 1
                if found > _MAX_PLACES:
                    return
                yield key, value
        inner = ((key, value) for key, value in level if isinstance(value, Mapping))
        level = [
            (f"{key}.{name}" if key else name, each)
            for key, value in inner
            for name, each in value.items()
            if isinstance(name, str) and isinstance(each, Mapping)
        ][: _MAX_PLACES * _MAX_PLACES]


def is_state(value: Any) -> bool:
    """Return True if ``value`` is a mapping from names."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def readings(entries: Iterable[tuple[str, Mapping[str, Any]]], names: Names, wanted: Wanted) -> list[Reading]:
    """Return the different ways to read the ``entries``, by key, that agree with ``names``.

    Raises Collision where the only ways make one name of two.
    """
    found: dict[object, Reading] = {}
    collision = None
    for key, entry in entries:
        for wrappers, old in _variants(entry, names, wanted):
            view = _View(entry, wrappers, old)
            for strip, add in _prefixes(view, names, wanted):
                spelled = replace(names, key=key, strip=strip, add=add)
                try:
                    reading = _read(view, spelled, wanted, given=names.strip is not None)
                except Collision as error:
                    collision = error
                    continue
                same = key, frozenset(reading.sources.items())
                if same not in found or reading.problems < found[same].problems:
                    found[same] = reading
    if collision and not found:
        raise collision
    return list(found.values())


class _View:
    """An entry's names as they read without wrappers, and with today's names of a norm's weights."""

    def __init__(self, entry: Mapping[str, Any], wrappers: frozenset[str], old_names: bool) -> None:
        self.entry, self.wrappers, self.old_names = entry, wrappers, old_names
        self.names = {name: self.clean(name) for name, value in entry.items() if _is_loaded(name, value)}

    def clean(self, name: str) -> str:
        """Return ``name`` without the wrappers' parts."""
        parts = [part for part in name.split(".") if part not in self.wrappers] if self.wrappers else name.split(".")
        if self.old_names:
            parts[-1:] = [_OLD_NAMES.get(part, part) for part in parts[-1:]]
        return ".".join(parts)

    def parts(self) -> tuple[str, ...]:
        """Return the wrappers whose parts the names had, and old names that were read as new ones."""
        seen = {part for name in self.names for part in name.split(".")}
        old = {name.rpartition(".")[2] for name in self.names} & _OLD_NAMES.keys() if self.old_names else set()
        return (*sorted(self.wrappers & seen), *sorted(old))


def _is_loaded(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) or name.endswith("_extra_state")


def _variants(entry: Mapping[str, Any], names: Names, wanted: Wanted) -> Iterator[tuple[frozenset[str], bool]]:
    """Yield the sets of parts to leave out of the names of ``entry``, and whether old names are read as new ones."""
    if names.strip and not any(name.startswith(names.strip) for name in entry):
        yield frozenset(), False  # who names a prefix that is not there may mean another file
        return
    seen = {part for name in entry for part in name.split(".")}
    own = {part for name in wanted.shapes for part in name.split(".")}
    last = {name.rpartition(".")[2] for name in entry}
    old = (False, True) if last & _OLD_NAMES.keys() and not own & _OLD_NAMES.keys() else (False,)
    sets = {wrappers & seen for wrappers in _WRAPPERS if not wrappers & own}
    yield from itertools.product(sorted(sets, key=len), old)


def _prefixes(view: _View, names: Names, wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Yield the prefixes to strip and to add under which some weight of the module is found."""
    seen = set()
    for add in [names.add] if names.add is not None else _common_prefixes(wanted.shapes):
        if names.strip is not None:
            strips = {view.clean(names.strip)}
        else:
            strips = {"", *_strips(view, names, _anchors(add, names, wanted))}
        for strip in sorted(strips):
            if (strip, add) not in seen:
                seen.add((strip, add))
                yield strip, add


def _common_prefixes(shapes: Iterable[str]) -> list[str]:
    """Return the dotted prefixes that all names share, the empty one first."""
    split = [name.split(".")[:-1] for name in shapes]
    parts = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*split, strict=False))
    return ["", *(f"{prefix}." for prefix in itertools.accumulate((p[0] for p in parts), lambda a, b: f"{a}.{b}"))]


def _anchors(add: str, names: Names, wanted: Wanted) -> dict[str, tuple[int, ...] | None]:
    """Return names of the module, without ``add``, that a fitting entry must have; some of all lengths."""
    needed = [name for name in wanted.shapes if not (_is_no_weight(name) or name in wanted.twins)]
    needed = [name for name in needed if not names.may_miss(name)] or list(wanted.shapes)
    ranked = sorted(needed, key=len, reverse=True)
    return {name.removeprefix(add): wanted.shapes[name] for name in ranked[:: max(1, len(ranked) // _ANCHORS)]}


def _strips(view: _View, names: Names, anchors: Mapping[str, tuple[int, ...] | None]) -> list[str]:
    """Return the prefixes without which names of the file are among ``anchors``, the likeliest ones.

    Those are likelier behind which more of them lie; where some lie there in their shapes, the others are none.
    """
    named, shaped = Counter[str](), Counter[str]()
    for raw, name in view.names.items():
        for cut in (index + 1 for index, char in enumerate(name) if char == "."):
            if (short := _renamed(name[cut:], names)) in anchors:
                named[name[:cut]] += 1
                shaped[name[:cut]] += not _differ(anchors[short], view.entry[raw])
    likely = +shaped or named
    return [prefix for prefix, _ in likely.most_common(_MAX_PLACES)]


def _renamed(name: str, names: Names) -> str:
    for rename in names.rename:
        name = rename(name)
    return name


def _is_no_weight(name: str) -> bool:
    return name.rpartition(".")[2] in _NOT_WEIGHTS


def _read(view: _View, names: Names, wanted: Wanted, *, given: bool) -> Reading:
    """Return what the names of ``view`` are in the module. Raises Collision where two of them become one.

    Names without the prefix are outside of the module; where the prefix was ``given`` they stay as they are, if they
    are needed.
    """
    strip, add = names.strip or "", names.add or ""
    inside = {raw: name.removeprefix(strip) for raw, name in view.names.items() if name.startswith(strip)}
    reading = _match(view, inside, names, wanted)
    if given and not reading.fits and len(inside) < len(view.names):
        every = {raw: name.removeprefix(strip) for raw, name in view.names.items()}
        reading = _match(view, every, names, wanted)
    return replace(reading, names=replace(names, strip=strip, add=add))


def _match(view: _View, inside: Mapping[str, str], names: Names, wanted: Wanted) -> Reading:
    sources: dict[str, str] = {}
    rest = {}
    for raw, short in inside.items():
        name = (names.add or "") + _renamed(short, names)
        if name in sources:
            raise Collision(name)
        if name in wanted.shapes:
            sources[name] = raw
        else:
            rest[raw] = name
    absent = [name for name in wanted.shapes if name not in sources]
    excused = [
        n for n in absent if _is_no_weight(n) or names.may_miss(n) or sources.keys() & {*wanted.twins.get(n, ())}
    ]
    unexpected = {r: n for r, n in rest.items() if not (names.ignores(r) or _is_surplus(view.entry[r], n, wanted))}
    used = {*sources.values(), *unexpected}
    return Reading(
        names=names,
        wrappers=view.parts(),
        sources=sources,
        missing=tuple(name for name in absent if name not in excused),
        excused=tuple(excused),
        misshaped=tuple(n for n, raw in sources.items() if _differ(wanted.shapes[n], view.entry[raw])),
        unexpected=unexpected,
        unused=tuple(raw for raw in view.names if raw not in used),
    )


def _differ(shape: tuple[int, ...] | None, value: Any) -> bool:
    return shape is not None and isinstance(value, Tensor) and tuple(value.shape) != shape


def _is_surplus(value: Any, name: str, wanted: Wanted) -> bool:
    """Return True if leaving the entry out cannot matter: no weight, or what the module holds already."""
    held = wanted.fixed.get(name)
    if held is not None and isinstance(value, Tensor):
        return held.shape == value.shape and torch.equal(held.to(value.dtype), value)
    return _is_no_weight(name) or name == "n_averaged"
