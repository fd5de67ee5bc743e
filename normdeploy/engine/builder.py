"""Graph → plan: lint, precision, build in a process of its own, layer table, verdict on the precision."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass

from normdeploy import onnxfile
from normdeploy.disk import scratch
from normdeploy.engine import gpu
from normdeploy.engine.audit import require_precision
from normdeploy.engine.backends import Backend, choose, choose_for_plugins
from normdeploy.engine.job import PLAN, Job, Result
from normdeploy.engine.layers import EngineLayer, Owner, from_inspector, from_log
from normdeploy.engine.lint import Problem, lint, refuse, unsupported
from normdeploy.engine.plugin_graph import plugin_form
from normdeploy.engine.process import Progress, run
from normdeploy.engine.profiles import Range, profile
from normdeploy.engine.sidecar import Sidecar, sha256, write_plan
from normdeploy.errors import InputError, VerdictError
from normdeploy.graph import infer_types, label, module_name, operator
from normdeploy.limits import more_memory
from normdeploy.precision import HEAVY, Precision, norm_chains, to_precision, wrong_precision
from normdeploy.specs import Dim, TensorSpec

_MIB = 1 << 20
_LEVELS = range(6)
_SOURCE = re.compile(r"^\w+\.cpp:\d+: ")


@dataclass(frozen=True)
class EngineBuild:
    """A built engine.

    Attributes:
        plan: the serialized engine.
        sidecar: what it was built by, for and from, with the layer table.
        seconds: how long the build took.
    """

    plan: bytes
    sidecar: Sidecar
    seconds: float

    @property
    def layers(self) -> tuple[EngineLayer, ...]:
        """Return the layer table."""
        return self.sidecar.layers

    def write(self, path: Path, *, force: bool = False) -> Path:
        """Write plan and sidecar; InputError where ``path`` exists and ``force`` is not given."""
        return write_plan(path, self.plan, self.sidecar, force=force)


def require_targets(sm: Sequence[str]) -> None:
    """Raise InputError unless the backend that is taken for ``sm``, compute capabilities, builds for each of them.

    Its process is asked, in about a second, for the list is the backend's own.
    """
    chosen = choose(None, gpu=gpu.find() is not None, sm=sm)
    with scratch() as folder:
        job = Job(backend=chosen.name, model="", operators=(), profiles=(), lint_only=True, sm=tuple(sm))
        run(job, folder, {}, None)


def build(
    model: Path | ir.Model,
    specs: Sequence[TensorSpec] = (),
    *,
    precision: Precision = "fp32",
    backend: str | None = None,
    more_profiles: Sequence[Sequence[TensorSpec]] = (),
    sm: Sequence[str] = (),
    workspace_mib: int | None = None,
    level: int | None = None,
    version_compatible: bool = False,
    refit: bool = False,
    timing_cache: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> EngineBuild:
    """Build the engine of ``model``, an ONNX file or a graph, which is not changed. Nothing is written.

    Args:
        model: float32, folded; or in ``precision`` already, as a graph with LayerNorm plugins must be, for which the
            full TensorRT is needed.
        specs: inputs with their ranges, which are the first optimization profile; fixed shapes may be left out.
        precision: what the engine computes in; inputs and outputs stay as they are.
        backend: ``tensorrt`` or ``tensorrt_rtx``; None takes the first that can build here.
        more_profiles: the specs of further profiles.
        sm: compute capabilities to aim at, such as ``89``; TensorRT-RTX only, which aims at all it knows without.
        workspace_mib: most scratch memory, in MiB.
        level: builder optimization level, 0 (fast build) to 5 (fast engine).
        version_compatible, refit: the backend's flags of these names; they need a GPU.
        timing_cache: folder that keeps kernel timings between builds; TensorRT only, TensorRT-RTX times nothing.
        progress: called with each step.

    Raises:
        InputError: the model, a spec or an option does not fit (every problem is listed), or the builder failed.
        UnavailableError: no backend, or no GPU for one that needs it.
        VerdictError: the built engine does not compute in ``precision``.
    """
    started = time.perf_counter()
    if level is not None and level not in _LEVELS:
        raise InputError("no such builder optimization level", where=str(level), fix="choose 0 to 5")
    device = gpu.find()
    given = onnxfile.load(model) if isinstance(model, Path) else model
    plugin = plugin_form(given)
    if plugin is None:
        chosen = choose(backend, gpu=device is not None, sm=sm)
    else:
        who, instead = "a graph of LayerNorm plugins", "build the model that has none"
        chosen = choose_for_plugins(backend, gpu=device is not None, sm=sm, who=who, instead=instead)
    graph = _prepare(given, precision)
    filled = [_with_fixed(graph, each) for each in (specs, *more_profiles)]
    profiles = tuple(profile(each) for each in filled)
    problems = tuple(dict.fromkeys(problem for each in filled for problem in lint(graph, each)))
    with scratch() as folder:
        job = Job(
            backend=chosen.name,
            model=str(_save(graph, folder)),
            operators=tuple(sorted({operator(node).rpartition("::")[2] for node in graph.graph.all_nodes()})),
            profiles=tuple({key: (each.min, each.opt, each.max) for key, each in p.items()} for p in profiles),
            lint_only=bool(problems),
            sm=tuple(sm),
            workspace=None if workspace_mib is None else workspace_mib * _MIB,
            level=level,
            version_compatible=version_compatible,
            refit=refit,
            timing_cache=None if timing_cache is None else str(timing_cache.resolve()),
            gpu=None if device is None else str(device),
            plugin_sm=int(device.capability.removeprefix("SM")) if plugin is not None and device is not None else None,
        )
        owners = {str(node.name): Owner(module_name(node), operator(node)) for node in graph.graph.all_nodes()}
        result = run(job, folder, owners, progress)
        refuse((*problems, *unsupported(graph, result.unknown_operators, chosen.title)))
        _refuse_failure(result, chosen, owners, workspace_mib)
        plan = (folder / PLAN).read_bytes()
    sidecar = _sidecar(plan, graph, job, result, profiles, precision, owners)
    return EngineBuild(plan, sidecar, time.perf_counter() - started)


def _prepare(model: ir.Model, precision: Precision) -> ir.Model:
    """A copy in ``precision``, functions inlined, every node with a name that is its own and safe in a log."""
    graph = model.clone()
    if plugin_form(model) is None:
        graph = to_precision(model, precision)
    elif wrong := wrong_precision(model, precision):
        fix = f"fold with --plugin --precision {precision}, or leave --precision out"
        raise InputError(f"a graph of plugins is not converted to {precision}", where=", ".join(wrong), fix=fix)
    InlinePass()(graph)
    if any(out.type is None for node in graph.graph.all_nodes() for out in node.outputs):
        with more_memory(1 << 30):
            infer_types(graph)
    for node in graph.graph.all_nodes():
        node.name = re.sub(r"[^\w./:-]", "_", node.name or operator(node))
    NameFixPass()(graph)
    if wrong := wrong_precision(graph, precision):
        raise VerdictError(f"the graph does not compute in {precision}", where=", ".join(wrong))
    return graph


def _with_fixed(model: ir.Model, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs in the order of the model's inputs; those of fixed shape that are missing are read off the model."""
    given = {spec.name: spec for spec in specs}
    for value in model.graph.inputs:
        shape = value.shape
        if value.name not in given and shape is not None and shape.is_static() and value.dtype is not None:
            dims = tuple(Dim(None, int(size), int(size), int(size)) for size in shape.numpy())
            given[str(value.name)] = TensorSpec(str(value.name), dims, value.dtype.numpy().name)
    order = [str(value.name) for value in model.graph.inputs]
    return tuple(sorted(given.values(), key=lambda spec: order.index(spec.name) if spec.name in order else len(order)))


def _save(model: ir.Model, folder: Path) -> Path:
    """The file of ``model``, its larger weights beside it: they may exceed what one file holds, or lie elsewhere."""
    path = folder / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return path


def _refuse_failure(result: Result, backend: Backend, owners: Mapping[str, Owner], workspace_mib: int | None) -> None:
    problems = [
        Problem(
            owners[error.node].module or error.node if error.node in owners else error.operator or "the graph",
            error.node,
            error.what.strip().splitlines()[0],
            "rewrite or replace this module",
        )
        for error in result.parser_errors
    ]
    refuse(tuple(dict.fromkeys(problems)), what=f"{backend.title}'s parser refuses the model")
    if not result.builder_errors:
        return
    text = " | ".join(_with_modules(message, owners) for message in result.builder_errors)
    if workspace_mib is not None and "workspace" in text:
        raise InputError(
            f"out of workspace: no kernel fits in {workspace_mib} MiB",
            where=text,
            fix="give a larger --workspace, or none",
        )
    raise InputError(f"{backend.title} cannot build the model", where=text, fix="replace the module that it names")


def _with_modules(message: str, owners: Mapping[str, Owner]) -> str:
    """``message`` on one line, with the PyTorch module behind each node that it names."""
    words = re.findall(r"[\w./:-]+", message)
    modules = dict.fromkeys(owners[word].module for word in words if word in owners and owners[word].module)
    line = " ".join(message.split())
    return f"{', '.join(modules)}: {line}" if modules else line


def _sidecar(
    plan: bytes,
    graph: ir.Model,
    job: Job,
    result: Result,
    profiles: tuple[dict[str, Range], ...],
    precision: Precision,
    owners: Mapping[str, Owner],
) -> Sidecar:
    layers = from_inspector(result.inspector, owners, HEAVY) if result.inspector else ()
    layers = layers or from_log(result.layers, owners, HEAVY)
    norms = [str(node.name) for chain in norm_chains(graph) for node in chain]
    quantized = any(operator(node) == "DequantizeLinear" for node in graph.graph.all_nodes())
    heavy = {str(node.name): label(node) for node in graph.graph.all_nodes() if operator(node) in HEAVY}
    notes = require_precision(layers, precision, heavy, quantized=quantized, norm_nodes=norms)
    if job.timing_cache is not None and result.timing_cache_key is None:
        notes += ("no timing cache was used: this backend times no kernels",)
    options = {"workspace": job.workspace, "level": job.level}
    flags = {"version_compatible": job.version_compatible, "refit": job.refit}
    return Sidecar(
        backend=job.backend,
        backend_version=result.version,
        gpu=job.gpu if not result.targets else None,
        compute_capabilities=result.targets,
        inputs=tuple(str(value.name) for value in graph.graph.inputs),
        outputs=tuple(str(value.name) for value in graph.graph.outputs),
        profiles=profiles,
        precision=precision,
        plugins=plugin_form(graph),
        sha256=sha256(plan),
        size=len(plan),
        timing_cache_key=result.timing_cache_key,
        options={name: value for name, value in (options | flags).items() if value is not None and value is not False},
        layers=layers,
        notes=(*notes, *(_SOURCE.sub("", warning) for warning in result.warnings)),
    )
