"""``export``: a trained checkpoint goes in, a verified deployment folder comes out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import onnx_ir as ir
from torch import nn

from normdeploy import bundle
from normdeploy.arguments import checked
from normdeploy.bundle import Golden
from normdeploy.bundle.manifest import PLUGIN_MODEL
from normdeploy.engine import build as build_engine
from normdeploy.engine import require_targets
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.errors import InputError
from normdeploy.export import BFLOAT16_OPSET, in_float32, to_graph
from normdeploy.fold import FoldResult, Level, Note, Target, fold
from normdeploy.foldmodule.file import told, write_folded
from normdeploy.foldmodule.module import folded_at
from normdeploy.parity.compare import Unfolded
from normdeploy.parity.feeds import Feed, batch_feed
from normdeploy.parity.overflow import overflow_notes
from normdeploy.parity.plugins import with_plugins
from normdeploy.parity.verdict import Criteria, Verdict
from normdeploy.pipeline.account import account
from normdeploy.pipeline.engines import computes_in, recorded, require_backend
from normdeploy.pipeline.examine import findings
from normdeploy.pipeline.files import check_plugin
from normdeploy.pipeline.judge import NotRunError, ParityError, verdict_on, verdict_on_plugins
from normdeploy.pipeline.keywords import Data, Source
from normdeploy.pipeline.latency import Job, measured, plain, require_compiled
from normdeploy.pipeline.places import check_export
from normdeploy.pipeline.session import Session, in_onnxruntime, in_this_process, written
from normdeploy.pipeline.source import (
    app_dir_of,
    feeds_for,
    load,
    specs_of,
)
from normdeploy.pipeline.stages import PROCESSES, Progress, Stages, require_measurable, usual_threads
from normdeploy.pipeline.tune import Kept, Tuner
from normdeploy.precision import Precision, to_precision
from normdeploy.precision.widen import widened
from normdeploy.report.schema import Report
from normdeploy.specs import TensorSpec


@checked(Source)
def export(
    model: str,
    inputs: Sequence[str],
    out: str | Path,
    *,
    output_names: Sequence[str] = (),
    data: Data = None,
    opset: int | None = None,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    tune: bool = False,
    precision: Precision | None = None,
    engine: bool = False,
    sm: Sequence[str] = (),
    plugin: bool = False,
    plugin_form: PluginForm = "aot",
    to_torch: str | Path | None = None,
    force: bool = False,
    bench: bool = True,
    seconds: float = 2.0,
    threads: int | None = None,
    processes: int = PROCESSES,
    batches: Sequence[int] = (),
    compiled: bool = False,
    seed: int = 0,
    criteria: Criteria | None = None,
    verbose: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Report:
    """Export ``model``, fold its norms, prove parity, build its engine, measure latency, and write the bundle ``out``.

    Args:
        model: ``package.module:factory``; ``source`` says where its weights are.
        inputs: one spec an input, e.g. ``"x:N=1..1..64x1x8x8@f32"``, and ``"training=False"`` for what is no tensor.
        output_names: of all that forward returns, in order; by default those of its keys, fields and indices.
        out: the folder to write.
        data: real inputs to judge parity on as well: .npz or safetensors files, or functions that yield batches.
        opset: ONNX opset; None takes the default, for ``bf16`` the first that has all of bfloat16.
        keep: patterns (fnmatch) of module names whose norms stay as they are.
        layernorm: how far LayerNorms go, as in :func:`normdeploy.fold`.
        target: what will run the model, as there; an engine takes no operator of ``onnxruntime``'s own.
        tune: measure the forms that the LayerNorms can have, and session options, on this machine, and deploy the one
            that is faster beyond the noise and right; the default where none is. The bundle keeps its session options.
        precision: what the model in the bundle computes in, its engine too; None leaves it as the module is. A 16-bit
            module is widened to float32 first, exactly, and its inputs. In 16 bits inputs and outputs stay float32, and
            parity is judged by what eager loses in the same type; activations that overflow it are noted by module
            name.
        engine: build a TensorRT engine into the bundle.
        sm: compute capabilities to build it for, such as ``89``.
        plugin: write a graph with LayerNorm plugins beside the model, from which the engine is built.
        plugin_form: ``aot``, compiled into the engine, or ``python``, for shapes that change, launched by Python.
        to_torch: a safetensors file for the weights of the module with its norms folded, see
            :func:`normdeploy.load_folded`; at the usual sizes.
        force: replace an older bundle, and an older ``to_torch``.
        bench: measure latency: eager, the unfolded graph in the same runtime, and the deployed one.
        seconds: to measure for, all processes together; each size of a batch once more.
        threads: of each runner; None leaves one core to the rest of the machine.
        processes: fresh processes to measure in.
        batches: sizes of the inputs' first dimension to measure at, beside the usual one.
        compiled: measure what torch.compile makes of the module, too.
        seed: of the random inputs.
        criteria: of parity.
        verbose: let torch's own warnings through.
        command: what the report says makes the bundle again.
        progress: is told when a stage begins and ends.

    Raises ParityError, with the report, where the deployed model is not the eager one: the report lies in
    ``out``.failed then; NotRunError, with the same report, where the graph is the eager one and the runtime lacks a
    kernel for it; InputError where anything given cannot be used; UnavailableError without onnxruntime, or
    without a TensorRT for ``engine`` or a compiler for ``compiled``. Whatever is raised, ``out`` stays as it was.
    """
    threads = usual_threads() if threads is None else threads
    if opset is None and precision == "bf16":
        opset = BFLOAT16_OPSET
    check_plugin(plugin, plugin_form, target, layernorm)
    check_options(engine, sm, layernorm, target, tune, plugin)
    require_measurable(threads, seconds, processes)
    if not bench and (batches or compiled):
        given = "--batch" if batches else "--compare"
        raise InputError("latency is left out", where=f"--no-bench {given}", fix="leave one of them out")
    specs = specs_of(inputs, output_names)
    torch_file = None if to_torch is None else Path(to_torch)
    check_export(Path(out), torch_file, model=model, data=data, source=source, force=force)
    stages = Stages(progress)
    with stages("load"):
        checkpoint = load(model, source)
        if precision is not None:
            specs, widened = in_float32(checkpoint.module, specs)
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *widened))
        feeds = feeds_for(specs, data, seed, app_dir_of(source), checkpoint.module)
        sizes = {batch: batch_feed(specs, batch) for batch in batches}
    job = Job(
        model, plain(source), tuple(specs.texts()), None, None, {}, threads, seconds, 0, compiled=compiled
    )  # fmt: skip
    if compiled:
        with stages("compile"):  # first, so that nothing is lost where it cannot be
            require_compiled(job, feeds[0])
    with stages("export"):
        exported = to_graph(checkpoint.module, specs, opset=opset, verbose=verbose)
    forms = _Forms(checkpoint.module, exported.model, specs, feeds, keep, precision, criteria or Criteria())
    with stages("fold"):
        folded = forms.fold(layernorm, target)
        # Here, so that a network without norms is refused before anything takes long; --tune goes with no plugins.
        asked_for = with_plugins(folded.model, plugin_form, PLUGIN_MODEL) if plugin else None
    latency, by_batch, built = None, {}, None
    with ExitStack() as sessions:
        with stages("parity"):
            session = sessions.enter_context(in_onnxruntime(folded.model, threads, feed=feeds[0]))
            verdict = forms.judge(session, folded, follow=True)
            kept = Kept(folded, verdict, session.options)
        if tune and kept.verdict.passed:
            with stages("tune"):
                with in_this_process(folded.model, threads, kept.options) as here:
                    kept = Tuner(kept, here, target, engine, forms.fold, forms.judge, feeds[0], threads).run()
                session = sessions.enter_context(in_onnxruntime(kept.folded.model, threads, kept.options))
        plugin_model = on_plugins = None
        if kept.verdict.passed:
            kept, plugin_model = _with_plugins(kept, asked_for, engine, sm)
        if plugin_model is not None:
            with stages("plugins"):
                on_plugins = forms.judge_plugins(plugin_model, kept.folded, plugin_form)
        passed = kept.verdict.passed and (on_plugins is None or on_plugins.passed)
        if engine and passed:
            with stages("engine"):
                graph = kept.folded.model
                built = build_engine(plugin_model or graph, specs, precision=computes_in(graph), sm=sm)
        if bench and passed:
            with stages("latency"), written(kept.folded.model) as path, written(forms.unfolded_graph()) as other:
                job = replace(job, deployed=str(path), unfolded=str(other), options=dict(kept.options))
                latency = measured(job, feeds[0], processes)
                by_batch = {batch: measured(job, feed, processes) for batch, feed in sizes.items()}
        golden = Golden(feeds[0].arrays, session.runner(feeds[0].arrays)) if passed else None
    likely = [feed for feed in feeds if not feed.corner]  # in a corner made for it, what overflows is no news
    notes = (*session.notes, *overflow_notes(kept.folded.model, likely))
    report = account(
        checkpoint, exported, kept.folded, kept.verdict, notes,
        inputs=specs.texts(), latency=latency, latency_by_batch=by_batch, seconds=stages.seconds,
        model_args={name: str(value) for name, value in source.get("model_args", {}).items()}, command=command,
        engine=built.sidecar if built else None, tuning=kept.tuning, plugin_parity=on_plugins,
        findings=findings(checkpoint.module, exported.model, kept.folded),
    )  # fmt: skip
    if golden is None:
        failed = on_plugins if on_plugins is not None and kept.verdict.passed else kept.verdict
        kind = NotRunError if failed.unjudged else ParityError
        raise kind(failed, report, bundle.write_failed(Path(out), report))
    folded_module = None
    if torch_file is not None:
        with stages("torch"):
            folded_module = folded_at(checkpoint.module, specs, feeds[0])
    with stages("bundle"):
        model_args = source.get("model_args", {})
        bundle.write(
            Path(out), model=kept.folded.model, report=report, golden=golden, engine=built,
            plugin_model=plugin_model, model_args=model_args, session_options=kept.options, force=force,
        )  # fmt: skip
    if torch_file is not None and folded_module is not None:
        write_folded(folded_module, torch_file, force=force)
        logging.getLogger("normdeploy").info("%s holds the folded module: %s", torch_file, told(folded_module))
    bundle.remove_failed(Path(out))
    return report


def _with_plugins(
    kept: Kept, asked_for: tuple[ir.Model, tuple[Note, ...]] | None, engine: bool, sm: Sequence[str]
) -> tuple[Kept, ir.Model | None]:
    """Return what is kept, with notes on plugins, and its graph with them; None where there are none.

    Those ``asked_for``; else those that an ``engine`` for this GPU is recorded to be faster with.
    """
    graph = kept.folded.model
    if asked_for is None and not engine:
        return kept, None
    deployed, said = asked_for or recorded(graph, computes_in(graph), None, sm)
    ledger = replace(kept.folded.ledger, notes=(*kept.folded.ledger.notes, *said))
    return replace(kept, folded=replace(kept.folded, ledger=ledger)), None if deployed is graph else deployed


@dataclass(frozen=True)
class Form(FoldResult):
    """A folded model in the precision that it is deployed in, with the float32 one, ``single``, that it was before."""

    single: ir.Model | None = None


@dataclass(frozen=True)
class _Forms:
    """The forms of one network: how each is made of the exported graph, and judged against the module."""

    module: nn.Module
    exported: ir.Model
    specs: Sequence[TensorSpec]
    feeds: Sequence[Feed]
    keep: Sequence[str]
    precision: Precision | None
    criteria: Criteria

    def fold(self, layernorm: Level, target: Target) -> Form:
        """Folded first, then rounded: a norm inside a float32 island no longer meets its neighbours."""
        folded = fold(self.exported, keep=self.keep, layernorm=layernorm, target=target)
        if self.precision is not None:
            narrow = to_precision(folded.model, self.precision)
            return Form(narrow, folded.ledger, None if self.precision == "fp32" else folded.model)
        if computes_in(folded.model) == "fp32":
            return Form(folded.model, folded.ledger)
        # a module in 16 bits: its graph was folded and rounded at once, and is judged beside the same fold in float32
        single = fold(widened(self.exported), keep=self.keep, layernorm=layernorm, target=target)
        return Form(folded.model, folded.ledger, single.model)

    def judge(self, session: Session, folded: FoldResult, *, follow: bool = False) -> Verdict:
        """Return parity of ``session``, which runs ``folded``; ``follow`` a failure to where it begins."""
        return verdict_on(
            self.module, self.specs, session.runner, folded.model, self.feeds, self.criteria,
            precision=computes_in(folded.model), options=session.options, unfolded=self.unfolded, follow=follow,
            single=folded.single if isinstance(folded, Form) else None, exported=lambda: widened(self.exported),
        )  # fmt: skip

    def judge_plugins(self, graph: ir.Model, folded: FoldResult, form: PluginForm) -> Verdict | None:
        """Return the verdict on ``folded`` with plugins, before any engine is made; None where float64 is not had."""
        single = folded.single if isinstance(folded, Form) else None
        return verdict_on_plugins(
            self.module, self.specs, graph, self.feeds, self.criteria,
            precision=computes_in(folded.model), single=None if single is None else with_plugins(single, form)[0],
        )  # fmt: skip

    def unfolded_graph(self) -> ir.Model:
        """Return the exported graph in the deployed precision."""
        return self.exported if self.precision is None else to_precision(self.exported, self.precision)

    @contextmanager
    def unfolded(self) -> Iterator[Unfolded]:
        """Give the exported graph in the deployed precision, and a session of it."""
        graph = self.unfolded_graph()
        with in_onnxruntime(graph, feed=self.feeds[0]) as session:
            yield Unfolded(session.runner, graph)


def check_options(engine: bool, sm: Sequence[str], layernorm: Level, target: Target, tune: bool, plugin: bool) -> None:
    """Raise InputError where two options contradict each other, UnavailableError for an engine that cannot be built."""
    if tune and layernorm != "affine":
        fix = "leave --layernorm out, and the form is chosen; or --tune, and it is the one you name"
        raise InputError("a form is either given or chosen", where=f"--tune --layernorm {layernorm}", fix=fix)
    if tune and target == "tensorrt":
        fix = "leave --target out"
        raise InputError("--tune measures in ONNX Runtime", where="--tune --target tensorrt", fix=fix)
    if engine and target == "onnxruntime":
        what = "TensorRT builds the engine, and of the bundle's own graph"
        raise InputError(what, where="--target onnxruntime", fix="leave --target out, or --engine")
    if engine:
        require_backend(None, sm, plugin=plugin)
        if sm:
            require_targets(sm)
    elif sm:
        raise InputError("compute capabilities are those of an engine", where="--sm", fix="give --engine as well")
