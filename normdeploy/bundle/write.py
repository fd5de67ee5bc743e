"""A bundle is written beside its place, read back as its user will read it, and then renamed: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.bundle import golden as golden_feed
from normdeploy.bundle.disk import beside, disk_errors, sync, temporary_folder
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.load import load_bundle
from normdeploy.bundle.manifest import (
    EXTERNAL_DATA,
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    MANIFEST,
    MODEL,
    PAGE,
    PLAN,
    REPORT,
    Manifest,
    files_in,
    sha256,
)
from normdeploy.engine import EngineBuild
from normdeploy.errors import InputError
from normdeploy.report.html import render
from normdeploy.report.schema import Report

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they get a file of their own: protobuf ends at 2 GB, and the graph needs some of it."""

_SHOWN_NAMES = 5


def check_target(folder: Path, *, force: bool = False) -> Path:
    """The real path of ``folder`` where a bundle may be written to it, InputError where not; nothing is changed.

    What exists is replaced with ``force`` only, and only if it is empty or an older bundle, which holds no file but
    those that its manifest lists.
    """
    target = Path(os.path.realpath(folder))
    with disk_errors(target):
        if os.path.lexists(target):
            _check_replaceable(target, force)
        else:
            _check_parent(target)
    return target


def write(
    folder: Path,
    *,
    model: ir.Model,
    report: Report,
    golden: Golden,
    engine: EngineBuild | None = None,
    model_args: Mapping[str, str] | None = None,
    session_options: Mapping[str, str] | None = None,
    force: bool = False,
    external_above: int = EXTERNAL_ABOVE,
) -> Path:
    """Write the bundle and return its real path.

    ``golden.outputs`` are what ``model`` itself gives for ``golden.inputs`` on this machine; ``engine`` is the one that
    ``report`` tells of. Above ``external_above`` bytes the weights get a file of their own. The finished folder is
    loaded, with all checks of ``load_bundle``, before it takes its place. Raises InputError where the folder may not be
    replaced or the disk does not take it, and what ``load_bundle`` raises; whatever goes wrong, what was there stays as
    it was and nothing is left beside it.
    """
    target = check_target(folder, force=force)
    with disk_errors(target), temporary_folder(target) as temporary:
        _save_model(model, temporary / MODEL, external_above)
        (temporary / REPORT).write_text(report.to_json(), encoding="utf-8")
        (temporary / PAGE).write_text(render(report), encoding="utf-8")
        if engine is not None:
            engine.write(temporary / PLAN)
        (temporary / GOLDEN_INPUTS).parent.mkdir()
        golden_feed.save(temporary / GOLDEN_INPUTS, golden.inputs)
        golden_feed.save(temporary / GOLDEN_OUTPUTS, golden.outputs)
        manifest = _manifest(temporary, report, golden, dict(model_args or {}), dict(session_options or {}))
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        load_bundle(temporary)
        _flush(temporary)
        _install(temporary, target)
    return target


def _manifest(
    folder: Path, report: Report, golden: Golden, model_args: dict[str, str], session_options: dict[str, str]
) -> Manifest:
    return Manifest(
        created=report.created,
        normdeploy_version=report.normdeploy_version,
        packages=report.packages,
        factory=report.factory,
        model_args=model_args,
        weights=report.weights,
        weights_sha256=report.weights_sha256,
        trusted=report.trusted,
        inputs=report.inputs,
        outputs={name: golden.outputs[name].dtype.name for name in report.outputs},
        opset=report.opset,
        precision=report.precision,
        session_options=session_options,
        files={name: sha256(folder / name) for name in sorted(files_in(folder))},
    )


def _save_model(model: ir.Model, path: Path, external_above: int) -> None:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values if value.const_value is not None]
    # A tensor that lies in a file already would be written as a reference to that file, which is not in the bundle.
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors) > external_above
    onnxfile.save(model, path, external_data=EXTERNAL_DATA if external or large else None)


def _check_replaceable(target: Path, force: bool) -> None:
    if not target.is_dir():
        raise InputError("there is a file where the bundle should go", where=str(target), fix="choose another --out")
    if not force:
        raise InputError("the output exists already", where=str(target), fix="choose another --out, or give --force")
    if not any(target.iterdir()):
        return
    foreign = "files" if (listed := _listed(target)) is None else _shown(files_in(target) - listed)
    if foreign:
        raise InputError(
            f"the folder is not replaced, it holds {foreign} that no bundle's manifest lists",
            where=str(target),
            fix="choose another --out, or move them away",
        )


def _shown(names: set[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(map(ascii, sorted(names)[:_SHOWN_NAMES])) + (f" and {more} more" if more > 0 else "")


def _listed(folder: Path) -> set[str] | None:
    """The files that the folder's manifest lists, of whatever schema version, itself included; None without one."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
        ours = isinstance(raw["normdeploy_version"], str)
        return {*map(str, raw["files"]), MANIFEST} if ours else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_parent(target: Path) -> None:
    parent = next(parent for parent in target.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise InputError("a file is in the way of the output", where=str(parent), fix="choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("the output cannot be written here", where=str(parent), fix="choose another --out")


def _flush(folder: Path) -> None:
    """Bring everything in ``folder`` onto the disk, so that a crash after the rename finds it whole."""
    for name in sorted(files_in(folder)):
        sync(folder / name)
    for path in (folder / GOLDEN_INPUTS).parent, folder:
        sync(path)


def _install(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``; an old one is moved aside first, comes back on failure, goes on success."""
    if not target.exists():
        temporary.rename(target)
        sync(target.parent)
        return
    old = beside(target)
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    sync(target.parent)
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise InputError(
            f"the new bundle is in its place, but the old one cannot be removed: {error.strerror}",
            where=str(old),
            fix="remove it by hand",
        ) from error
