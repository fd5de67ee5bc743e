"""A room of its own for everything that is being written: a hidden folder beside the target, gone when it is done.

While its process lives it holds a lock on the room. So whoever writes here next knows the rooms that a killed process
left, and tidies them up. What stood at the target before comes into the room when it is replaced; it is removed only
file by file, each by its content, as the room's journal has it: a file that somebody added stays, and is told.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from normdeploy.disk import rename
from normdeploy.disk.held import JOURNAL, NEW, OLD, Held, clear, is_held, is_room, new_name, remove_empty, tidy
from normdeploy.disk.read import sha256_of
from normdeploy.disk.signals import uninterrupted
from normdeploy.disk.words import scratch_errors
from normdeploy.errors import InputError

_PATIENCE = 60.0  # seconds to wait for another writer

WRITTEN: list[Path] = []
"""What this process has brought to its place, so that an interrupt can tell."""


class Room:
    """A room that is in use.

    Attributes:
        new: where to write what is to stand at the target; nothing is there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.new = path, path / NEW

    def settle(self, target: Path, *, part: str = "", replace: bool = False) -> None:
        """Bring ``new``, or the file ``part`` of it, to ``target``, in place of a file that is there if ``replace``.

        FileExistsError where something is there that is not to be replaced.
        """
        source = self.new / part
        self._open_up(source)
        sync_tree(source)
        with uninterrupted():
            if replace:
                os.replace(source, target)
            else:
                rename.move(source, target)
            _placed(target)

    def settle_pair(self, target: Path, beside: str | None, *, replace: bool) -> None:
        """Bring the file of ``target``'s name in ``new`` there, and before it the one that it reads, ``beside`` it.

        Nothing is replaced for the latter: InputError where something else has its name. FileExistsError as above.
        """
        with uninterrupted():
            placed = beside is not None and self._settle_beside(target, beside)
            try:
                self.settle(target, part=target.name, replace=replace)
            except OSError:
                if placed:
                    target.with_name(str(beside)).unlink()
                raise

    def _settle_beside(self, target: Path, beside: str) -> bool:
        """False where the very same is there already."""
        try:
            self.settle(target.parent / beside, part=beside)
        except FileExistsError as error:
            if _content(target.parent, beside) == _content(self.new, beside):
                return False
            raise InputError(
                "the weights cannot be written beside the model: another file has their name",
                where=str(target.parent / beside),
                fix="name another, or move it away: a model that reads it would find the weights of this one",
            ) from error
        return True

    def replace(self, target: Path, known: Collection[tuple[str, str]]) -> None:
        """Bring the folder ``new`` to ``target``, a folder, and remove what stood there, as far as it is ``known``.

        ``known`` has name and sha256 of the files of the old folder, and of the new one. At every moment the one or the
        other is at ``target``, whole; where the system cannot exchange two names at once, whoever writes there next
        brings the old one back. InputError where the new one is in its place, but not all of the old one was known,
        which is kept then, and where no more than the old one's place in the room is left.
        """
        self._open_up(self.new)
        sync_tree(self.new)
        self._note(target, known)
        with uninterrupted():
            if not rename.exchange(self.new, target):
                self._step_aside(target)
            _placed(target)
            kept = clear(self.path, target.parent)
        if kept:
            raise InputError(
                "the new one is in its place, but in the old one there is more than was written there: it was kept",
                where=", ".join(kept),
                fix="move your files from there, and remove the rest",
            )

    def _open_up(self, source: Path) -> None:
        """Let the files of ``source`` be read by whom the umask lets read a new file: some libraries write 0600."""
        files = source.rglob("*") if source.is_dir() else (source,)
        closed = [path for path in files if path.is_file() and not path.stat().st_mode & 0o077]
        if not closed:
            return
        sample = self.path / "sample"
        sample.touch()
        for path in closed:
            path.chmod(path.stat().st_mode | sample.stat().st_mode & 0o777)
        sample.unlink()

    def _note(self, target: Path, known: Collection[tuple[str, str]]) -> None:
        part = self.path / "part"
        part.write_text(json.dumps({"target": target.name, "known": sorted(known)}), encoding="utf-8")
        sync(part)
        part.rename(self.path / JOURNAL)
        sync(self.path)

    def _step_aside(self, target: Path) -> None:
        old = self.path / OLD
        rename.move(target, old)
        try:
            rename.move(self.new, target)
        except OSError as error:
            with suppress(OSError):
                rename.move(old, target)
            if not os.path.lexists(old):
                raise
            raise InputError(
                f"the new one cannot be renamed ({error.strerror}), and nor can the old one, back to its place",
                where=str(old),
                fix=f"move it to {target}, or run the command again: it does that first",
            ) from error


@contextmanager
def room(target: Path) -> Iterator[Room]:
    """Make a room beside ``target``, its parents too; it is gone afterwards, and so are these if nothing was written.

    Rooms that killed processes left in that folder are tidied up first. Raises OSError.
    """
    made = [parent.absolute() for parent in target.parents if not parent.exists()]
    held = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target.parent)
        held = Held(target.parent, made)
        yield Room(held.path)
    finally:
        if held is None:
            remove_empty(made)
        else:
            held.close()


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for what is only needed meanwhile, among the system's temporary files; it is gone afterwards.

    Raises InputError where there is no space for what is written to it.
    """
    with scratch_errors(Path(tempfile.gettempdir())):
        path, close = new_scratch()
        try:
            yield path
        finally:
            close()


def new_scratch() -> tuple[Path, Callable[[], None]]:
    """Make a folder as :func:`scratch` does, and return it with what removes it. Raises OSError.

    It is removed too when nobody has the latter any more.
    """
    folder = Path(tempfile.gettempdir())
    tidy(folder)
    held = Held(folder)
    return held.path, held.close


def check_place(target: Path) -> None:
    """Raise InputError where nothing can be written beside ``target``; nothing is changed."""
    parents = Path(os.path.realpath(target)).parents
    parent = next((parent for parent in parents if os.path.lexists(parent)), Path("/"))
    if not parent.is_dir():
        raise InputError("a file is in the way of the output", where=str(parent), fix="choose another --out")
    try:
        with uninterrupted():
            path = parent / new_name()
            path.mkdir()
            with suppress(FileNotFoundError):  # another process took it for a room that was left
                path.rmdir()
    except OSError as error:
        what = f"the output cannot be written here: {error.strerror or error}"
        raise InputError(what, where=str(parent), fix="choose another --out") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` while several names in it change that belong together; wait for another writer that does.

    A file system without locks is not waited for: names are chosen so that what does not belong together never fits.
    InputError where another program does not let go of the folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it may be written to, but not read
        yield
        return
    try:
        _wait_for(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while is_held(descriptor):
        if time.monotonic() > end:
            raise InputError(
                "another program holds the folder", where=str(folder), fix="end it, or choose another --out"
            )
        time.sleep(0.02)


def write_file(path: Path, data: bytes, *, replace: bool) -> None:
    """Write ``data`` to the file ``path``, whole or not at all; one that is there is replaced only if told.

    Raises OSError, FileExistsError among it.
    """
    with room(path) as place:
        place.new.write_bytes(data)
        place.settle(path, replace=replace)


def _placed(target: Path) -> None:
    if not any(is_room(parent.name) for parent in target.parents):  # else it is part of something larger
        WRITTEN.append(target)
    with suppress(OSError):  # it is in its place: there is no way back, and no error
        sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Bring a file, or everything in a folder, onto the disk, so that a crash after a rename finds it whole."""
    for inner in sorted(path.rglob("*")) if path.is_dir() else ():
        sync(inner)
    sync(path)


def _content(folder: Path, name: str) -> str | None:
    with suppress(OSError, InputError):
        return sha256_of(folder, name)
    return None
