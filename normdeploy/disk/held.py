"""The folders of rooms: made and locked, and cleared by who made them, or by the next one where that process has died.

A process knows its own until they are cleared: a Ctrl-C can come between any two steps of Python, also in the block
that would have cleared one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import uuid
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from normdeploy.disk import rename
from normdeploy.disk.read import read_plain, sha256_of
from normdeploy.disk.signals import uninterrupted
from normdeploy.errors import InputError

NEW, OLD, JOURNAL = "new", "old", "journal.json"
_NAME = re.compile(r"\.normdeploy-[0-9a-f]{12}\.tmp")
_MOST = 1 << 20  # bytes of a journal


class _Known(NamedTuple):
    """What this process has of a folder: the descriptor that locks it, the thread that made it, its new parents."""

    lock: int
    thread: int
    parents: Sequence[Path]


_KNOWN: dict[Path, _Known] = {}
"""The folders that this process made and has not cleared."""


def _forget() -> None:
    """In a forked process: they are those of its parent."""
    for known in _KNOWN.values():
        os.close(known.lock)
    _KNOWN.clear()


os.register_at_fork(after_in_child=_forget)


class Held:
    """A new folder in ``folder`` for a room, locked; it is cleared by ``close``, or when nobody has this any more.

    ``parents`` are folders that were made for it, and go with it where nothing was written. Raises OSError.
    """

    def __init__(self, folder: Path, parents: Sequence[Path] = ()) -> None:
        with uninterrupted():
            self.path, lock = _new_folder(folder.absolute())
            _KNOWN[self.path] = _Known(lock, threading.get_ident(), parents)
            weakref.finalize(self, _leave, self.path)

    def close(self) -> None:
        """Clear the folder; once is enough."""
        _leave(self.path)


def is_room(name: str) -> bool:
    """Return True for the name of a folder of a room."""
    return _NAME.fullmatch(name) is not None


def new_name() -> str:
    """Return a name for a folder of a room that nothing has yet."""
    return f".normdeploy-{uuid.uuid4().hex[:12]}.tmp"


def held_now() -> frozenset[Path]:
    """Return the folders of rooms that this process has."""
    return frozenset(_KNOWN)


def clear_all_but(before: Collection[Path]) -> None:
    """Clear the rooms that this thread made and nobody uses any more, those that were there ``before`` aside."""
    for path, known in list(_KNOWN.items()):
        if known.thread == threading.get_ident() and path not in before:
            _leave(path)


def _leave(path: Path) -> None:
    with uninterrupted():
        known = _KNOWN.pop(path, None)
        if known is None:
            return
        clear(path, path.parent)
        os.close(known.lock)
        remove_empty(known.parents)


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of ``folders`` that hold nothing, inner ones first."""
    for folder in folders:
        with suppress(OSError):  # it holds what was written
            folder.rmdir()


def tidy(folder: Path) -> None:
    """Clear the rooms in ``folder`` whose processes are gone."""
    with suppress(OSError, RecursionError):  # folders in folders without end are none of ours
        for entry in list(os.scandir(folder)):
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _clear_dead(Path(entry.path))


def is_held(descriptor: int) -> bool:
    """Return True where another process has the lock; where it is free this one has it now, if there are locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _new_folder(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / new_name()
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # one that tidies up may come in between at each step
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not is_held(descriptor) and path.exists():
                return path, descriptor
            os.close(descriptor)


def _clear_dead(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clear(path, path.parent)
    except OSError:  # it is in use, or there are no locks here
        pass
    finally:
        os.close(descriptor)


def clear(path: Path, folder: Path) -> list[str]:
    """Remove the room ``path`` from ``folder``, and return what had to stay, if anything."""
    journal = _journal(path)
    if journal is None:  # nothing of the target came in here
        shutil.rmtree(path, ignore_errors=True)
        return []
    name, known = journal
    if (path / OLD).is_dir() and not os.path.lexists(folder / name):
        with suppress(OSError):
            rename.move(path / OLD, folder / name)
    parts = [path / NEW, path / OLD] if os.path.lexists(folder / name) else [path / NEW]
    kept = [part for part in parts if not _removed(part, known)]
    if not (os.path.lexists(path / NEW) or os.path.lexists(path / OLD)):
        shutil.rmtree(path, ignore_errors=True)
    return [str(part) for part in kept]


def _journal(path: Path) -> tuple[str, set[tuple[str, str]]] | None:
    try:
        raw = json.loads(read_plain(path, JOURNAL, _MOST))
        return os.path.basename(raw["target"]), {(str(name), str(digest)) for name, digest in raw["known"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, InputError):
        return "", set()  # nothing is known, and so nothing is removed


def _removed(folder: Path, known: Collection[tuple[str, str]]) -> bool:
    """Remove the files in ``folder`` that are ``known``, by their content, then it; False where something else is."""
    if folder.is_symlink() or not folder.is_dir():  # a link would lead to what lies elsewhere
        return not os.path.lexists(folder)
    with suppress(OSError):
        for root, _, names in os.walk(folder, topdown=False):
            for name in names:
                path = Path(root) / name
                with suppress(OSError, InputError):
                    inner = path.relative_to(folder).as_posix()
                    if (inner, sha256_of(folder, inner)) in known:
                        path.unlink()
            with suppress(OSError):  # something is in it
                os.rmdir(root)
    return not os.path.lexists(folder)
