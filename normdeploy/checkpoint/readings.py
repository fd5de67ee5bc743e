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
from normdeploy.checkpoint.places import of_optimizer

_COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS: tuple[frozenset[str], ...] = (frozenset(), _COMPILED, _COMPILED | {"module"})
"""Parts that wrappers put into names, anywhere: torch.compile, FSDP, activation checkpointing; DDP of a part."""

_NOT_WEIGHTS = frozenset(
    {"num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index", "total_ops", "total_params"}
)
"""Buffers that versions and tools add or drop: counters, and indices that follow from the sizes."""

_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
_ANCHORS, _LIKELY = 8, 64
_MOST_ENTRIES, _MOST_PREFIXES = 1024, 256
"""The most entries, and prefixes in one, that are told apart; more that could all fit are refused, not left unseen."""


@dataclass(frozen=True)
class Wanted:
    """What a module holds.

    Attributes:
        shapes: name → shape; None takes any, as a lazy parameter does, and what is no tensor.
        twins: name → the other names of the same tensor.
        fixed: buffers that its state dict leaves out, by name.
        learned: names of parameters.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    twins: Mapping[str, Sequence[str]]
    fixed: Mapping[str, Tensor]
    learned: frozenset[str]


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
        no_tensors: those of the missing whose entry is there, but no tensor.
        unexpected: name in the entry → what it would be called in the module, which has no such name.
        unused: other names of the entry that are not read.
    """

    names: Names
    wrappers: tuple[str, ...]
    sources: Mapping[str, str]
    missing: tuple[str, ...]
    excused: tuple[str, ...]
    misshaped: tuple[str, ...]
    no_tensors: tuple[str, ...]
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


class Crowd(Exception):
    """More sets of weights than can all be looked at."""


def readings(entries: Iterable[tuple[str, Mapping[str, Any]]], names: Names, wanted: Wanted) -> list[Reading]:
    """Return the different ways to read the ``entries``, by key, that agree with ``names``.

    Raises Collision where the only ways make one name of two, Crowd where more could fit than can be looked at.
    """
    found: dict[object, Reading] = {}
    collision = None
    adds = [names.add] if names.add is not None else _common_prefixes(wanted.shapes)
    anchors = {add: _anchors(add, names, wanted) for add in adds}
    for key, entry in _likely(entries, names, wanted):
        for wrappers, old in _variants(entry, names, wanted):
            view = _View(entry, wrappers, old)
            for strip, add in _prefixes(view, names, anchors):
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


def _likely(
    entries: Iterable[tuple[str, Mapping[str, Any]]], names: Names, wanted: Wanted
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the entries with at least as many tensors as the module needs, and of the others the largest."""
    found = list(entries)
    once = {id(entry): entry for _, entry in found}
    counts = {name: sum(isinstance(each, Tensor) for each in entry.values()) for name, entry in once.items()}
    sizes = {key: counts[id(entry)] for key, entry in found}
    needed = sum(not names.may_miss(name) for name in _needed(wanted))
    taken = {key for key, size in sizes.items() if size >= needed}
    if len(taken) > _MOST_ENTRIES:
        raise Crowd(f"more than {_MOST_ENTRIES} sets of weights that may fit the module")
    taken |= {*sorted(sizes, key=lambda key: -sizes[key])[:_LIKELY]}
    return [(key, entry) for key, entry in found if key in taken]


def _needed(wanted: Wanted) -> list[str]:
    """Return names of the module that every file has, whatever its version, and whichever of tied names it keeps."""
    return [name for name in wanted.shapes if not (_is_no_weight(name, wanted) or name in wanted.twins)]


class _View:
    """An entry's names as they read without wrappers, and with today's names of a norm's weights."""

    def __init__(self, entry: Mapping[str, Any], wrappers: frozenset[str], old_names: bool) -> None:
        self.entry, self.wrappers, self.old_names = entry, wrappers, old_names
        cleaned = {name: self.clean(name) for name in entry}
        self.names = {name: short for name, short in cleaned.items() if _is_loaded(name, entry[name])}
        self.others = {short for name, short in cleaned.items() if name not in self.names}

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


def _prefixes(
    view: _View, names: Names, anchors: Mapping[str, Mapping[str, tuple[int, ...] | None]]
) -> Iterator[tuple[str, str]]:
    """Yield the prefixes to strip and to add under which some weight of the module is found."""
    for add in anchors:
        strips = {view.clean(names.strip)} if names.strip is not None else {"", *_strips(view, names, anchors[add])}
        yield from ((strip, add) for strip in sorted(strips))


def _common_prefixes(shapes: Iterable[str]) -> list[str]:
    """Return the dotted prefixes that all names share, the empty one first."""
    split = [name.split(".")[:-1] for name in shapes]
    parts = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*split, strict=False))
    return ["", *(f"{prefix}." for prefix in itertools.accumulate((p[0] for p in parts), lambda a, b: f"{a}.{b}"))]


def _anchors(add: str, names: Names, wanted: Wanted) -> dict[str, tuple[int, ...] | None]:
    """Return names of the module, without ``add``, that a fitting entry must have; some of all lengths."""
    needed = [name for name in _needed(wanted) if not names.may_miss(name)] or list(wanted.shapes)
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
    likely = [prefix for prefix, _ in (+shaped or named).most_common() if not of_optimizer(prefix)]
    fitting = sum(shaped[prefix] == len(anchors) for prefix in likely)
    if fitting > _MOST_PREFIXES:
        raise Crowd(f"more than {_MOST_PREFIXES} sets of weights that may fit the module, each behind a prefix")
    return likely[: max(_LIKELY, fitting)]


def _renamed(name: str, names: Names) -> str:
    for rename in names.rename:
        name = rename(name)
    return name


def _is_no_weight(name: str, wanted: Wanted) -> bool:
    return name.rpartition(".")[2] in _NOT_WEIGHTS and name not in wanted.learned


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
        name
        for name in absent
        if _is_no_weight(name, wanted) or names.may_miss(name) or sources.keys() & {*wanted.twins.get(name, ())}
    ]
    unexpected = {r: n for r, n in rest.items() if not (names.ignores(r) or _is_surplus(view.entry[r], n, wanted))}
    used = {*sources.values(), *unexpected}
    start = names.strip or ""
    others = {
        (names.add or "") + _renamed(short.removeprefix(start), names)
        for short in view.others
        if short.startswith(start)
    }
    missing = tuple(name for name in absent if name not in excused)
    return Reading(
        names=names,
        wrappers=view.parts(),
        sources=sources,
        missing=missing,
        excused=tuple(excused),
        misshaped=tuple(n for n, raw in sources.items() if _differ(wanted.shapes[n], view.entry[raw])),
        no_tensors=tuple(name for name in missing if name in others),
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
    return _is_no_weight(name, wanted) or name == "n_averaged"
