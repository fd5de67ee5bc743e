"""Ctrl-C at each step that Python takes while something is written: what is left is the old or the new, and no more."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from moments import rooms_in
from support import tree
from test_moments import CASES, NEW_FOLDER, ready

from normdeploy import disk
from normdeploy.cli.guard import Guard

EVERY = 1 if "MOMENTS" in os.environ else 41
"""Which steps are tried: each one in make test-interrupts, for some minutes."""
_OURS = (str(Path(disk.__file__).parent), contextlib.__file__, weakref.__file__)


class Steps:
    """Counts the instructions of Python in the code that writes, and sends SIGINT at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(work: Callable[[], object], at: int) -> tuple[int, int]:
    """Do ``work`` as a command does, interrupted at step ``at``; its exit code, and how many steps there were."""
    steps = Steps(at)
    with Guard(debug=False) as guard:
        sys.settrace(steps)
        try:
            work()
        finally:
            sys.settrace(None)
    return guard.code, steps.count


def each_step(work: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Do what ``work`` gives again and again, interrupted ``EVERY`` steps later each time; yields its exit code.

    It ends after the first time in which there was no such step any more.
    """
    for at in itertools.count(1, EVERY):
        code, count = interrupted(work(), at)
        yield code
        if count < at:
            assert at > EVERY, "no step was struck"
            return


@pytest.fixture(autouse=True)
def _only_when_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What nobody has any more is not found by luck; an interrupt in a finalizer is not printed."""
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", [name for name in CASES if "graph" not in name])
def test_what_is_written_is_old_or_new_and_nothing_is_left(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, folder = CASES[name], tmp_path / "folder"
    ready(case, folder)
    before, codes = case.state(folder), set()
    for code in each_step(lambda: ready(case, folder)):
        codes.add(code)
        said = capsys.readouterr().err
        state = case.state(folder)
        assert code in (0, 130), said
        assert said.count("interrupted; ") == (code == 130)
        assert state in (before, "new")
        assert ("nothing was written" in said) == (state == before), said
        assert not rooms_in(folder)
        assert (folder / "somebody else's").read_text() == "mine"
    assert codes == {0, 130}


def test_folders_that_are_made_for_it_go_too(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def work() -> Callable[[], object]:
        ready(NEW_FOLDER, folder)
        return lambda: disk.write_file(folder / "deep" / "deeper" / "out", b"new", replace=False)

    for _ in each_step(work):
        assert set(tree(folder)) - {"somebody else's"} <= {"deep/deeper/out"}
        assert (folder / "deep").exists() == (folder / "deep" / "deeper" / "out").exists()


def test_folders_that_are_needed_meanwhile_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work() -> None:
        with disk.scratch() as folder:
            (folder / "file").write_text("meanwhile")
        _, remove = disk.new_scratch()
        remove()

    for _ in each_step(lambda: work):
        assert list(tmp_path.iterdir()) == []


def test_without_a_command_they_are_gone_as_soon_as_the_interrupt_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work(at: int) -> int:
        steps = Steps(at)
        try:
            sys.settrace(steps)
            with disk.scratch() as folder:
                (folder / "file").write_text("meanwhile")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        return steps.count

    count = work(sys.maxsize)
    for at in range(1, count + 1, EVERY):
        work(at)
        assert list(tmp_path.iterdir()) == [], at
