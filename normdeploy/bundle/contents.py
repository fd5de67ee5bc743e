"""A bundle as its files tell of it: whole and unaltered, but not run."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from normdeploy.bundle.files import copy_files, read_manifest, reading
from normdeploy.bundle.interface import Interface, read_interface
from normdeploy.bundle.manifest import INTERFACE, MODEL, REPORT, Manifest
from normdeploy.disk import read_plain
from normdeploy.errors import InputError
from normdeploy.report.schema import Report, read
from normdeploy.specs import parse

_MOST = 1 << 28
"""Bytes that a report may have."""


@dataclass(frozen=True)
class Contents:
    """What a bundle says of itself; ``sizes`` are the bytes of each of its files."""

    folder: Path
    manifest: Manifest
    report: Report
    interface: Interface
    sizes: dict[str, int]


def contents(path: str | Path) -> Contents:
    """Return what the bundle in folder ``path`` says of itself, once every sha256 was compared; nothing is run.

    Raises InputError for anything that is not a whole, unaltered bundle.
    """
    folder = Path(path)
    return reading(folder, lambda opened: _contents(folder, opened))


def _contents(folder: Path, opened: int) -> Contents:
    manifest = read_manifest(folder, opened)
    copy_files(folder, opened, manifest, None)
    told = _read(opened, INTERFACE, manifest) if INTERFACE in manifest.files else None
    where = str(folder / INTERFACE)
    specs = parse(manifest.inputs)
    interface = read_interface(told, specs, manifest.outputs, model=folder / MODEL, where=where)
    report = read(Report, _read(opened, REPORT, manifest), where=str(folder / REPORT))
    sizes = {name: os.stat(name, dir_fd=opened).st_size for name in sorted(manifest.files)}
    return Contents(folder, manifest, report, interface, sizes)


def _read(opened: int, name: str, manifest: Manifest) -> bytes:
    """Return the bytes of a file, which are those that were compared."""
    content = read_plain(opened, name, _MOST)
    if hashlib.sha256(content).hexdigest() != manifest.files[name]:
        raise InputError("the bundle changes while it is read", where=name, fix="wait until it is written")
    return content
