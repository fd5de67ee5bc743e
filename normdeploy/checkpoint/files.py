"""What ``--weights`` names, a file, an index of shards or a folder → what it holds, and the sha256 of what was read.

A format is told by the bytes, so a wrong extension does no harm. Every file is read once, hashed, and loaded from
those bytes. Only data is read; what runs code when it is loaded is opened where its exact path is trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from normdeploy.checkpoint import bounds
from normdeploy.checkpoint.formats import CODE, damaged, kind_of
from normdeploy.checkpoint.other_tools import known_layout
from normdeploy.checkpoint.torchfile import load_plain, load_trusted
from normdeploy.errors import InputError, plain
from normdeploy.trust import Content, is_trusted, read_once

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.[a-z]+)")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
_SHOWN = 20
_KNOWN = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", f".safetensors{_INDEX}", ".bin", f".bin{_INDEX}")
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model", "open_clip_model", "open_clip_pytorch_model")
)
"""What libraries call the weights in a folder, beside optimizers and arguments; the first that is there is read."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        data: nested mappings with tensors on the CPU, as they were saved.
        sha256: of the file; of one in several files, of the lines ``sha256sum`` prints for them, by name.
        trusted: file name → sha256 of each file that may have run code, because it was trusted.
        notes: how it was read, in words for the user.
    """

    data: Any
    sha256: str
    trusted: Mapping[str, str]
    notes: tuple[str, ...]


def read(path: Path, *, trust: Sequence[Path] = (), key: str | None = None) -> Contents:
    """Read the checkpoint ``path``; ``key`` is only named in advice. Raises InputError."""
    notes: tuple[str, ...] = ()
    if path.is_dir():
        found, notes = _in_folder(path)
        if len(found) > 1:
            return _joined(found, trust, notes)
        path = found[0]
    content = read_once(path)
    kind = kind_of(content)
    bounds.require_small(content, kind)
    if kind == "index":
        return _joined(_indexed(content), trust, (*notes, f"read in the parts that {path.name} names"), content)
    data, ran = _loaded(content, kind, trust, key)
    trusted = {path.name: content.sha256} if ran else {}
    if is_trusted(path, trust) and not ran:
        notes = (*notes, f"{path} holds only data: --trust was not needed")
    return Contents(data, content.sha256, trusted, (*notes, *(_ran(name, trusted[name]) for name in trusted)))


def _loaded(content: Content, kind: str, trust: Sequence[Path], key: str | None) -> tuple[Any, bool]:
    """Return what the file holds, and whether code of it was allowed to run for that."""
    if kind == "safetensors":
        try:
            return load_safetensors(content.data), False
        # A damaged file reaches any line of the parser, and each has errors of its own.
        except Exception as error:
            raise damaged(content.path, str(error) if isinstance(error, SafetensorError) else "") from error
    trusted = is_trusted(content.path, trust)
    if trusted and kind in CODE:
        return load_trusted(content, kind), True
    try:
        return bounds.plain(load_plain(content, kind, key), content), False
    except InputError:
        if not trusted:
            raise
        return load_trusted(content, kind), True


def _ran(name: str, digest: str) -> str:
    return f"{name} may have run code when it was loaded, because it was trusted: sha256 {digest}"


def _in_folder(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the file, or the shards, that hold the weights in ``folder``, and notes. Raises InputError."""
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    weights = [name for name in names if name.endswith((*_SUFFIXES, _INDEX))]
    known = [name for name in _KNOWN if name in weights][:1]
    if not known and weights and all(_SHARD.fullmatch(name) for name in weights):
        return _complete(folder, weights), ("the shards in the folder were read without an index",)
    if not known and (error := known_layout(folder, os.listdir(folder), weights=bool(weights))):
        raise error
    whole = known or [name for name in weights if not _SHARD.fullmatch(name)]
    if len(whole) != 1:
        what = f"the folder holds {len(whole)} checkpoints" if whole else "the folder holds no weights that can be read"
        given = ", ".join(shlex.quote(plain(str(folder / name))) for name in whole[:_SHOWN])
        fix = f"give the file itself: {given}{', …' if len(whole) > _SHOWN else ''}" if whole else "give the file"
        raise InputError(what, where=str(folder), fix=fix)
    return [folder / whole[0]], (f"of the folder, {whole[0]} was read",)


def _complete(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the shards, all of them and of one checkpoint, or raise InputError."""
    parts = [match for name in names if (match := _SHARD.fullmatch(name))]
    sets = {(match[1], match[3], match[4]) for match in parts}
    missing = [n for n in range(1, int(parts[0][3]) + 1) if n not in {int(match[2]) for match in parts}]
    if len(sets) > 1 or missing:
        what = "the folder holds shards of several checkpoints" if len(sets) > 1 else f"shards are missing: {missing}"
        raise InputError(what, where=str(folder), fix="give the index of one checkpoint (.index.json), with its shards")
    return [folder / name for name in names]


def _indexed(index: Content) -> list[Path]:
    """Return the shards that an index names, which lie beside it."""
    try:
        names = set(json.loads(index.data)["weight_map"].values())
        bad = [name for name in names if not name or Path(name).name != name or name.startswith(".")]
    except Exception as error:  # JSON of any form
        raise InputError("the index of shards cannot be read", where=str(index.path), fix="get it again") from error
    if bad or not names:
        what = (
            f"the index names what is no file beside it: {', '.join(map(repr, bad[:5]))}" if bad else "an empty index"
        )
        raise InputError(what, where=str(index.path), fix="keep an index and its shards in one folder")
    return [index.path.parent / name for name in sorted(names)]


def _joined(
    paths: Sequence[Path], trust: Sequence[Path], notes: tuple[str, ...], index: Content | None = None
) -> Contents:
    """Return all tensors of all shards, by name; a name that two of them hold is refused."""
    data: dict[str, Any] = {}
    sums: dict[str, str] = {index.path.name: index.sha256} if index else {}
    trusted: dict[str, str] = {}
    for path in paths:
        content = read_once(path)
        kind = kind_of(content)
        bounds.require_small(content, kind)
        part, ran = _loaded(content, kind, trust, None)
        sums[path.name] = content.sha256
        trusted |= {path.name: content.sha256} if ran else {}
        if not isinstance(part, Mapping) or (twice := part.keys() & data.keys()):
            what = (
                f"two shards hold {sorted(map(str, twice))[0]!r}"
                if isinstance(part, Mapping)
                else "no shard of a checkpoint"
            )
            raise InputError(what, where=str(path), fix="give the shards of one checkpoint, and no others")
        data |= part
    if index:
        _require_all(index, data)
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    ran_notes = (_ran(name, digest) for name, digest in trusted.items())
    return Contents(data, hashlib.sha256(lines.encode()).hexdigest(), trusted, (*notes, *ran_notes))


def _require_all(index: Content, data: Mapping[str, Any]) -> None:
    missing = [name for name in json.loads(index.data)["weight_map"] if name not in data]
    if missing:
        what = (
            f"{len(missing)} of the weights that the index names are in no shard: {', '.join(map(plain, missing[:5]))}"
        )
        raise InputError(what, where=str(index.path), fix="get the index and its shards again, of one version")
