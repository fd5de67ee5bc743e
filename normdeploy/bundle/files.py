"""The files of a bundle from anywhere: each has a name of ours, is a plain file, and holds what the manifest hashed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from normdeploy.bundle.manifest import MANIFEST, MOST, Manifest
from normdeploy.disk import files_in, is_full, open_plain, opened_folder, read_plain
from normdeploy.errors import InputError
from normdeploy.report.schema import read

_TRIES = 8
"""How often it may be replaced while it is read."""
_PART = 1 << 20
GIVE_BUNDLE = "give the folder that normdeploy export wrote"
EXPORT_AGAIN = "copy the whole folder again, or export it again"
T = TypeVar("T")


def reading(folder: Path, read_opened: Callable[[int], T]) -> T:
    """Return what ``read_opened`` makes of the opened ``folder``; again, if another takes its place meanwhile.

    Raises InputError where it is no folder or cannot be read, and what ``read_opened`` raises.
    """
    tries = 0
    while True:
        try:
            with opened_folder(folder) as opened:
                try:
                    return read_opened(opened)
                except (OSError, InputError):
                    tries += 1
                    if tries == _TRIES or os.path.samestat(os.fstat(opened), folder.stat()):
                        raise  # else another took its place while it was read: that one is whole
        except (NotADirectoryError, ValueError) as error:  # ValueError: a name that no file can have
            raise InputError("not a bundle: it is no folder", where=str(folder), fix=GIVE_BUNDLE) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # that is not the bundle's
            raise InputError(f"the bundle cannot be read: {error}", where=str(folder), fix=EXPORT_AGAIN) from error


def read_manifest(folder: Path, opened: int) -> Manifest:
    """Return the manifest of ``folder``, which is ``opened``. Raises InputError where it has none, or another."""
    try:
        content = read_plain(opened, MANIFEST, MOST)
    except FileNotFoundError as error:
        raise InputError(
            "not a bundle: it has no manifest.json",
            where=str(folder),
            fix=GIVE_BUNDLE,
        ) from error
    except InputError as error:
        raise InputError(error.what, where=str(folder / MANIFEST), fix=EXPORT_AGAIN) from error
    return read(Manifest, content, where=str(folder / MANIFEST))


def copy_files(folder: Path, opened: int, manifest: Manifest, copy: Path | None) -> None:
    """Copy every file that the manifest lists to ``copy``, if there is one.

    InputError names every file that is missing, extra, altered or no plain file.
    """
    present = files_in(opened) - {MANIFEST}
    found: dict[str, list[str]] = {
        "missing": sorted(manifest.files.keys() - present),
        "extra": sorted(present - manifest.files.keys()),
        "altered": [],
        "not a plain file": [],
    }
    for name in sorted(present & manifest.files.keys()):
        try:
            source = open_plain(opened, name)
        except InputError:
            found["not a plain file"].append(name)
            continue
        with source:
            if _copied(source, copy and copy / name) != manifest.files[name]:
                found["altered"].append(name)
    problems = [f"{what}: {ascii(names)[1:-1]}" for what, names in found.items() if names]
    if problems:
        raise InputError(
            f"the bundle is not as it was written; {'; '.join(problems)}", where=str(folder), fix=EXPORT_AGAIN
        )


def _copied(source: BinaryIO, target: Path | None) -> str:
    """The sha256 of the bytes in ``source``, which are copied to the file ``target``."""
    digest = hashlib.sha256()
    try:
        with (target or Path(os.devnull)).open("wb") as file:
            while part := source.read(_PART):
                digest.update(part)
                file.write(part)
    except OSError as error:
        if not is_full(error):
            raise
        fix = "free some space, or name another folder in TMPDIR"
        raise InputError("there is no space for a copy of the bundle", where=str(target), fix=fix) from error
    return digest.hexdigest()
