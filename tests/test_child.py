"""Child processes end with what they are needed for, however that ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from normdeploy import child


def begin(folder: Path) -> child.Process:
    """Start a process that waits for what it is asked."""
    return child.start("normdeploy.runtime.session_worker", folder=folder, stderr=subprocess.DEVNULL, stdin=child.PIPE)


def test_after_an_interrupt_it_has_ended_and_was_waited_for(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), child.running(lambda: begin(tmp_path)) as process:
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()  # not even a zombie of it


def test_an_interrupt_while_it_starts_ends_it_too(tmp_path: Path) -> None:
    started = []

    def interrupted() -> child.Process:
        started.append(begin(tmp_path))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    with pytest.raises(KeyboardInterrupt), child.running(interrupted):
        pytest.fail("the block was entered")
    assert started[0].returncode == -signal.SIGKILL


def test_without_one_it_is_waited_for(tmp_path: Path) -> None:
    with child.running(lambda: begin(tmp_path)) as process:
        assert process.stdin is not None
        process.stdin.close()  # nothing more is asked
    assert process.returncode == 0
