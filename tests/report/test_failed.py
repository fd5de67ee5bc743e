"""What a failed verdict leaves beside a bundle is replaced where it is what was left, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from report_samples import make as report

from normdeploy.bundle import remove_failed, write_failed


@pytest.fixture
def left(tmp_path: Path) -> Path:
    written = write_failed(tmp_path / "out", report())
    assert written is not None
    return written


def test_what_was_left_is_replaced_and_removed(left: Path, tmp_path: Path) -> None:
    assert write_failed(tmp_path / "out", report()) == left
    assert remove_failed(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_removal_left_is_removed(left: Path, tmp_path: Path) -> None:
    (left / "report.html").unlink()
    assert remove_failed(tmp_path / "out")
    left.mkdir()
    assert remove_failed(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "notes.txt").write_text("mine"),
        lambda folder: (folder / "report.json").write_text('{"accuracy": 0.9}'),
        lambda folder: (folder / "report.html").write_text("<p>my own words"),
        lambda folder: (folder / "report.json").unlink(),
        lambda folder: (folder / "report.json").rename(folder / "report.html"),
    ],
    ids=["another file", "another report", "another page", "a page alone", "a report for a page"],
)
def test_what_somebody_else_keeps_there_stays(left: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    change(left)
    before = {path: path.read_bytes() for path in left.iterdir()}
    assert not remove_failed(tmp_path / "out")
    assert write_failed(tmp_path / "out", report()) is None
    assert {path: path.read_bytes() for path in left.iterdir()} == before


def test_a_link_to_a_report_stays(left: Path, tmp_path: Path) -> None:
    elsewhere = (left / "report.json").rename(tmp_path / "elsewhere.json")
    (left / "report.json").symlink_to(elsewhere)
    assert not remove_failed(tmp_path / "out")
    assert elsewhere.exists()
