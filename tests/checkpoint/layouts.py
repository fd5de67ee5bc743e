"""What the tests of names share: a module, the weights it should get, and options as they are typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.checkpoint.names import Names, Rename


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.normal_(module[1].running_mean)
    return module


def state() -> dict[str, Any]:
    return dict(net(seed=1).state_dict())


def prefixed(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in entries.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def names_of(flags: str) -> Names:
    """The options of a command line."""
    words = shlex.split(flags)
    given: dict[str, list[str]] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        given.setdefault(flag, []).append(value)
    one = {flag: values[0] for flag, values in given.items()}
    return Names(
        key=one.get("--weights-key"),
        strip=one.get("--strip-prefix"),
        rename=[Rename.parse(text) for text in given.get("--rename", [])],
        add=one.get("--add-prefix"),
        ignore=given.get("--ignore-unexpected", []),
        allow=given.get("--allow-missing", []),
    )
