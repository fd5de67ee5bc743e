"""Runs the builder's process: passes its progress on, turns its death into a message, leaves nothing of it behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from normdeploy import child, errors
from normdeploy.engine.job import LOG, RESULT, Job, Result
from normdeploy.engine.layers import Owner
from normdeploy.errors import InputError

_TAIL = 3
_PARSING = re.compile(r"Parsing node: (\S+) \[(\w+)\]")


@dataclass(frozen=True)
class Progress:
    """A step of the build: ``step`` of ``steps`` of ``phase`` are done; ``parent`` is the phase around it, if known."""

    phase: str
    parent: str
    step: int
    steps: int


def run(job: Job, folder: Path, owners: Mapping[str, Owner], progress: Callable[[Progress], None] | None) -> Result:
    """Return the result of ``job`` in ``folder``. Raises what the process raised, or InputError where it died.

    Whatever interrupts this process, a Ctrl-C among it, kills that one: it is in a session of its own, so that the
    terminal's signal does not reach it first, and writes nowhere but to ``folder``.
    """
    job.write(folder)
    with (
        (folder / "stderr.txt").open("w") as stderr,
        child.running(
            lambda: child.start("normdeploy.engine.worker", str(folder), folder=folder, stderr=stderr)
        ) as process,
    ):
        for line in process.stdout or ():
            if progress is not None:
                progress(Progress(**json.loads(line)))
    if process.returncode or not (folder / RESULT).exists():
        raise _died(process.returncode, folder, owners)
    result = Result.read(folder)
    if result.error is not None:
        kind, what, where, fix = result.error
        raise getattr(errors, kind)(what, where=where, fix=fix)
    return result


def _died(code: int, folder: Path, owners: Mapping[str, Owner]) -> InputError:
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    log = (folder / LOG).read_text(errors="replace") if (folder / LOG).exists() else ""
    lines = (folder / "stderr.txt").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip() and "cudaError 35" not in line]  # which says: no GPU, as is known
    if said and os.strerror(errno.ENOSPC) in said[-1]:
        fix = "free some space, or name another folder in TMPDIR"
        return InputError("the disk is full: the builder cannot write its plan", where=str(folder.parent), fix=fix)
    parsing = _PARSING.findall(log)
    node, operator = parsing[-1] if parsing else ("", "")
    place = f"{owners[node].module or node} ({operator})" if node in owners else "before it read the graph"
    return InputError(
        f"the builder's process died ({reason})",
        where=" | ".join([f"last at {place}", *said[-_TAIL:]]),
        fix="replace that module; plugin operators are known to abort the builder",
    )
