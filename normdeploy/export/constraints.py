"""What torch.export says of sizes that a trace does not hold for, read and said in the words of the specs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec, dynamic_dims

_BULLET = re.compile(r"^\s*- (.*)$", re.MULTILINE)
_SIZE = r"L\[[^ ]*\]\.size\(\)\[\d+\]"
_NOT_ONE = re.compile(rf"Not all values of (\w+) = .* satisfy the generated guard \(?(?:(\d+)\*)?{_SIZE}\)? != (\d+)\.")
_EQUAL = re.compile(r"The values of (\w+) = .* and (\w+) = .* must always be equal")
_MULTIPLE = re.compile(r"^\s*(\w+) = (\d+)\*_\1$", re.MULTILINE)
_CONSTANT = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RANGE = re.compile(r"^\s*(\w+) = Dim\('\1', (.*)\)$", re.MULTILINE)


def dims_that_may_not_be_one(text: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """The dimensions of ``k * dim != k`` where all of the conditions are of that form; else none."""
    matches = [_NOT_ONE.match(bullet) for bullet in _BULLET.findall(text)]
    if not all(match and (match[2] or "1") == match[3] for match in matches):
        return ()
    return tuple(dict.fromkeys(names[match[1]] for match in matches if match))


def refusal(text: str, specs: Sequence[TensorSpec], names: Mapping[str, str]) -> InputError:
    """The error for torch's ``text``, in which ``names`` maps its dimensions to the specs' names."""
    said = replace_words(text, names)
    reasons = [
        *(f"{m[2]!r} and {m[1]!r} must be equal (give both one name)" for m in _EQUAL.finditer(said)),
        *(f"{names.get(m[1], m[1])!r} must be a multiple of {m[2]}" for m in _MULTIPLE.finditer(text)),
        *(f"{m[1]!r} must be {m[2]}" for m in _CONSTANT.finditer(said)),
        *(_range(names[m[1]], m[2], specs) for m in _RANGE.finditer(text) if m[1] in names),
    ]
    unread = [replace_words(re.sub(f" = {_SIZE}", "", bullet), names) for bullet in _BULLET.findall(text)]
    return InputError(
        "the module does not work for every size that was asked for: " + "; ".join(dict.fromkeys(reasons or unread)),
        where=", ".join(f"--input {spec}" for spec in specs),
        fix="ask for the sizes that work (one size fixes a dimension), or change the code that depends on the size",
    )


def _range(name: str, bounds: str, specs: Sequence[TensorSpec]) -> str:
    """Torch's ``min=5, max=8``, in which either may be missing, as the spec's syntax has it."""
    found, dim = dict(re.findall(r"(min|max)=(\d+)", bounds)), dynamic_dims(specs)[name]
    return f"{name!r} must be {found.get('min', dim.min)}..{found.get('max', dim.max)}"


def replace_words(text: str, words: Mapping[str, str]) -> str:
    """``text`` with every whole word that is a key of ``words`` replaced, all at once."""
    return re.sub(r"\w+", lambda match: words.get(match[0], match[0]), text)
