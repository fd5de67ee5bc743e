"""As test_moments, from outside of Python: strace stops the process at each system call that changes a disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import replaces
from moments import rooms_in
from support import ROOT, tree

CALLS = ["write", "fsync", "renameat2", "rename", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link", "flock"]
_STRACE = ["strace", "-f", "-qq", "-e", f"trace={','.join(CALLS)},newfstatat,stat"]


@pytest.fixture(scope="module")
def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    if subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may trace no process here")


def lay_out(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    replaces.lay_out(folder / "out", replaces.OLD)
    (folder / "file").write_bytes(b"old")
    (folder / "somebody else's").write_bytes(b"mine")


def run(folder: Path, log: Path, *inject: str) -> int:
    script = [sys.executable, "-S", "-B", str(Path(replaces.__file__)), str(folder)]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*_STRACE, "-o", log, *inject, *script], capture_output=True, env=environment).returncode


def moments(log: Path) -> list[tuple[str, int]]:
    """Each call after the mark, and how many there were of it by then, since the process began."""
    begun, counts, found = False, dict.fromkeys(CALLS, 0), []
    for line in log.read_text().splitlines():
        call = re.sub(r"^\d+ +", "", line).partition("(")[0]
        begun |= replaces.MARK in line
        if call in counts:
            counts[call] += 1
            if begun:
                found.append((call, counts[call]))
    return found


def require_old_or_new(folder: Path) -> None:
    assert tree(folder / "out") in (replaces.OLD, replaces.NEW)
    assert (folder / "file").read_bytes() in (b"old", b"new")
    assert (folder / "somebody else's").read_bytes() == b"mine"


@pytest.mark.usefixtures("_strace")
@pytest.mark.parametrize("blow", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_stopped_at_every_system_call(tmp_path: Path, blow: str) -> None:
    folder, log = tmp_path / "folder", tmp_path / "log"
    lay_out(folder)
    assert run(folder, log) == 0
    calls = moments(log)
    assert {"write", "fsync", "renameat2", "mkdir", "flock"} <= {call for call, _ in calls}
    if blow == "error=ENOSPC":
        calls = [(call, count) for call, count in calls if call in ("write", "fsync", "renameat2", "rename", "mkdir")]
    for call, count in calls:
        lay_out(folder)
        run(folder, log, "-e", f"inject={call}:{blow}:when={count}")
        require_old_or_new(folder)
        replaces.main(folder)
        assert tree(folder / "out") == replaces.NEW, (call, count)
        assert not rooms_in(folder), (call, count)
        assert (folder / "file").read_bytes() == b"new"
