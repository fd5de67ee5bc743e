"""Replaces a folder, and then a file: run by itself, so that it can be stopped at each system call after the mark."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from normdeploy import disk

MARK = "/normdeploy begins here"
OLD, NEW = {"a": b"old a", "sub/b": b"old b"}, {"a": b"new a", "sub/b": b"new b"}


def lay_out(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def known() -> set[tuple[str, str]]:
    return {(name, hashlib.sha256(data).hexdigest()) for each in (OLD, NEW) for name, data in each.items()}


def main(folder: Path) -> None:
    os.path.exists(MARK)
    with disk.room(folder / "out") as place, disk.locked(folder):
        lay_out(place.new, NEW)
        place.replace(folder / "out", known())
    disk.write_file(folder / "file", b"new", replace=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
