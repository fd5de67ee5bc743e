"""A checkpoint's contents → into a module, strictly: every weight is there, in its shape, and no value is lost.

The one reading that fits is taken, and said. Where none fits, or several do, one error lists what is in the way, and
the options that help, which are tried first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from normdeploy.checkpoint import values
from normdeploy.checkpoint.doubts import apart, require_certain
from normdeploy.checkpoint.names import SHOWN, Names, listed
from normdeploy.checkpoint.places import as_state, at, places
from normdeploy.checkpoint.readings import Collision, Crowd, Reading, Wanted, readings
from normdeploy.errors import InputError

_MAX_TRIALS = 8

Entries = dict[str, Mapping[str, Any]]


def fit(module: nn.Module, contents: Any, *, file: Path, names: Names) -> tuple[str, ...]:
    """Load ``contents`` of ``file`` into ``module``, in place, and return notes on what was done for that.

    Raises InputError: then the module's values are undefined.
    """
    wanted = _wanted(module)
    entries = _entries(contents, names, file)
    reading = _choose(module, entries, names, wanted, file)
    state = _state(entries, reading)
    values.require_numbers(module, state, file)
    if misfit := _load(module, state, reading):
        spelled = _spelled(reading)
        raise InputError(
            f"the weights do not fit the module{f', read as by {spelled}' if spelled else ''}\n{misfit}",
            where=str(file),
            fix=_advice(reading, _entries(contents, replace(names, key=None), file), names, wanted),
        )
    values.require_equal_ties(module, state, file)
    return (
        *_told(reading, entries, names, wanted),
        *_ties_told(reading, wanted),
        *values.told(module, state, file),
    )


def _wanted(module: nn.Module) -> Wanted:
    expected = module.state_dict()
    twins = {name: [each for each in group if each != name] for group in values.ties(expected) for name in group}
    fixed = {name: buffer for name, buffer in module.named_buffers() if name not in expected}
    learned = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))
    return Wanted({name: _shape(value) for name, value in expected.items()}, twins, fixed, learned)


def _entries(contents: Any, names: Names, file: Path) -> Entries:
    """Return the state dicts among the file's contents that ``names`` admits, by dotted key."""
    if names.key:
        return {names.key: _entry(contents, names.key, file)}
    found = dict(places(contents)) if names.key is None else {}
    return found or {"": _entry(contents, "", file)}


def _entry(contents: Any, key: str, file: Path) -> Mapping[str, Any]:
    """Return the state dict at the dotted ``key`` of the file's contents."""
    lying = list(at(contents, key))
    if not lying:
        fix = f"correct --weights-key; {_inside(contents, key)}"
        raise InputError(f"the file has no entry {key!r}", where=str(file), fix=fix)
    entry = next((found for each in lying if (found := as_state(each)) is not None), None)
    if entry is None:
        what = f"{key or 'the file'} holds a {type(lying[0]).__name__}, not a state dict"
        raise InputError(what, where=str(file), fix="save the module's state_dict()")
    return entry


def _inside(contents: Any, key: str) -> str:
    """Return what the file has at the deepest part of ``key`` that is there, in words."""
    while key:
        key = key.rpartition(".")[0]
        if lying := list(at(contents, key)):
            names = [str(name) for name in lying[0]] if isinstance(lying[0], Mapping) else []
            return f"at this place the file has {listed(names) if names else 'nothing: it is no dict'}"
    return "the file has nothing"


def _choose(module: nn.Module, entries: Entries, names: Names, wanted: Wanted, file: Path) -> Reading:
    """Return the only reading that fits, else the nearest. Raises InputError where several fit, or it may be another.

    A reading fits by its names, or as hooks of the module rename them.
    """
    try:
        found = sorted(readings(entries.items(), names, wanted), key=lambda each: each.problems)
    except Collision as error:
        fix = "choose another --strip-prefix or --rename, or none"
        raise InputError(f"two entries become {str(error)!r}", where=str(file), fix=fix) from error
    except Crowd as error:
        fix = "say which are the module's, by --weights-key and --strip-prefix"
        raise InputError(f"the file holds {error}", where=str(file), fix=fix) from error
    fitting = [reading for reading in found if reading.fits]
    fitting += _by_loading(module, entries, [each for each in found if _is_other(each, fitting)])
    most = max((len(reading.sources) for reading in fitting), default=0) if names.allow else 0
    fitting = [reading for reading in fitting if len(reading.sources) >= most]
    if len(fitting) > 1:
        shown = [_flags(reading, fitting, entries, names, wanted) for reading in fitting[:_MAX_TRIALS]]
        more = f", or {len(fitting) - _MAX_TRIALS} more" if len(fitting) > _MAX_TRIALS else ""
        raise InputError(
            f"{len(fitting)} sets of weights in the file fit the module",
            where=str(file),
            fix=", or ".join(shown) + f"{more} (they fit alike: choose the one you mean)",
        )
    if fitting:
        require_certain(fitting[0], found, entries, names, wanted, file)
    return (fitting or found)[0]


def _is_other(reading: Reading, fitting: Sequence[Reading]) -> bool:
    """Return True if ``reading`` is of other weights than those that fit, and of about as many."""
    enough = 2 * (len(reading.sources) + len(reading.unexpected)) > len(reading.sources) + len(reading.missing)
    return not fitting or (not reading.fits and enough and all(apart(reading, each) for each in fitting))


def _by_loading(module: nn.Module, entries: Entries, found: Sequence[Reading]) -> Iterator[Reading]:
    """Yield the readings that fit only because hooks of the module rename what they load."""
    for reading in found[:_MAX_TRIALS]:
        if not _load(module, _state(entries, reading), reading):
            yield reading


def resolved(entries: Entries, names: Names, wanted: Wanted) -> Reading | None:
    """Return the reading that ``names`` leads to by name and shape, where it is the only one and leaves nothing."""
    chosen = {names.key: entries[names.key]} if names.key is not None else entries
    fitting = [reading for reading in readings(chosen.items(), names, wanted) if reading.fits]
    return fitting[0] if len(fitting) == 1 and not fitting[0].unexpected else None


def _flags(reading: Reading, fitting: Sequence[Reading], entries: Entries, given: Names, wanted: Wanted) -> str:
    """Return the fewest options that lead to ``reading`` and to none of the others that fit; each way is tried."""
    key, strip, add = reading.names.key, reading.names.strip, reading.names.add
    ignore = (*given.ignore, *(_patterns(reading, wanted) or ()))
    ways: list[dict[str, str | None]] = [{"key": key, "strip": strip}, {"key": key, "strip": strip, "add": add}]
    for one in ({"strip": strip}, {"key": key}):
        if sum(all(getattr(each.names, name) == value for name, value in one.items()) for each in fitting) == 1:
            ways.insert(0, one)
    for way in ways:
        for names in (replace(given, **way), replace(given, **way, ignore=ignore)):  # type: ignore[arg-type] # of texts
            tried = resolved(entries, names, wanted)
            if tried and (tried.names.key, tried.sources) == (key, reading.sources):
                return names.flags()
    return replace(given, key=key, strip=strip, add=add).flags()  # it fits by hooks of the module, not by its names


def _patterns(reading: Reading, wanted: Wanted) -> list[str] | None:
    """Return patterns for the unexpected names: the outermost parts that the module has none of; None for too many."""
    held = {name[:cut] for name in wanted.shapes for cut, char in enumerate(name) if char == "."}
    found = set()
    for raw, name in reading.unexpected.items():
        parts = name.split(".")
        depth = next((n for n in range(1, len(parts)) if ".".join(parts[:n]) not in held), len(parts))
        inner = len(parts) - depth
        found.add(".".join([*raw.split(".")[:-inner], "*"]) if inner else raw)
    return sorted(found) if len(found) <= SHOWN else None


class _State(dict[str, Any]):
    """A state dict; ``_metadata`` is where torch keeps the version each module was saved at."""

    _metadata: dict[str, Any] | None = None


def _state(entries: Entries, reading: Reading) -> _State:
    """Return what is to be loaded, by the module's names; hooks of the module may know what to do with the rest."""
    entry = entries[reading.names.key or ""]
    state = _State({name: entry[raw] for name, raw in reading.sources.items()})
    state.update({name: entry[raw] for raw, name in reading.unexpected.items()})
    if isinstance(versions := getattr(entry, "_metadata", None), Mapping):
        state._metadata = {reading.renamed(f"{name}.").rstrip("."): value for name, value in versions.items()}
    return state


@dataclass(frozen=True)
class _Misfit:
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[str] = ()
    other: Sequence[str] = ()

    def __bool__(self) -> bool:
        return any((self.missing, self.unexpected, self.misshaped, self.other))

    def __str__(self) -> str:
        lists = {
            "missing (the module has it, the file does not)": self.missing,
            "unexpected (the file has it, the module does not)": self.unexpected,
            "another shape": self.misshaped,
            "refused by the module": self.other,
        }
        return "\n".join(f"  {len(names)} {title}: {listed(names)}" for title, names in lists.items() if names)


def _load(module: nn.Module, state: _State, reading: Reading) -> _Misfit:
    """Load as far as it goes, and return what does not fit.

    torch decides, so that a module's own loading hooks (renamings, older versions) count.
    """
    expected = module.state_dict()
    missing, unexpected, error = _try(module, state)
    misshaped: dict[str, str] = {}
    if error:
        misshaped = {
            name: f"{name} ({_shape(state[name])} in the file, {_shape(value)} in the module)"
            for name, value in expected.items()
            if None not in (shapes := (_shape(value), _shape(state.get(name)))) and shapes[0] != shapes[1]
        }
        rest = _State({name: value for name, value in state.items() if name not in misshaped})
        rest._metadata = state._metadata
        missing, unexpected, error = _try(module, rest)
    absent = [name for name in missing if name not in misshaped and name not in reading.excused]
    raw = {name: each for each, name in reading.unexpected.items()}
    surplus = [raw.get(name, name) for name in unexpected]
    return _Misfit(absent, surplus, list(misshaped.values()), [" ".join(error.split())] if error else [])


def _try(module: nn.Module, state: _State) -> tuple[list[str], list[str], str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts are judged, and told, below
        try:
            result = module.load_state_dict(state, strict=False)
        # A module's own loading hook may raise anything.
        except Exception as error:
            return [], [], str(error) or type(error).__name__
    return list(result.missing_keys), list(result.unexpected_keys), ""


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor; None for anything else, and for a lazy parameter, which takes any shape."""
    return tuple(value.shape) if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) else None


def _told(reading: Reading, entries: Entries, names: Names, wanted: Wanted) -> Iterator[str]:
    """Notes on how the file was read, where the user did not say it so."""
    entry = entries[reading.names.key or ""]
    if names.strip and not any(name.startswith(names.strip) for name in entry):
        yield f"no name in the file starts with {names.strip!r}: --strip-prefix changed nothing"
    for rename in names.rename:
        if not any(rename(raw.removeprefix(names.strip or "")) != raw.removeprefix(names.strip or "") for raw in entry):
            yield f"--rename {rename} changed nothing"
    found = reading.names
    if (names.key or "", names.strip or "", names.add or "") != (found.key, found.strip, found.add):
        yield f"the weights were read as by {_spelled(reading)}, the only way in which they fit"
    if reading.wrappers:
        yield f"read without what wrappers and older versions call things: {', '.join(reading.wrappers)}"
    skipped = [f"{name} ({type(entry[name]).__name__})" for name in entry if not _is_loaded(name, entry[name])]
    if skipped:
        yield f"entries of the file that are not tensors were not loaded: {listed(skipped)}"
    if reading.unused:
        what = "tensors of the file are not of the module and were not loaded"
        yield f"{len(reading.unused)} {what}: {listed(reading.unused)}"
    kept = [name for name in reading.excused if not wanted.twins.get(name) and not name.endswith("num_batches_tracked")]
    if kept:
        yield f"not in the file, so as the factory made them: {listed(kept)}"


def _spelled(reading: Reading) -> str:
    """Return the options of a reading that are not empty."""
    names = reading.names
    return Names(key=names.key or None, strip=names.strip or None, add=names.add or None).flags()


def _is_loaded(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) or name.endswith("_extra_state")


def _ties_told(reading: Reading, wanted: Wanted) -> Iterator[str]:
    for name in reading.excused:
        twins = [twin for twin in wanted.twins.get(name, ()) if twin in reading.sources]
        if twins:
            yield f"{name} is not in the file: it is tied to {twins[0]}"


def _advice(reading: Reading, entries: Entries, names: Names, wanted: Wanted) -> str:
    """Return what would help: options that were tried, else where to look."""
    free = replace(names, key=None, strip=None, add=None)
    spelled = [
        replace(free, key=each.names.key or None, strip=each.names.strip or None, add=each.names.add or None)
        for each in readings(entries.items(), free, wanted)
        if each.fits and not each.unexpected
    ]
    if tried := [each for each in spelled if each != names and resolved(entries, each, wanted)]:
        return ", or ".join(each.flags() or "leave these options out" for each in tried)
    checks = "check that the factory and its --model-arg build the network that was saved"
    if reading.fits and reading.unexpected and (patterns := _patterns(reading, wanted)):
        ignore = replace(names, ignore=(*names.ignore, *patterns))
        if resolved(entries, ignore, wanted):
            return f"{checks}; it has less than the file: to leave the rest out all the same, {ignore.flags()}"
    return checks
