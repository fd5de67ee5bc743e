"""ONNX files and bundles on disk: fold one into another, and read what a fold or an export left in them."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.bundle.disk import disk_errors, sync, temporary_folder
from normdeploy.bundle.manifest import MODEL, REPORT
from normdeploy.bundle.write import EXTERNAL_ABOVE
from normdeploy.errors import InputError, VerdictError
from normdeploy.fold import Entry, Ledger, Level, Target, fold
from normdeploy.fold.ledger import METADATA_KEY
from normdeploy.report.schema import Report, read


def fold_file(
    source: str | Path,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    dump: Path | None = None,
    strict: bool = False,
    force: bool = False,
    external_above: int = EXTERNAL_ABOVE,
) -> Ledger:
    """Fold the ONNX file ``source`` into the file ``out``; with ``strict`` only if no plan failed its proof.

    ``keep``, ``layernorm`` and ``target`` are those of :func:`normdeploy.fold`.
    Weights of more than ``external_above`` bytes, and those that lie outside ``source``, are written beside ``out``.
    Raises InputError where ``source`` cannot be read or ``out`` not be written, VerdictError where ``strict`` forbids
    it; ``out`` then stays as it was. ``source`` is never written to.
    """
    source, out = Path(source), Path(os.path.realpath(out))
    with disk_errors(out, "the model"):
        check_paths(source, out, force)
        result = fold(source, keep=keep, layernorm=layernorm, target=target, dump=dump)
        if strict and result.ledger.dropped:
            raise VerdictError(
                "a step failed its proof and was dropped, so nothing was written",
                where="; ".join(result.ledger.dropped),
                fix="leave --strict out: a dropped plan changes nothing in the model",
            )
        _replace(result.model, out, source, external_above)
    return result.ledger


def check_paths(source: Path, out: Path, force: bool) -> None:
    """Raise InputError unless something made of ``source`` may be written to the file ``out``; nothing is changed."""
    if not source.exists():
        raise InputError("there is no such file", where=str(source), fix="give an ONNX file")
    if out.exists() and out.samefile(source):
        raise InputError("the output is the input", where=str(out), fix="choose another --out")
    if out.is_dir():
        raise InputError("there is a folder where the file should go", where=str(out), fix="give --out a file name")
    if out.exists() and not out.is_file():
        raise InputError(
            "there is no regular file where the file should go", where=str(out), fix="choose another --out"
        )
    if out.exists() and any(out.samefile(data) for data in _data_files(source, any_name=True) if data.exists()):
        raise InputError("the output holds weights of the input", where=str(out), fix="choose another --out")
    if out.exists() and not force:
        raise InputError("the output exists already", where=str(out), fix="choose another --out, or give --force")


def _replace(model: ir.Model, out: Path, source: Path, external_above: int) -> None:
    """Write beside ``out``, then rename: weights first, under a name nobody uses, so ``out`` is whole at all times."""
    stale = _data_files(out) - _data_files(source)
    data = next(name for name in _data_names(out) if not name.exists())
    with temporary_folder(out) as folder:
        written, weights = folder / out.name, folder / data.name
        onnxfile.save(model, written, external_data=data.name if _needs_data(model, source, external_above) else None)
        for path in folder.iterdir():
            sync(path)
        with _gone_on_failure(data):
            if weights.exists():
                weights.rename(data)
            written.replace(out)
    sync(out.parent)
    for path in stale:
        path.unlink(missing_ok=True)


def _data_names(out: Path) -> Iterator[Path]:
    yield out.with_name(f"{out.name}.data")
    number = 1
    while True:
        yield out.with_name(f"{out.name}.{number}.data")
        number += 1


def _data_files(model: Path, *, any_name: bool = False) -> set[Path]:
    """The files of weights that ``model`` reads and that bear its name (or any); none where it is no model."""
    try:
        paths = onnxfile.data_files(model)
    except InputError:  # it is no model
        return set()
    pattern = "*" if any_name else f"{model.name}*.data"
    return {path for path in paths if fnmatch.fnmatchcase(str(path.relative_to(model.parent)), pattern)}


def _needs_data(model: ir.Model, source: Path, external_above: int) -> bool:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    present = [tensor for tensor in tensors if tensor is not None]
    return bool(_data_files(source)) or sum(tensor.nbytes for tensor in present) > external_above


@contextmanager
def _gone_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def ledger_of(path: str | Path, name: str | None = None) -> tuple[Entry, ...]:
    """What became of each norm of ``path``, a bundle or a folded ONNX file; of those that match ``name`` only.

    ``name`` is a module's name or a pattern (fnmatch). Raises InputError where there is no ledger, or no such norm.
    """
    path = Path(path)
    entries = _ledger(path / MODEL if path.is_dir() else path).entries
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
    """The report in a bundle, or in a ``report.json``; InputError for anything else."""
    path = Path(path)
    file = path / REPORT if path.is_dir() else path
    try:
        return read(Report, file.read_bytes(), where=str(file))
    except OSError as error:
        fix = "give the folder that normdeploy export wrote"
        raise InputError(f"the report cannot be read: {error.strerror}", where=str(file), fix=fix) from error
