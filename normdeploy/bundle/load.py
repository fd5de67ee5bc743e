"""A bundle is read as what it is, someone else's files: every name, hash, spec and golden output is checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from normdeploy.bundle import golden as golden_feed
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.inputs import check
from normdeploy.bundle.manifest import (
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    MANIFEST,
    MODEL,
    PLAN,
    REPORT,
    Manifest,
    files_in,
    is_plain_file,
    sha256,
)
from normdeploy.engine import read_plan
from normdeploy.errors import InputError
from normdeploy.report.schema import Report, read
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec, parse

_EXPORT_AGAIN = "copy the whole folder again, or export it again"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle that runs: ``bundle({"x": array})`` or ``bundle(x=array)``.

    Attributes:
        folder: where it lies.
        specs: what each input must be.
        golden: the feed and the outputs that it was checked with.
        runner: the model in ONNX Runtime, without the checks of the inputs.
    """

    folder: Path
    manifest: Manifest
    report: Report = field(repr=False)
    specs: tuple[TensorSpec, ...]
    golden: Golden = field(repr=False)
    runner: Runner = field(repr=False)

    @property
    def model_path(self) -> Path:
        """The ONNX model."""
        return self.folder / MODEL

    @property
    def plan_path(self) -> Path | None:
        """The TensorRT engine, for ``TensorRTRunner``; None where the bundle has none."""
        return None if self.report.engine is None else self.folder / PLAN

    def __call__(
        self, inputs: Mapping[str, npt.ArrayLike] | None = None, /, **named: npt.ArrayLike
    ) -> dict[str, npt.NDArray[Any]]:
        """Output name → array. InputError where an input's name, dtype, shape or values do not fit the specs."""
        return self.runner(check(self.specs, {**(inputs or {}), **named}))


def load_bundle(path: str | Path, *, threads: int = 0) -> Bundle:
    """The bundle in folder ``path``, after checking that it is whole and computes here what it computed at home.

    ``threads`` are those of ONNX Runtime, 0 for its own choice. Raises InputError for anything that is not a whole,
    unaltered bundle, VerdictError when the golden outputs do not come out, UnavailableError without onnxruntime.
    """
    folder = Path(path)
    try:
        return _load(folder, threads)
    except OSError as error:
        raise InputError(f"the bundle cannot be read: {error}", where=str(folder), fix=_EXPORT_AGAIN) from error


def _load(folder: Path, threads: int) -> Bundle:
    manifest = _manifest(folder)
    _check_files(folder, manifest)
    report = read(Report, (folder / REPORT).read_bytes(), where=str(folder / REPORT))
    _check_engine(folder, manifest, report)
    specs, golden = _golden(folder, manifest)
    runner = OnnxRuntimeRunner(folder / MODEL, threads=threads, options=manifest.session_options)
    _check_names(folder, manifest, specs, runner)
    golden_feed.judge(runner(golden.inputs), golden.outputs, report, where=folder)
    return Bundle(folder, manifest, report, specs, golden, runner)


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            "not a bundle: it has no manifest.json",
            where=str(folder),
            fix="give the folder that normdeploy export wrote",
        )
    return read(Manifest, path.read_bytes(), where=str(path))


def _golden(folder: Path, manifest: Manifest) -> tuple[tuple[TensorSpec, ...], Golden]:
    """The specs, and the golden arrays that must fit them."""
    try:
        specs = parse(manifest.inputs)
        inputs = golden_feed.load(folder / GOLDEN_INPUTS, {spec.name: spec.dtype for spec in specs})
        return specs, Golden(check(specs, inputs), golden_feed.load(folder / GOLDEN_OUTPUTS, manifest.outputs))
    except InputError as error:
        raise InputError(
            f"the manifest and the golden arrays do not fit: {error.what}", where=str(folder), fix=_EXPORT_AGAIN
        ) from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    """InputError that names every file that is missing, extra, altered or no plain file."""
    present = files_in(folder) - {MANIFEST}
    both = sorted(present & manifest.files.keys())
    odd = [name for name in both if not is_plain_file(folder / name)]
    altered = [name for name in both if name not in odd and sha256(folder / name) != manifest.files[name]]
    found = {
        "missing": sorted(manifest.files.keys() - present),
        "extra": sorted(present - manifest.files.keys()),
        "altered": altered,
        "not a plain file": odd,
    }
    problems = [f"{what}: {ascii(names)[1:-1]}" for what, names in found.items() if names]
    if problems:
        raise InputError(
            f"the bundle is not as it was written; {'; '.join(problems)}", where=str(folder), fix=_EXPORT_AGAIN
        )


def _check_engine(folder: Path, manifest: Manifest, report: Report) -> None:
    """InputError unless the engine in the folder is the one that the report tells of."""
    present = read_plan(folder / PLAN)[1] if PLAN in manifest.files else None
    if present != report.engine:
        raise InputError(
            "the bundle's engine is not the one that its report tells of",
            where=str(folder / PLAN),
            fix=_EXPORT_AGAIN,
        )


def _check_names(folder: Path, manifest: Manifest, specs: tuple[TensorSpec, ...], runner: Runner) -> None:
    stated = sorted(spec.name for spec in specs), sorted(manifest.outputs)
    actual = sorted(runner.inputs), sorted(runner.outputs)
    if stated != actual:
        raise InputError(
            f"the manifest says {stated[0]} → {stated[1]}, the model has {actual[0]} → {actual[1]}",
            where=str(folder / MODEL),
            fix=_EXPORT_AGAIN,
        )
