"""What torch.export says of sizes that a trace does not hold for, read and said in the words of the specs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from normdeploy.errors import InputError
from normdeploy.export import advice
from normdeploy.specs import Dim, TensorSpec, dynamic_dims

_BULLET = re.compile(r"^\s*- (.*)$", re.MULTILINE)
_SIZE = r"L\[[^ ]*\]\.size\(\)\[\d+\]"
_EQUAL = re.compile(r"The values of (\w+) = .* and (\w+) = .* must always be equal")
_ONE_SIZE = re.compile(r"^\s*(\w+) = (\d+)$", re.MULTILINE)
_CONSTANT = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RANGE = re.compile(r"^\s*(\w+) = Dim\('\1', (.*)\)$", re.MULTILINE)


def are_final(text: str, names: Mapping[str, str]) -> bool:
    """Return True if ``text`` says that a size is fixed, or two are equal: nothing that could hold after all."""
    narrowed = [match[1] for pattern in (_CONSTANT, _RANGE, _ONE_SIZE) for match in pattern.finditer(text)]
    return bool(_EQUAL.search(text)) or any(symbol in names for symbol in narrowed)


def refusal(text: str, specs: Sequence[TensorSpec], names: Mapping[str, str], where: str) -> InputError:
    """Return the error for torch's ``text``, in which ``names`` maps its dimensions to the specs' names."""
    said = replace_words(text, names)
    found = list(_conditions(said, dynamic_dims(specs)))
    equal = [f"{m[2]!r} and {m[1]!r} must be equal (give both one name)" for m in _EQUAL.finditer(said)]
    unread = [re.sub(f" = {_SIZE}", "", bullet) for bullet in _BULLET.findall(said)]
    reasons = [*equal, *(f"{name!r} must be {told}" for name, told, _ in found)] or unread
    working = {name: dim for name, _, dim in found}
    fix = f"ask for these: {advice.spelled(specs, working)}"
    if equal or not working:
        fix = "ask for the sizes that work (one size fixes a dimension)"
    return InputError(
        "the module does not work for every size that was asked for: " + "; ".join(dict.fromkeys(reasons)),
        where=where,
        fix=f"{fix}, or change the code that depends on the size",
    )


def _conditions(said: str, dims: Mapping[str, Dim]) -> Iterator[tuple[str, str, Dim]]:
    """Yield the name of each dimension that torch narrows, in words what it must be, and what is left of its range."""
    for match in (*_CONSTANT.finditer(said), *_ONE_SIZE.finditer(said)):
        if match[1] in dims:
            size = int(match[2])
            yield match[1], match[2], Dim(match[1], size, size, size)
    for match in _RANGE.finditer(said):
        if match[1] in dims:
            narrowed = _ranged(dims[match[1]], match[2])
            yield match[1], narrowed.span, narrowed


def _ranged(dim: Dim, bounds: str) -> Dim:
    """Return torch's ``min=5, max=8``, in which either may be missing, inside ``dim``."""
    found = {end: int(size) for end, size in re.findall(r"(min|max)=(\d+)", bounds)}
    low, high = max(found.get("min", 1), dim.min), min(found.get("max", dim.max), dim.max)
    return replace(dim, min=low, opt=min(max(dim.opt, low), high), max=high)


def replace_words(text: str, words: Mapping[str, str]) -> str:
    """Return ``text`` with every whole word that is a key of ``words`` replaced, all at once."""
    return re.sub(r"\w+", lambda match: words.get(match[0], match[0]), text)
