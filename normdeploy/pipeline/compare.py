"""``verify``, and what ``bench`` measures beside: a deployed model again, and the eager one it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import onnx
import onnx_ir as ir
from torch import nn

from normdeploy.arguments import checked
from normdeploy.bench.clocks import clock_of
from normdeploy.bench.stats import FEWEST, Comparison, Latency, over_processes
from normdeploy.bench.timers import alone, take_rounds
from normdeploy.bundle import Bundle
from normdeploy.checkpoint import Checkpoint
from normdeploy.doctor.training import require_eval
from normdeploy.errors import InputError, NormdeployError
from normdeploy.export import OPSETS, to_graph
from normdeploy.fold import Target, fold
from normdeploy.fold.ledger import KEPT, MEAN_IS_GONE, METADATA_KEY, Ledger
from normdeploy.graph import operator
from normdeploy.parity.compare import Unfolded
from normdeploy.parity.feeds import Feed, batch_feed
from normdeploy.parity.nodes import MOST_MEMORY, worst_node
from normdeploy.parity.verdict import Criteria, Verdict
from normdeploy.pipeline.artefact import Artefact, open_artefact
from normdeploy.pipeline.engines import computes_in
from normdeploy.pipeline.judge import verdict_on
from normdeploy.pipeline.keywords import Data, Source
from normdeploy.pipeline.latency import Job, measured, plain
from normdeploy.pipeline.session import in_onnxruntime, written
from normdeploy.pipeline.source import (
    app_dir_of,
    feeds_for,
    load_beside,
    specs_of,
    trusted,
)
from normdeploy.pipeline.stages import Progress, Stages
from normdeploy.precision import to_precision
from normdeploy.precision.widen import widened
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner
from normdeploy.specs import Signature, TensorSpec


@checked(Source)
def verify(
    artefact: str | Path,
    model: str,
    inputs: Sequence[str] = (),
    *,
    output_names: Sequence[str] = (),
    data: Data = None,
    seed: int = 0,
    criteria: Criteria | None = None,
    placement: Placement = CPU,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Verdict:
    """Return the parity verdict on ``artefact``, a bundle, an ONNX file or a plan, against the module that ``model``
    names.

    A bundle's sha256s and golden outputs are checked first, and its input specs hold; an ONNX file, and a plan outside
    a bundle, need ``inputs``. What computes in 16 bits is judged by what eager loses in them. ``placement`` is where it
    runs, and eager PyTorch, whose error is allowed, runs on the same device. Raises what
    :func:`normdeploy.load_bundle` and :func:`normdeploy.export` raise, and UnavailableError for a plan where there is
    no GPU; a failed verdict is returned.
    """
    asked = _Asked(Path(artefact), model, inputs, output_names, data, seed, criteria, placement, source)
    return asked.verdict(Stages(progress))


@checked(Source)
def bisect(
    artefact: str | Path,
    model: str,
    inputs: Sequence[str] = (),
    *,
    output_names: Sequence[str] = (),
    data: Data = None,
    seed: int = 0,
    criteria: Criteria | None = None,
    max_memory: int = MOST_MEMORY,
    placement: Placement = CPU,
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Verdict:
    """Return the verdict of :func:`verify` with the module and the node that are to blame, whether it passed or not.

    The node is the one that the runtime computes worst from its own inputs; its values are held in at most
    ``max_memory`` bytes at once. Raises what :func:`verify` raises, InputError for a plan, whose graph is gone.
    """
    asked = _Asked(Path(artefact), model, inputs, output_names, data, seed, criteria, placement, source)
    return asked.verdict(Stages(progress), bisect=max_memory)


def verdict_of(
    module: nn.Module,
    inputs: Sequence[str] | Sequence[TensorSpec],
    artefact: str | Path | ir.Model | onnx.ModelProto | Runner,
    *,
    criteria: Criteria | None = None,
    feeds: Sequence[Feed] | None = None,
    placement: Placement = CPU,
) -> Verdict:
    """Return the verdict on ``artefact`` against a module at hand, as in a test of one's own.

    Args:
        module: in eval mode.
        inputs: its specs, or their texts.
        artefact: a bundle, an ONNX file or a plan, by its path; a model of onnx or onnx_ir; or anything that runs.
        criteria: of parity.
        feeds: what both are run on; random ones and corners if none are given.
        placement: where it runs, and eager PyTorch.
    """
    require_eval(module, force=False)
    texts = [each for each in inputs if isinstance(each, str)]
    specs = specs_of(texts) if texts else Signature(each for each in inputs if isinstance(each, TensorSpec))
    feeds = feeds or feeds_for(specs, None, 0, module=module)
    if isinstance(artefact, str | Path):
        path = Path(artefact)
        opened = open_artefact(path, () if path.is_dir() else specs.texts(), placement=placement)
        return verdict_on(
            module, opened.specs, opened.runner, opened.graph, feeds, criteria, precision=opened.precision,
            options=opened.options, single=_single(module, opened), exported=lambda: _in_float32(module, opened),
            unfolded=lambda: _unfolded(module, opened),
            placement=placement,
        )  # fmt: skip
    if isinstance(artefact, ir.Model | onnx.ModelProto):
        model = artefact if isinstance(artefact, ir.Model) else ir.from_proto(artefact)
        with in_onnxruntime(model, placement=placement) as session:
            return verdict_on(
                module, specs, session.runner, model, feeds, criteria, precision=computes_in(model),
                options=session.options, placement=placement,
            )  # fmt: skip
    return verdict_on(module, specs, artefact, None, feeds, criteria, placement=placement)


@dataclass(frozen=True)
class _Asked:
    """What ``verify`` and ``bisect`` are asked."""

    artefact: Path
    model: str
    inputs: Sequence[str]
    output_names: Sequence[str]
    data: Data
    seed: int
    criteria: Criteria | None
    placement: Placement
    source: Source

    def verdict(self, stages: Stages, bisect: int | None = None) -> Verdict:
        """Return the verdict; with ``bisect``, bytes of values to hold, the worst node too."""
        with stages("load"):
            opened = open_artefact(
                self.artefact, self.inputs, self.output_names, trust=trusted(self.source), placement=self.placement
            )
            if bisect is not None and opened.graph is None:
                what = "a plan no longer has the graph that it was built of"
                raise InputError(what, where=str(self.artefact), fix="bisect the bundle or the ONNX file")
            checkpoint = load_beside(opened.specs, self.model, self.source)
            app_dir = app_dir_of(self.source)
            feeds = feeds_for(opened.specs, self.data, self.seed, app_dir, checkpoint.module)
        with stages("parity"):
            verdict = verdict_on(
                checkpoint.module, opened.specs, opened.runner, opened.graph, feeds, self.criteria,
                precision=opened.precision, options=opened.options, single=_single(checkpoint.module, opened),
                exported=lambda: _in_float32(checkpoint.module, opened),
                unfolded=lambda: _unfolded(checkpoint.module, opened), max_memory=bisect or MOST_MEMORY,
                placement=self.placement,
            )  # fmt: skip
        if bisect is not None and verdict.first_node is None and opened.graph is not None and not verdict.not_run:
            with stages("bisect"):
                node = worst_node(opened.graph, feeds[0], opened.options, max_memory=bisect, placement=opened.placement)
                verdict = replace(verdict, first_node=None if node is None else str(node))
        notes = (*opened.notes, *checkpoint.notes, *_other_weights(opened.bundle, checkpoint), *verdict.notes)
        return replace(verdict, notes=notes)


@contextmanager
def _unfolded(module: nn.Module, opened: Artefact) -> Iterator[Unfolded]:
    """Give the module's own export in a session of its own."""
    graph = _exported(module, opened)
    with in_onnxruntime(graph, options=opened.options, placement=opened.placement) as session:
        yield Unfolded(session.runner, graph)


def _single(module: nn.Module, opened: Artefact) -> ir.Model | None:
    """Return the float32 graph that a 16-bit one was rounded from, made once more as its ledger tells."""
    if opened.graph is None or opened.precision == "fp32":
        return None
    graph = _in_float32(module, opened)
    text = opened.graph.metadata_props.get(METADATA_KEY)
    if text is None:
        return graph
    kinds = {operator(node) for node in opened.graph.graph.all_nodes()}
    try:
        ledger = Ledger.from_json(text)
    except ValueError:  # of another version of normdeploy, or nobody's
        return None
    centred = any(MEAN_IS_GONE in entry.reason for entry in ledger)
    target: Target = "onnxruntime" if "SimplifiedLayerNormalization" in kinds else "onnx"
    keep = [entry.module for entry in ledger if KEPT in entry.codes]
    try:
        return fold(graph, keep=keep, layernorm="centre" if centred else "affine", target=target).model
    except NormdeployError:  # what cannot be folded is judged by its outputs
        return None


def _in_float32(module: nn.Module, opened: Artefact) -> ir.Model:
    """Return the module's own export at the opset of the artefact, widened where it computes in 16 bits."""
    return widened(to_graph(module, opened.specs, opset=_opset(opened)).model)


def _opset(opened: Artefact) -> int | None:
    opset = opened.graph.opset_imports.get("") if opened.graph is not None else None
    return opset if opset in OPSETS else None


def _exported(module: nn.Module, opened: Artefact) -> ir.Model:
    """Return the module's own export, in the precision and at the opset of the artefact."""
    graph = to_graph(module, opened.specs, opset=_opset(opened)).model
    return graph if opened.precision == "fp32" else to_precision(graph, opened.precision)


def _other_weights(bundle: Bundle | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    if bundle is None or bundle.manifest.weights_sha256 == checkpoint.weights_sha256:
        return ()
    return ("the weights given are not the file that the bundle was exported from",)


def beside(
    artefact: str | Path,
    model: str | None,
    inputs: Sequence[str],
    *,
    seconds: float,
    threads: int,
    processes: int,
    batch: int | None,
    compiled: bool,
    placement: Placement,
    stages: Stages,
    source: Source,
) -> Comparison | Latency:
    """Return the latency as :func:`normdeploy.bench` does, of what is more than a bundle alone."""
    with stages("load"):
        opened = open_artefact(Path(artefact), inputs, threads=threads, trust=trusted(source), placement=placement)
        feed = opened.usual_feed() if batch is None else batch_feed(opened.specs, batch)
        opened.runner(feed.arrays)  # in its own process, which has limits, before it is timed in one without
        module = None if model is None else load_beside(opened.specs, model, source).module
    with stages("latency"):
        if model is None or module is None:
            clock = clock_of(placement)
            return alone(opened.here(threads, clock.stream), feed, seconds, clock)
        if opened.graph is None:
            plan = opened.here(threads)
            runners = {"eager": EagerRunner(module, opened.specs, placement=placement), "deployed": plan}
            rounds = take_rounds(
                runners, feed, threads=threads, seconds=seconds, fewest=FEWEST, clock=clock_of(placement)
            )
            names = {"eager": "eager", "deployed": plan.name}
            return over_processes([rounds.wall], names, threads=threads, feed=feed.name, device=[rounds.device])
        with written(opened.graph) as path, written(_exported(module, opened)) as unfolded:
            job = Job(
                model, plain(source), tuple(opened.texts()), str(path), str(unfolded), dict(opened.options), threads,
                seconds, 0, placement.as_json(), compiled,
            )  # fmt: skip
            return measured(job, feed, processes)
