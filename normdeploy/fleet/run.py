"""``normdeploy export-all``: a fleet of exports, resumed where it stopped, with one page of all verdicts.

::

    OUT/NAME/              a bundle, of each export that passed
    OUT/NAME.failed/       the report of one whose parity failed
    OUT/fleet.json         what came of each, and the sha256 of what it depended on
    OUT/fleet.html         the same as one table
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from normdeploy.bundle.contents import contents
from normdeploy.bundle.failed import failed_folder
from normdeploy.bundle.manifest import REPORT
from normdeploy.disk import disk_errors, locked, read_plain, write_file
from normdeploy.disk.outputs import require_apart
from normdeploy.errors import InputError, VerdictError
from normdeploy.fleet import work
from normdeploy.fleet.page import Row, page, row
from normdeploy.fleet.plan import Job, digest, read_fleet
from normdeploy.report.schema import Document, Report, read

STATE, PAGE = "fleet.json", "fleet.html"
_MOST = 1 << 26
"""Bytes of a state, or a report."""


class Done(BaseModel):
    """What came of one export.

    Attributes:
        digest: sha256 of what it depended on.
        code: its exit code.
        seconds: that it took.
        said: the end of what it said, where it failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    code: int
    seconds: float
    said: str = ""


class State(Document):
    """``fleet.json``: name of an export → what came of it."""

    exports: dict[str, Done] = Field(default_factory=dict)


def export_all(
    fleet: Path,
    out: Path,
    *,
    at_once: int = 1,
    ray: str | None = None,
    force: bool = False,
    trust: Sequence[Path] = (),
    told: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """Run the exports of ``fleet`` into ``out``, each in a process of its own, and return what came of all, in order.

    What passed, is whole by its sha256s and depends on what it depended on, by theirs, is not run again, unless
    ``force``; of code the Python files in ``app-dir`` are looked at. A failed export does not stop the others.
    ``at_once`` run at a time, here or on the cluster ``ray``; ``told`` is called with each when it has ended.

    Raises InputError where ``fleet`` or ``out`` cannot be used, UnavailableError where the cluster cannot.
    """
    if at_once < 1:
        raise InputError("no such number of exports at a time", where=f"-j {at_once}", fix="give 1 or more")
    jobs = read_fleet(fleet, trust)
    require_apart({"--out": out / STATE, "--out, its page": out / PAGE}, {"the fleet": [fleet]})
    with disk_errors(out, "the fleet"):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            state = _state(out)
        known: dict[Path, str] = {}
        digests = {job.name: _digest(job, known) for job in jobs}
        left = [job for job in jobs if force or not _is_done(job, digests[job.name], state, out)]
        for job, outcome in _outcomes(left, out, at_once, ray):
            done = Done(digest=digests[job.name], code=outcome.code, seconds=outcome.seconds, said=_said(outcome))
            state = State(exports={**state.exports, job.name: done})
            _write(out, jobs, state)
            told(_row(job, state, out))
        _write(out, jobs, state)
        ran = {job.name for job in left}
        return [_row(job, state, out, again=job.name in ran) for job in jobs]


def require_passed(rows: Sequence[Row]) -> None:
    """Raise VerdictError where parity of one of ``rows`` failed, InputError where one could not be exported."""
    failed = [each for each in rows if each.code]
    if failed:
        kind = VerdictError if any(each.code == VerdictError.exit_code for each in failed) else InputError
        names = ", ".join(each.name for each in failed)
        raise kind(
            f"{len(failed)} of {len(rows)} exports failed", where=names, fix="see fleet.html; the others are whole"
        )


def _outcomes(jobs: Sequence[Job], out: Path, at_once: int, ray: str | None) -> Iterator[tuple[Job, work.Outcome]]:
    if not jobs:
        return iter(())
    return work.here(jobs, out, at_once) if ray is None else work.over_ray(jobs, out, at_once, ray)


def _digest(job: Job, known: dict[Path, str]) -> str:
    try:
        return digest(job, version("normdeploy"), known)
    except InputError:
        return ""  # its export says what is wrong with the file


def _state(out: Path) -> State:
    try:
        return read(State, read_plain(out, STATE, _MOST), where=str(out / STATE))
    except FileNotFoundError:
        return State()


def _is_done(job: Job, digest: str, state: State, out: Path) -> bool:
    done = state.exports.get(job.name)
    if done is None or done.code or done.digest != digest or not digest:
        return False
    try:
        contents(out / job.name)
    except InputError:
        return False
    return True


def _said(outcome: work.Outcome) -> str:
    return outcome.said if outcome.code else ""


def _row(job: Job, state: State, out: Path, *, again: bool = True) -> Row:
    done = state.exports[job.name]
    folder = out / job.name if done.code == 0 else failed_folder(out / job.name)
    report = _report(folder) if done.code in (0, VerdictError.exit_code) else None
    return row(job.name, done.code, done.seconds, done.said, report, folder.name, again=again)


def _report(folder: Path) -> Report | None:
    try:
        return read(Report, read_plain(folder, REPORT, _MOST), where=str(folder / REPORT))
    except (OSError, InputError):
        return None


def _write(out: Path, jobs: Sequence[Job], state: State) -> None:
    write_file(out / STATE, state.to_json().encode(), replace=True)
    rows = [_row(job, state, out) for job in jobs if job.name in state.exports]
    write_file(out / PAGE, page(rows, waiting=len(jobs) - len(rows)).encode(), replace=True)
