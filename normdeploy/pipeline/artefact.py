"""What ``verify`` and ``bench`` are given, a bundle, an ONNX file or a plan: found out what it is, checked, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.bundle.manifest import MANIFEST, PLAN
from normdeploy.engine import Sidecar, read_plan
from normdeploy.engine.profiles import covering
from normdeploy.engine.sidecar import sidecar_path
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.pipeline.engines import computes_in, read_graph
from normdeploy.pipeline.session import open_session
from normdeploy.pipeline.source import feeds_for, specs_of
from normdeploy.precision import Precision
from normdeploy.runtime.isolated import IsolatedRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.optimizers import faithful
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner
from normdeploy.runtime.tensorrt import TensorRTRunner
from normdeploy.specs import Signature, TensorSpec, sizes_at

_POINTS: tuple[Literal["min", "opt", "max"], ...] = ("min", "opt", "max")


@dataclass(frozen=True)
class Artefact:
    """A deployed model that runs.

    Attributes:
        specs: its inputs.
        runner: without the checks of the inputs.
        precision: what it computes in.
        graph: what it was made of; None for a plan, which no longer tells.
        bundle: the one that it is, or that it lies in.
        options: session options that it runs with: a bundle's own, or those that a file needs.
        session_notes: why a file needs them.
        placement: where an ONNX model runs.
    """

    specs: tuple[TensorSpec, ...]
    runner: Runner
    precision: Precision
    graph: ir.Model | None
    bundle: Bundle | None
    options: Mapping[str, str] = field(default_factory=dict)
    session_notes: tuple[str, ...] = ()
    placement: Placement = CPU

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was allowed to run code, with its sha256, and which session options had to be added."""
        sidecar = self.runner.sidecar if isinstance(self.runner, TensorRTRunner) else None
        carries = sidecar is not None and sidecar.carries_code
        trusted = (f"trusted to run code: the plan of sha256 {sidecar.sha256}",) if sidecar and carries else ()
        return (*trusted, *self.session_notes)

    def texts(self) -> list[str]:
        """Return its inputs as they are spelled, values that are no tensors included."""
        return self.specs.texts() if isinstance(self.specs, Signature) else [*map(str, self.specs)]

    def here(self, threads: int, stream: int | None = None) -> Runner:
        """Return it in this process, where it can be timed: it has run in another one without a crash.

        ``stream`` is the address of the CUDA stream that it launches on, its own if none is given.
        """
        if not isinstance(self.runner, IsolatedRunner):
            return self.runner
        return OnnxRuntimeRunner(
            self.runner.path, threads=threads, options=self.options, placement=self.placement, stream=stream
        )

    def usual_feed(self) -> Feed:
        """Return inputs at the usual sizes: a bundle's golden ones, else random ones."""
        return Feed("golden", dict(self.bundle.golden.inputs)) if self.bundle else feeds_for(self.specs, None, 0)[0]


def open_artefact(
    path: Path,
    inputs: Sequence[str],
    output_names: Sequence[str] = (),
    *,
    threads: int = 0,
    trust: Sequence[Path] = (),
    placement: Placement = CPU,
) -> Artefact:
    """Return the artefact at ``path``; ``inputs`` are the specs of one that is not, and does not lie in, a bundle.

    ``output_names`` are what its outputs are called, where that is not by the keys of what forward returns.

    ``trust`` names the files that may run code, as a plan that carries its own runtime does. ``placement`` is where an
    ONNX model runs; a plan runs on its GPU.

    Raises what :func:`normdeploy.load_bundle` does; for a plan InputError where it is damaged, does not fit the specs,
    or was built by another version or for another GPU, UnavailableError without a GPU.
    """
    is_plan = path.suffix == ".plan" or sidecar_path(path).is_file()
    bundle = _bundle(path, threads, placement) if path.is_dir() or is_plan else None
    if bundle is not None and (inputs or output_names):
        given = "--input" if inputs else "--output-names"
        raise InputError("a bundle has its own input specs and output names", where=given, fix=f"leave {given} out")
    if is_plan:
        plan = (bundle and bundle.plan_path) or path  # of a bundle what was checked, not what has its name by now
        specs = bundle.specs if bundle else specs_of(inputs, output_names)
        _require_covered(read_plan(plan)[1], specs)
        runner = TensorRTRunner(plan, trust=trust, where=path)
        return Artefact(specs, runner, runner.sidecar.precision, None, bundle)
    if bundle is not None:
        graph = read_graph(bundle.model_path)
        options = bundle.manifest.session_options
        notes = (*placement.notes, *getattr(bundle.runner, "notes", ()))
        return Artefact(bundle.specs, bundle.runner, computes_in(graph), graph, bundle, options, notes, placement)
    graph, specs = read_graph(path), specs_of(inputs, output_names)
    _require_named(graph, specs)
    session = open_session(path, threads, faithful(graph), placement=placement)
    notes = (*placement.notes, *session.notes)
    return Artefact(specs, session.runner, computes_in(graph), graph, None, session.options, notes, placement)


def _bundle(path: Path, threads: int, placement: Placement) -> Bundle | None:
    """The bundle that ``path`` is, or that the plan ``path`` lies in."""
    if path.is_dir():
        return load_bundle(path, threads=threads, isolated=True, **placement.as_json())
    return load_bundle(path.parent, isolated=True) if path.name == PLAN and (path.parent / MANIFEST).is_file() else None


def _require_named(graph: ir.Model, specs: Sequence[TensorSpec]) -> None:
    """InputError unless the graph takes inputs of these names, as they are in the file."""
    names = [spec.name for spec in specs]
    inputs = [str(value.name) for value in graph.graph.inputs if not value.is_initializer()]
    if sorted(names) != sorted(inputs):
        raise InputError(
            f"the graph takes the inputs {', '.join(inputs)}",
            where=f"--input gives {', '.join(names)}",
            fix=f"name these, or export the graph with input_names={names} where the module's forward calls them so",
        )


def _require_covered(sidecar: Sidecar, specs: Sequence[TensorSpec]) -> None:
    """InputError unless the engine takes inputs of these names, at the smallest, usual and largest sizes."""
    names = [spec.name for spec in specs]
    if sorted(names) != sorted(sidecar.inputs):
        taken, given = ", ".join(sidecar.inputs), ", ".join(names)
        raise InputError(f"the engine takes the inputs {taken}", where=f"--input gives {given}", fix="name these")
    for point in _POINTS:
        sizes = sizes_at(specs, point)
        covering(sidecar.profiles, {spec.name: spec.shape(sizes) for spec in specs})
