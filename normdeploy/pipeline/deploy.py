"""``export``: a trained checkpoint goes in, a verified deployment folder comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import onnx_ir as ir

from normdeploy import bundle
from normdeploy.bench.timers import interleave
from normdeploy.bundle import Golden
from normdeploy.engine import build as build_engine
from normdeploy.errors import InputError, UnavailableError
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, Level, Target, fold
from normdeploy.parity.verdict import Criteria
from normdeploy.pipeline.account import account
from normdeploy.pipeline.engines import computes_in, require_backend
from normdeploy.pipeline.judge import ParityError, verdict_on
from normdeploy.pipeline.source import Progress, Source, Stages, feeds_for, load, specs_of, usual_threads
from normdeploy.precision import Precision, to_precision
from normdeploy.report.schema import Report
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner


def export(
    model: str,
    inputs: Sequence[str],
    out: str | Path,
    *,
    data: str | Path | None = None,
    opset: int | None = None,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    precision: Precision | None = None,
    engine: bool = False,
    sm: Sequence[str] = (),
    force: bool = False,
    bench: bool = True,
    seed: int = 0,
    criteria: Criteria | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Report:
    """Export ``model``, fold its norms, prove parity, build its engine, measure latency, and write the bundle ``out``.

    Args:
        model: ``package.module:factory``; ``source`` says where its weights are.
        inputs: one spec an input, e.g. ``"x:N=1..1..64x1x8x8@f32"``.
        out: the folder to write.
        data: an .npz file with one array an input, to judge parity on as well.
        opset: ONNX opset; None takes the default.
        keep: patterns (fnmatch) of module names whose norms stay as they are.
        layernorm: how far LayerNorms go, as in :func:`normdeploy.fold`.
        target: what will run the model, as there; an engine takes no operator of ``onnxruntime``'s own.
        precision: what the model in the bundle computes in, its engine too; None leaves it as the module is. In 16 bits
            inputs and outputs stay as they are, and parity is judged by what eager loses in the same type.
        engine: build a TensorRT engine into the bundle.
        sm: compute capabilities to build it for, such as ``89``.
        force: replace an older bundle.
        bench: measure latency.
        seed: of the random inputs.
        criteria: of parity.
        verbose: let torch's own warnings through.
        progress: is told when a stage begins and ends.

    Raises ParityError, with the report, where the deployed model is not the eager one; InputError where anything given
    cannot be used; UnavailableError without onnxruntime, or without a TensorRT for ``engine``. Whatever is raised,
    ``out`` stays as it was.
    """
    bundle.check_target(Path(out), force=force)
    _check_engine_options(engine, sm, target)
    specs = specs_of(inputs)
    feeds = feeds_for(specs, data, seed)
    stages = Stages(progress)
    with stages("load"):
        checkpoint = load(model, source)
    with stages("export"):
        exported = to_graph(checkpoint.module, specs, opset=opset, verbose=verbose)
    with stages("fold"):
        folded = _narrowed(fold(exported.model, keep=keep, layernorm=layernorm, target=target), precision)
    computes = computes_in(folded.model)
    latency, threads, built = None, usual_threads(), None
    with in_onnxruntime(folded.model, threads) as deployed:
        with stages("parity"):
            verdict = verdict_on(checkpoint.module, specs, deployed, folded.model, feeds, criteria, precision=computes)
        if engine and verdict.passed:
            with stages("engine"):
                built = build_engine(folded.model, specs, precision=computes, sm=sm)
        if bench and verdict.passed:
            with stages("latency"):
                latency = interleave(EagerRunner(checkpoint.module, specs), deployed, feeds[0], threads=threads)
        golden = Golden(feeds[0].arrays, deployed(feeds[0].arrays))
    report = account(
        checkpoint, exported, folded, verdict, inputs=[*map(str, specs)], latency=latency, seconds=stages.seconds,
        engine=built.sidecar if built else None,
    )  # fmt: skip
    if not verdict.passed:
        raise ParityError(verdict, report)
    with stages("bundle"):
        model_args = source.get("model_args", {})
        bundle.write(
            Path(out), model=folded.model, report=report, golden=golden, engine=built, model_args=model_args,
            force=force,
        )  # fmt: skip
    return report


def _check_engine_options(engine: bool, sm: Sequence[str], target: Target) -> None:
    if engine and target == "onnxruntime":
        what = "an engine is built of the bundle's own graph, which TensorRT must know"
        raise InputError(what, where="--target onnxruntime", fix="leave --target out, or --engine")
    if engine:
        require_backend(None, sm)
    elif sm:
        raise InputError("compute capabilities are those of an engine", where="--sm", fix="give --engine as well")


def _narrowed(folded: FoldResult, precision: Precision | None) -> FoldResult:
    """Folded first, then rounded: a norm inside a float32 island no longer meets its neighbours."""
    return folded if precision is None else replace(folded, model=to_precision(folded.model, precision))


@contextmanager
def in_onnxruntime(model: ir.Model, threads: int = 0) -> Iterator[Runner]:
    """``model`` in ONNX Runtime, through a file: one protobuf message cannot hold more than 2 GB."""
    with TemporaryDirectory(prefix="normdeploy-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            ir.save(model, path, external_data="model.onnx.data")
        except OSError as error:
            what = f"the model cannot be written to a temporary file: {error.strerror or error}"
            raise InputError(what, where=folder, fix="free some space, or name another folder in TMPDIR") from error
        yield _opened(path, threads, computes_in(model))


def _opened(path: Path, threads: int, precision: Precision) -> Runner:
    try:
        return OnnxRuntimeRunner(path, threads=threads)
    except UnavailableError as error:
        if precision != "bf16":
            raise
        fix = "leave --precision out, and build the engine of that bundle: normdeploy build BUNDLE --precision bf16"
        raise UnavailableError(f"parity cannot be judged in bf16: {error.what}", fix=fix) from error
