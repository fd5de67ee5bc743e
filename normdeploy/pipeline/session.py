"""A graph in memory as a session of ONNX Runtime, through a file: one protobuf message cannot hold more than 2 GB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from normdeploy.disk import scratch
from normdeploy.errors import InputError, UnavailableError
from normdeploy.pipeline.engines import computes_in
from normdeploy.precision import Precision
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner


@contextmanager
def in_onnxruntime(model: ir.Model, threads: int = 0, options: Mapping[str, str] | None = None) -> Iterator[Runner]:
    """``model`` in ONNX Runtime, with these session options."""
    with written(model) as path:
        yield _opened(path, threads, options or {}, computes_in(model))


@contextmanager
def written(model: ir.Model) -> Iterator[Path]:
    """A temporary file of ``model``, its weights beside it."""
    with scratch() as folder:
        path = folder / "model.onnx"
        try:
            ir.save(model, path, external_data="model.onnx.data")
        except OSError as error:
            what = f"the model cannot be written to a temporary file: {error.strerror or error}"
            raise InputError(
                what, where=str(folder), fix="free some space, or name another folder in TMPDIR"
            ) from error
        yield path


def _opened(path: Path, threads: int, options: Mapping[str, str], precision: Precision) -> Runner:
    try:
        return OnnxRuntimeRunner(path, threads=threads, options=options)
    except UnavailableError as error:
        if precision != "bf16":
            raise
        fix = "leave --precision out, and build the engine of that bundle: normdeploy build BUNDLE --precision bf16"
        raise UnavailableError(f"parity cannot be judged in bf16: {error.what}", fix=fix) from error
