"""What a fold or an export left on disk, read again: ledgers, reports, verdicts. Nothing here needs PyTorch."""

from __future__ import annotations

import fnmatch
import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from normdeploy import onnxfile
from normdeploy.bench.stats import Comparison, Latency
from normdeploy.disk import read_plain
from normdeploy.errors import InputError, VerdictError
from normdeploy.fold.ledger import METADATA_KEY, Entry, Ledger
from normdeploy.parity.verdict import Criteria, Verdict, judge
from normdeploy.report.schema import Report, read

_MOST = 1 << 28
"""Bytes that a report may have."""


def ledger_of(path: str | Path, name: str | None = None) -> tuple[Entry, ...]:
    """Return what became of each norm of ``path``, a bundle or a folded ONNX file; of those that match ``name`` only.

    ``name`` is a module's name or a pattern (fnmatch). Raises InputError where there is no ledger, or no such norm.
    """
    path = Path(path)
    entries = _ledger(path / "model.onnx" if path.is_dir() else Path(os.path.realpath(path))).entries
    if name is None:
        return entries
    chosen = tuple(entry for entry in entries if fnmatch.fnmatchcase(entry.module or entry.node, name))
    if not chosen:
        known = ", ".join(entry.module or entry.node for entry in entries) or "none"
        raise InputError(f"no norm is called {name!r}", where=str(path), fix=f"choose among: {known}")
    return chosen


def _ledger(path: Path) -> Ledger:
    fix = "give a bundle, or a file that normdeploy fold wrote"
    text = onnxfile.metadata(path).get(METADATA_KEY)
    if text is None:
        raise InputError("the model carries no ledger", where=str(path), fix=fix)
    with suppress(ValueError, KeyError, TypeError):
        return Ledger.from_json(text)
    raise InputError("the model's ledger cannot be read", where=str(path), fix="fold the original model again")


def report_of(path: str | Path) -> Report:
    """Return the report in a bundle, or in a ``report.json``; InputError for anything else."""
    path = Path(path)
    file = (
        path / "report.json" if path.is_dir() else Path(os.path.realpath(path))
    )  # a link that the user names is followed
    fix = "give the folder that normdeploy export wrote"
    try:
        return read(Report, read_plain(file.parent, file.name, _MOST), where=str(file))
    except OSError as error:
        raise InputError(f"the report cannot be read: {error.strerror}", where=str(file), fix=fix) from error


def judge_again(report: Report, criteria: Criteria) -> Verdict:
    """Return the verdict on the measurements that ``report`` holds, by other criteria; nothing is run.

    Raises InputError for a report without parity.
    """
    saved = report.parity
    if saved is None:
        raise InputError("the report holds no parity to judge", where=report.factory, fix="export or verify again")
    verdict = judge(
        [each.measurement for each in saved.judgements], criteria, saved.reference, saved.notes, saved.misrounded,
        saved.not_run,
    )  # fmt: skip
    return replace(verdict, first_divergent=saved.first_divergent, first_node=saved.first_node)


def require_as_fast(before: Report, now: Comparison | Latency, limit: float) -> None:
    """Raise VerdictError where ``now`` is slower than the report ``before`` by more than ``limit``, a share.

    Compared are the ratios to eager, which both were measured beside: so another load, or another machine, is no
    regression. It is one only if the whole 95 % interval of the change lies beyond the limit. Raises InputError where
    one of them was not measured beside eager.
    """
    old = before.latency
    if old is None or not isinstance(now, Comparison):
        fix = "export with the latency, and give bench the module by --model"
        raise InputError("there is no ratio to eager to compare with", where="--against", fix=fix)
    change = math.log(old.ratio / now.ratio)
    spread = math.hypot(_half(old), _half(now))
    if change - spread > math.log1p(limit):
        low, high = (math.expm1(change + sign * spread) for sign in (-1, 1))
        raise VerdictError(
            f"slower than before by {100 * math.expm1(change):.1f} % "
            f"(95 % confidence {100 * low:.1f} to {100 * high:.1f})",
            where=f"beside eager: {old.ratio:.3g} times as fast then, {now.ratio:.3g} now",
            fix="look at what changed in the model, the runtime and its options",
        )


def _half(measured: Comparison) -> float:
    """Return half the width of the interval of a ratio's logarithm."""
    return math.log(measured.ratio_high / measured.ratio_low) / 2
