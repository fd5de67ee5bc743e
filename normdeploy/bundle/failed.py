"""What a failed verdict leaves: ``X.failed`` beside the bundle ``X`` that was not written, with the report alone."""

from __future__ import annotations

import os
from pathlib import Path

from normdeploy.bundle.manifest import PAGE, REPORT
from normdeploy.disk.rooms import room
from normdeploy.disk.words import disk_errors
from normdeploy.report.html import render
from normdeploy.report.schema import Report

_OURS = {REPORT, PAGE}


def failed_folder(folder: Path) -> Path:
    """Return where the report of a failed export to ``folder`` goes."""
    target = Path(os.path.realpath(folder))
    return target.with_name(f"{target.name}.failed")


def write_failed(folder: Path, report: Report) -> Path | None:
    """Write ``report`` into ``X.failed``, and return that; None where something else lies there."""
    target = failed_folder(folder)
    if not remove_failed(folder):
        return None
    with disk_errors(target, "the report"), room(target) as place:
        place.new.mkdir()
        (place.new / REPORT).write_text(report.to_json(), encoding="utf-8")
        (place.new / PAGE).write_text(render(report), encoding="utf-8")
        place.settle(target)
    return target


def remove_failed(folder: Path) -> bool:
    """Remove what an earlier failure left; return False where ``X.failed`` is something else, which stays."""
    target = failed_folder(folder)
    if not os.path.lexists(target):
        return True
    if target.is_symlink() or not target.is_dir() or {path.name for path in target.iterdir()} - _OURS:
        return False
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    return True
