"""A bundle is read as what it is, someone else's files: every name, hash, spec and golden output is checked first.

It is copied first, file by file, and everything is read from that copy: what was hashed is what is used, whoever writes
to the folder meanwhile or puts another in its place.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from normdeploy.arguments import checked
from normdeploy.bundle import golden as golden_feed
from normdeploy.bundle.files import EXPORT_AGAIN, copy_files, read_manifest, reading
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.inputs import Gate
from normdeploy.bundle.interface import read_interface
from normdeploy.bundle.loaded import Bundle
from normdeploy.bundle.manifest import (
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    INTERFACE,
    MODEL,
    PLAN,
    REPORT,
    Manifest,
)
from normdeploy.disk import new_scratch, opened_folder
from normdeploy.engine import read_plan
from normdeploy.errors import InputError
from normdeploy.report.schema import Report, read
from normdeploy.runtime.isolated import IsolatedRunner, Worker
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner, import_runtime
from normdeploy.runtime.placement import CPU, Placement, placed
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec, parse


@checked()
def load_bundle(
    path: str | Path,
    *,
    threads: int = 0,
    isolated: bool = False,
    device: str = "cpu",
    provider: str | None = None,
    tf32: bool = False,
    cuda_graph: bool = False,
) -> Bundle:
    """Return the bundle in folder ``path``, after checking that it is whole and computes here what it computed at home.

    It is checked in a process of its own, whatever the model asks for: time that no model of its size needs, or more
    memory than is free, is an error there. What is called after that runs in this process, as fast as ONNX Runtime is,
    and without such limits: let nobody choose inputs for a model that you do not trust. ``isolated`` keeps it in its
    own process instead; each call costs the transport of its arrays.

    ``threads`` are those of ONNX Runtime, 0 for its own choice. ``device``, ``provider``, ``tf32`` and ``cuda_graph``
    are those of :func:`normdeploy.runtime.placement.placed`: it runs there, or this is an UnavailableError. Raises
    InputError for anything that is not a whole, unaltered bundle, or does not answer in time (``NORMDEPLOY_SECONDS``
    says in how many), VerdictError when the golden outputs do not come out or ONNX Runtime dies of it,
    UnavailableError without onnxruntime.
    """
    folder, placement = Path(path), placed(device, provider, tf32=tf32, cuda_graph=cuda_graph)
    return reading(folder, lambda opened: _load(folder, opened, threads, isolated, placement))


def check(folder: Path) -> None:
    """Load the bundle ``folder``, which nobody else knows of yet, with every check of :func:`load_bundle`."""
    with opened_folder(folder) as opened:
        manifest = read_manifest(folder, opened)
        copy_files(folder, opened, manifest, None)
    bundle = _opened(folder, folder, manifest, 0, isolated=True)
    if isinstance(bundle.runner, IsolatedRunner):
        bundle.runner.close()


def _load(folder: Path, opened: int, threads: int, isolated: bool, placement: Placement) -> Bundle:
    manifest = read_manifest(folder, opened)
    copy, remove = new_scratch()
    try:
        (copy / GOLDEN_INPUTS).parent.mkdir()
        copy_files(folder, opened, manifest, copy)
        bundle = _opened(folder, copy, manifest, threads, isolated=isolated, placement=placement)
        weakref.finalize(bundle, remove)
    except BaseException:
        remove()
        raise
    return bundle


def _opened(
    folder: Path, copy: Path, manifest: Manifest, threads: int, *, isolated: bool, placement: Placement = CPU
) -> Bundle:
    """The bundle of ``folder``, all of it read from ``copy``."""
    worker = Worker()  # it gets ready while the rest is read
    try:
        report = read(Report, (copy / REPORT).read_bytes(), where=str(folder / REPORT))
        _check_engine(folder, copy, manifest, report)
        specs, golden = _golden(folder, copy, manifest)
        if not isolated:
            import_runtime()
        options, where = manifest.session_options, str(folder / MODEL)
        apart = IsolatedRunner(
            copy / MODEL, threads=threads, options=options, where=where, placement=placement, worker=worker
        )
        _check_names(folder, manifest, specs, apart)
        golden_feed.judge(apart(golden.inputs), golden.outputs, report, where=folder)
        content = (copy / INTERFACE).read_bytes() if INTERFACE in manifest.files else None
        told = read_interface(content, specs, manifest.outputs, model=copy / MODEL, where=str(folder / INTERFACE))
    except BaseException:
        worker.close()
        raise
    runner: Runner = apart
    if not isolated:  # it has opened and answered: so it does here
        worker.close()
        runner = OnnxRuntimeRunner(
            copy / MODEL, threads=threads, options=options, where=where, placement=placement, checked=True
        )
    return Bundle(folder, manifest, report, specs, told, golden, runner, copy, Gate(specs))


def _golden(folder: Path, copy: Path, manifest: Manifest) -> tuple[tuple[TensorSpec, ...], Golden]:
    """The specs, and the golden arrays that must fit them."""
    try:
        specs = parse(manifest.inputs).with_outputs([*manifest.outputs])
        inputs = golden_feed.load(copy / GOLDEN_INPUTS, {spec.name: spec.dtype for spec in specs})
        return specs, Golden(Gate(specs)(inputs), golden_feed.load(copy / GOLDEN_OUTPUTS, manifest.outputs))
    except InputError as error:
        raise InputError(
            f"the manifest and the golden arrays do not fit: {error.what}", where=str(folder), fix=EXPORT_AGAIN
        ) from error


def _check_engine(folder: Path, copy: Path, manifest: Manifest, report: Report) -> None:
    """InputError unless the engine in the folder is the one that the report tells of."""
    present = read_plan(copy / PLAN)[1] if PLAN in manifest.files else None
    if present != report.engine:
        raise InputError(
            "the bundle's engine is not the one that its report tells of",
            where=str(folder / PLAN),
            fix=EXPORT_AGAIN,
        )


def _check_names(folder: Path, manifest: Manifest, specs: tuple[TensorSpec, ...], runner: Runner) -> None:
    stated = sorted(spec.name for spec in specs), sorted(manifest.outputs)
    actual = sorted(runner.inputs), sorted(runner.outputs)
    if stated != actual:
        raise InputError(
            f"the manifest says {stated[0]} → {stated[1]}, the model has {actual[0]} → {actual[1]}",
            where=str(folder / MODEL),
            fix=EXPORT_AGAIN,
        )
