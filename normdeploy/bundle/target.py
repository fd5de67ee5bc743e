"""Where a bundle may be written: to nothing, or in place of an older one in which every file is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from normdeploy.bundle.manifest import MANIFEST, MOST, NAMES
from normdeploy.disk import check_place, disk_errors, files_in, read_plain, sha256_of
from normdeploy.errors import InputError, listed

WHAT = "the bundle"
_SHOWN = 5


def check_target(folder: Path, *, force: bool = False) -> Path:
    """Return the real path of ``folder`` where a bundle may be written to it, InputError where not; nothing is changed.

    What exists is replaced with ``force`` only, and only if it is empty or an older bundle, in which every file is what
    its manifest says, by name and content.
    """
    target = Path(os.path.realpath(folder))
    with disk_errors(target, WHAT):
        if folder.is_symlink() and not folder.exists():
            what = "the output is a link, and what it leads to is not there"
            raise InputError(what, where=str(folder), fix="choose another --out, or remove the link")
        if os.path.lexists(target):
            replaceable(target, force)
        check_place(target)
    return target


def replaceable(target: Path, force: bool) -> set[tuple[str, str]]:
    """Return name and sha256 of each file in the folder ``target``; InputError unless normdeploy wrote them all so."""
    if not target.is_dir():
        raise InputError("there is a file where the bundle should go", where=str(target), fix="choose another --out")
    if not force:
        raise InputError("the output exists already", where=str(target), fix="choose another --out, or give --force")
    present, known = files_in(target), _listed(target)
    if not present:
        return set()
    foreign = "files" if known is None else listed(map(ascii, sorted(present - known.keys())), _SHOWN)
    if known is None or foreign:
        what = f"the folder is not replaced, it holds {foreign} that no bundle's manifest lists"
        raise InputError(what, where=str(target), fix="choose another --out, or move them away")
    if changed := {name for name in present if sha256_of(target, name) != known[name]}:
        names = listed(map(ascii, sorted(changed)), _SHOWN)
        what = f"the folder is not replaced: {names} in it is no longer what was written there"
        raise InputError(what, where=str(target), fix="choose another --out, or move the folder away")
    return {(name, known[name]) for name in present}


def _listed(folder: Path) -> dict[str, str] | None:
    """Return what the folder's manifest, of whatever schema version, lists of a bundle, itself included; None without
    one.
    """
    try:
        content = read_plain(folder, MANIFEST, MOST)
        raw = json.loads(content)
        if not isinstance(raw["normdeploy_version"], str):
            return None
        files = {name: str(raw["files"][name]) for name in NAMES & raw["files"].keys()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return None
    return files | {MANIFEST: hashlib.sha256(content).hexdigest()}
