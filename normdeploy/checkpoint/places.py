"""A file's contents → every state dict in them, by dotted key, however deep; what an optimizer keeps is none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

_OPTIMIZER = re.compile(
    r"(^|[._])(optimi[sz]er\w*|optim|(max_)?exp_avg(_sq)?|momentum_buffers?|square_avg|grad_avg|acc_delta|grads?"
    r"|gradients?)([._]|$)",
    re.IGNORECASE,
)
"""What training loops call optimizers, and optimizers what they keep under the name of each weight, in its shape."""
_OF_OPTIMIZERS = frozenset({"state", "param_groups"})


def of_optimizer(key: str) -> bool:
    """Return True if a part of ``key``, of an entry or a prefix, says that an optimizer's state lies there."""
    return _OPTIMIZER.search(key) is not None


def places(contents: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every state dict in ``contents`` with its dotted key, the outer ones first; '' is the file itself.

    Places in lists are keyed by their number. What lies at several keys is a set at each; nothing is walked twice.
    """
    level: list[tuple[str, Any]] = [("", contents)]
    seen: dict[int, Mapping[str, Any] | None] = {}
    while level:
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            if of_optimizer(key):
                continue
            if id(value) not in seen:
                seen[id(value)] = _with_tensors(value)
                inner += _inner(key, value)
            if (entry := seen[id(value)]) is not None:
                yield key, entry
        level = inner


def _with_tensors(value: Any) -> Mapping[str, Any] | None:
    entry = as_state(value)
    return entry if entry is not None and any(isinstance(each, Tensor) for each in entry.values()) else None


def as_state(value: Any) -> Mapping[str, Any] | None:
    """Return ``value`` as a mapping from names, with numbers among its keys as texts; None where no key is a name."""
    if not isinstance(value, Mapping) or (value and not any(isinstance(name, str) for name in value)):
        return None
    if all(isinstance(name, str) for name in value):
        return value
    return dict(sorted(((str(name), each) for name, each in value.items()), key=lambda pair: pair[0] in value))


def at(contents: Any, key: str) -> Iterator[Any]:
    """Yield what lies at the dotted ``key`` of ``contents``; a part may itself have dots in it."""
    if not key:
        yield contents
        return
    for name, each in _items(contents):
        if key == name or (name and key.startswith(f"{name}.")):
            yield from at(each, key[len(name) + 1 :])


def _inner(key: str, value: Any) -> list[tuple[str, Any]]:
    optimizer = isinstance(value, Mapping) and value.keys() >= _OF_OPTIMIZERS
    return [
        (f"{key}.{name}" if key else name, each)
        for name, each in _items(value)
        if isinstance(each, Mapping | list | tuple) and not (optimizer and name in _OF_OPTIMIZERS)
    ]


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), each) for name, each in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield from ((str(index), each) for index, each in enumerate(value))
