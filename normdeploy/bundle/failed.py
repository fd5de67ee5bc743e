"""What a failed verdict leaves: ``X.failed`` beside the bundle ``X`` that was not written, with the report alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from normdeploy.bundle.manifest import PAGE, REPORT
from normdeploy.disk.rooms import room
from normdeploy.disk.words import disk_errors
from normdeploy.errors import NormdeployError
from normdeploy.report.html import render
from normdeploy.report.schema import Report, read


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
    if target.is_symlink() or not target.is_dir() or not _is_ours(target):
        return False
    for name in (PAGE, REPORT):  # without its report a page would be nobody's
        (target / name).unlink(missing_ok=True)
    target.rmdir()
    return True


def _is_ours(folder: Path) -> bool:
    """Return whether ``folder`` holds what :func:`write_failed` writes, by content, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    if names - {REPORT, PAGE} or any(not stat.S_ISREG((folder / name).lstat().st_mode) for name in names):
        return False
    try:
        given = {name: (folder / name).read_bytes() for name in names}
        report = read(Report, given[REPORT], where=str(folder / REPORT)) if REPORT in given else None
    except (NormdeployError, OSError):
        return False
    return not names or (report is not None and given.get(PAGE) in (None, render(report).encode()))
