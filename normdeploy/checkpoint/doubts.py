"""When the one reading that fits is not taken without being asked for: another nearly fits, or it may fit by chance.

A name and a shape are evidence, but little where any layer has them: what every Linear holds is called ``weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from normdeploy.checkpoint.names import Names
from normdeploy.checkpoint.readings import Reading, Wanted
from normdeploy.errors import InputError

_SPARE = re.compile(
    r"(^|[\W_])(ema|average[sd]?|avg|swa|shadow|teacher|target|momentum|old|init|initial|pretrained|backup|snapshot)([\W_]|$)",
    re.IGNORECASE,
)
"""Words for sets of weights that are kept beside those of the model itself."""


def require_certain(
    reading: Reading, found: Iterable[Reading], entries: Mapping[str, Mapping[str, Any]], names: Names, wanted: Wanted,
    file: Path,
) -> None:  # fmt: skip
    """Raise InputError where the user has not chosen ``reading``, and it may be another network or another set."""
    spare = _is_spare(reading)
    for other in found:
        if _nearly_fits(other) and apart(reading, other) and (spare or not _is_spare(other)):
            what = f"{_place(reading)} fits the module, and {_place(other)} does but for {_lacks(other)}"
            flags = _flags(reading, names, beside=other)
            fix = f"mend the file; or to take {_place(reading)} all the same, {flags}"
            raise InputError(what, where=str(file), fix=fix)
    left = _left_over(reading, entries)
    if left and _by_chance(reading, left, names, wanted):
        flags = _flags(reading, names)
        what = f"the module may be in the file by chance: {left} of its tensors are left over, read as by {flags}"
        fix = f"check that the factory builds the network that was saved; if it does, {flags}"
        raise InputError(what, where=str(file), fix=fix)


def _flags(reading: Reading, names: Names, beside: Reading | None = None) -> str:
    """Return the options by which ``reading`` is asked for, and not the one ``beside`` it."""
    found, other = reading.names, reading.names if beside is None else beside.names
    key = found.key if found.key or found.key != other.key else names.key
    strip = found.strip if found.strip or found.strip != other.strip else names.strip
    return replace(names, key=key, strip=strip, add=found.add or names.add).flags()


def _nearly_fits(reading: Reading) -> bool:
    """Return True if more than half of the weights of the module are there, and not all."""
    there = len(reading.sources) - len(reading.misshaped) + len(reading.no_tensors)
    return not reading.fits and 2 * there > len(reading.sources) + len(reading.missing)


def apart(one: Reading, other: Reading) -> bool:
    """Return True if the two are readings of different weights."""
    return one.names.key != other.names.key or not {*one.sources.values()} & {*other.sources.values()}


def _is_spare(reading: Reading) -> bool:
    return _SPARE.search(f"{reading.names.key or ''}.{reading.names.strip or ''}") is not None


def _place(reading: Reading) -> str:
    key, strip = reading.names.key, reading.names.strip
    return repr(f"{key}: {strip}*" if key and strip else f"{strip}*" if strip else key) if key or strip else "the file"


def _lacks(reading: Reading) -> str:
    bad: Sequence[str] = (*reading.no_tensors, *reading.misshaped, *reading.missing)
    return f"{bad[0]}{f' and {len({*bad}) - 1} more' if len({*bad}) > 1 else ''}"


def _by_chance(reading: Reading, left: int, names: Names, wanted: Wanted) -> bool:
    """Return True where prefixes were guessed at both ends, or a place was for a single layer, and much is left."""
    found = reading.names
    layer = not any("." in name.removeprefix(found.add or "") for name in wanted.shapes)
    most = left >= len(reading.sources)
    if names.strip is None and names.add is None and found.strip and found.add:
        return most or layer
    guessed = (names.strip is None and found.strip) or (names.key is None and found.key)
    return bool(guessed) and layer and most


def _left_over(reading: Reading, entries: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many tensors the file has that are not read, in this entry and beside it."""
    key = reading.names.key or ""
    beside = (each for name, entry in entries.items() if name != key for each in entry.values())
    taken = {id(entries[key][raw]) for raw in reading.sources.values()}
    others = {id(each) for each in beside if isinstance(each, Tensor)} - taken
    return len(reading.unused) + len(others)
