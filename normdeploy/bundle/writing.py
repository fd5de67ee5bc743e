"""A bundle is written beside its place, read back as its user will read it, and then renamed: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.bundle import golden as golden_feed
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.interface import interface_of
from normdeploy.bundle.load import check
from normdeploy.bundle.manifest import (
    EXTERNAL_DATA,
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    INTERFACE,
    MANIFEST,
    MODEL,
    PAGE,
    PLAN,
    PLUGIN_DATA,
    PLUGIN_MODEL,
    REPORT,
    Manifest,
)
from normdeploy.bundle.target import WHAT, check_target, replaceable
from normdeploy.disk import Room, disk_errors, files_in, locked, room, sha256_of
from normdeploy.engine import EngineBuild
from normdeploy.report.html import render
from normdeploy.report.schema import Report
from normdeploy.specs import parse

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they get a file of their own: protobuf ends at 2 GB, and the graph needs some of it."""


def write(
    folder: Path,
    *,
    model: ir.Model,
    report: Report,
    golden: Golden,
    engine: EngineBuild | None = None,
    plugin_model: ir.Model | None = None,
    model_args: Mapping[str, str] | None = None,
    session_options: Mapping[str, str] | None = None,
    force: bool = False,
    external_above: int = EXTERNAL_ABOVE,
) -> Path:
    """Write the bundle and return its real path.

    ``golden.outputs`` are what ``model`` itself gives for ``golden.inputs`` on this machine; ``engine`` is the one that
    ``report`` tells of, and ``plugin_model`` the graph with plugins that it is built from, or can be. Above
    ``external_above`` bytes the weights get a file of their own. The finished folder is loaded, with all checks of
    ``load_bundle``, before it takes its place. Raises InputError where the folder may not be replaced or the disk does
    not take it, and what ``load_bundle`` raises; whatever goes wrong, what was there stays as it was and nothing is
    left beside it. A file that somebody puts into an older bundle while it is replaced is kept.
    """
    target = check_target(folder, force=force)
    with disk_errors(target, WHAT), room(target) as place:
        new = place.new
        new.mkdir()
        _save_model(model, new / MODEL, EXTERNAL_DATA, external_above)
        if plugin_model is not None:
            _save_model(plugin_model, new / PLUGIN_MODEL, PLUGIN_DATA, external_above)
        (new / REPORT).write_text(report.to_json(), encoding="utf-8")
        (new / PAGE).write_text(render(report), encoding="utf-8")
        if engine is not None:
            engine.write(new / PLAN)
        (new / GOLDEN_INPUTS).parent.mkdir()
        golden_feed.save(new / GOLDEN_INPUTS, golden.inputs)
        golden_feed.save(new / GOLDEN_OUTPUTS, golden.outputs)
        interface = interface_of(parse(report.inputs), _dtypes(report, golden), onnxfile.shapes(new / MODEL))
        (new / INTERFACE).write_text(interface.to_json(), encoding="utf-8")
        manifest = _manifest(new, report, golden, dict(model_args or {}), dict(session_options or {}))
        (new / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        check(new)
        with locked(target.parent):
            _install(place, target, {**manifest.files, MANIFEST: sha256_of(new, MANIFEST)}, force)
    return target


def _install(place: Room, target: Path, files: Mapping[str, str], force: bool) -> None:
    if not os.path.lexists(target):
        with suppress(FileExistsError):
            place.settle(target)
            return
    place.replace(target, {*replaceable(target, force), *files.items()})


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
        outputs=_dtypes(report, golden),
        opset=report.opset,
        precision=report.precision,
        session_options=session_options,
        files={name: sha256_of(folder, name) for name in sorted(files_in(folder))},
    )


def _dtypes(report: Report, golden: Golden) -> dict[str, str]:
    return {name: golden.outputs[name].dtype.name for name in report.outputs}


def _save_model(model: ir.Model, path: Path, data: str, external_above: int) -> None:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values if value.const_value is not None]
    # A tensor that lies in a file already would be written as a reference to that file, which is not in the bundle.
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors) > external_above
    onnxfile.save(model, path, external_data=data if external or large else None)
