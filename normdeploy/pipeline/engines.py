"""``build``: a bundle or an ONNX file goes in, a TensorRT plan with its sidecar comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import onnx_ir as ir

from normdeploy import engine, onnxfile
from normdeploy.arguments import checked
from normdeploy.bundle import load_bundle
from normdeploy.engine import EngineBuild, gpu
from normdeploy.engine.backends import choose, choose_for_plugins
from normdeploy.engine.layernorm_times import is_faster, times_for
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.engine.plugin_graph import plugin_form as form_of
from normdeploy.engine.process import Progress
from normdeploy.errors import InputError, UnavailableError
from normdeploy.fold import Note
from normdeploy.graph import operator
from normdeploy.parity.feeds import Feed
from normdeploy.parity.overflow import overflow_notes
from normdeploy.parity.plugins import where_faster, with_plugins
from normdeploy.pipeline.files import check_plugin
from normdeploy.pipeline.places import check_plan
from normdeploy.precision import DTYPES, HEAVY, Precision, to_precision, wrong_precision
from normdeploy.specs import TensorSpec, parse


class BuildOptions(TypedDict, total=False):
    """What :func:`normdeploy.engine.build` takes as it is."""

    backend: str | None
    sm: Sequence[str]
    workspace_mib: int | None
    level: int | None
    version_compatible: bool
    refit: bool
    timing_cache: Path | None


@checked(BuildOptions)
def build(
    model: str | Path,
    out: str | Path,
    inputs: Sequence[str] = (),
    *,
    precision: Precision | None = None,
    plugin: bool = False,
    plugin_form: PluginForm = "aot",
    more_profiles: Sequence[Sequence[str]] = (),
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[BuildOptions],
) -> EngineBuild:
    """Build the engine of ``model``, a bundle or an ONNX file, and write it to ``out``, its sidecar beside it.

    Args:
        model: a bundle, which knows its inputs, or an ONNX file.
        out: the plan; its sidecar has ``.json`` appended.
        inputs: one spec an input of an ONNX file; those of fixed shape may be left out.
        precision: what the engine computes in; None takes what the model computes in.
        plugin: let the LayerNorm plugin run the norms: each is proven in float64 before the build. A file that has
            plugins already needs no asking.
        plugin_form: ``aot``, compiled into the engine, or ``python``, for shapes that change, launched by Python.
        more_profiles: the specs of further optimization profiles.
        force: replace an older plan.
        progress: called with each step of the builder.
        options: see :func:`normdeploy.engine.build`.

    On a bundle's golden inputs, activations that overflow 16 bits are noted by module name. Raises what
    :func:`normdeploy.engine.build` raises, and what :func:`normdeploy.load_bundle` does; ``out`` then stays as it was.
    """
    model, out = Path(model), Path(out)
    check_plugin(plugin, plugin_form, "tensorrt")
    check_plan(model, out, force=force)
    try:
        require_backend(options.get("backend"), options.get("sm", ()), plugin=plugin)
    except UnavailableError:
        if plugin:
            with_plugins(_resolved(model, inputs)[0])  # of a model that has no norms no machine could build it
        raise
    _check_workspace(options.get("workspace_mib"))
    graph, specs, feeds = _resolved(model, inputs)
    precision = precision or computes_in(graph)
    deployed, left = _deployed(graph, precision, plugin_form if plugin else None, options.get("backend"))
    built = engine.build(
        deployed,
        specs,
        precision=precision,
        more_profiles=[parse(each) for each in more_profiles],
        progress=progress,
        **options,
    )
    notes = (*map(str, left), *(overflow_notes(to_precision(graph, precision), feeds) if feeds else ()))
    if notes:
        sidecar = built.sidecar.model_copy(update={"notes": (*built.sidecar.notes, *notes)})
        built = replace(built, sidecar=sidecar)
    built.write(out, force=force)
    return built


def _deployed(
    graph: ir.Model, precision: Precision, form: PluginForm | None, backend: str | None
) -> tuple[ir.Model, tuple[Note, ...]]:
    """Return the graph that the engine is built of, and what is to be said of its plugins.

    Unasked, norms are plugins where that is recorded to be faster on this GPU.
    """
    if form is not None:
        return with_plugins(to_precision(graph, precision), form)
    return recorded(graph, precision, backend)


def recorded(
    graph: ir.Model, precision: Precision, backend: str | None, sm: Sequence[str] = ()
) -> tuple[ir.Model, tuple[Note, ...]]:
    """Return ``graph`` in ``precision`` with plugins for the norms recorded to be faster so on this GPU, and a note.

    Where none is, ``graph`` as it is.
    """
    device = gpu.find()
    if device is None or form_of(graph) is not None or choose(backend, gpu=True, sm=sm).name != "tensorrt":
        return graph, ()
    times = times_for(device.model)
    converted = to_precision(graph, precision) if times else graph
    deployed, said = where_faster(converted, functools.partial(is_faster, times))
    return (graph, ()) if deployed is converted else (deployed, said)


def require_backend(backend: str | None, sm: Sequence[str], *, plugin: bool = False) -> None:
    """Raise UnavailableError, with the install command, unless an engine can be built here: before any work is done."""
    (choose_for_plugins if plugin else choose)(backend, gpu=gpu.find() is not None, sm=sm)


_NARROW: dict[Precision, ir.DataType] = {"fp16": DTYPES["fp16"], "bf16": DTYPES["bf16"]}


def computes_in(model: ir.Model) -> Precision:
    """Return what the convolutions and matrix products of ``model`` compute in; fp32 where they differ.

    Where it has none, a 16-bit type that any other operator but a cast reads decides.
    """
    if not any(operator(node) in HEAVY for node in model.graph.all_nodes()):
        nodes = (node for node in model.graph.all_nodes() if operator(node) != "Cast")
        read = {value.dtype for node in nodes for value in node.inputs if value is not None}
        narrow = [precision for precision, dtype in _NARROW.items() if dtype in read]
        return narrow[0] if len(narrow) == 1 else "fp32"
    for precision in ("fp32", "fp16", "bf16"):
        if not wrong_precision(model, precision):
            return precision
    return "fp32"


def read_graph(path: Path) -> ir.Model:
    """Return the graph in an ONNX file; InputError for any other file."""
    return onnxfile.load(path)


def _resolved(model: Path, inputs: Sequence[str]) -> tuple[ir.Model, tuple[TensorSpec, ...], tuple[Feed, ...]]:
    """The graph, its specs and known feeds; a bundle is checked first, as wherever one is used."""
    if not model.is_dir():
        return read_graph(model), parse(inputs) if inputs else (), ()
    if inputs:
        raise InputError("a bundle has its own input specs", where="--input", fix="leave --input out")
    bundle = load_bundle(model)
    return read_graph(bundle.model_path), bundle.specs, (Feed("golden", dict(bundle.golden.inputs)),)


def _check_workspace(mebibytes: int | None) -> None:
    if mebibytes is not None and mebibytes < 0:
        raise InputError("no such amount of memory", where=f"--workspace {mebibytes}", fix="give MiB, 0 or more")
