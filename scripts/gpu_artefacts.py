"""The artefacts that ``scripts/gpu_parity.py`` judges and times, each with the graph that it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.checkpoint import load
from normdeploy.engine import BACKENDS, build
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.export import arguments, bind_inputs, flatten_outputs
from normdeploy.fold import Level, Target, fold
from normdeploy.parity.compare import Unfolded
from normdeploy.parity.feeds import Feed
from normdeploy.parity.plugins import with_plugins
from normdeploy.pipeline.account import norm_counts
from normdeploy.pipeline.tune import SESSIONS, SEVERAL_FORMS, form_name, other_forms
from normdeploy.precision import Precision, to_precision
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.optimizers import faithful
from normdeploy.runtime.placement import Placement, placed
from normdeploy.runtime.runner import Runner
from normdeploy.runtime.tensorrt import TensorRTRunner
from normdeploy.specs import TensorSpec, parse

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A trained module and its inputs."""

    name: str
    module: nn.Module
    specs: tuple[TensorSpec, ...]
    feeds: tuple[Feed, ...] = ()


class EagerCuda:
    """The module on the GPU, as a runner; compiled if asked."""

    def __init__(
        self, subject: Subject, dtype: torch.dtype | None, *, compiled: bool = False, device: str = "cuda"
    ) -> None:
        bind_inputs(subject.module, subject.specs)
        self._device, module = device, copy.deepcopy(subject.module).to(device, dtype)
        self._module = torch.compile(module, dynamic=True) if compiled else module
        self._original, self._specs, self._dtype = module, subject.specs, dtype
        self.name = "torch.compile" if compiled else "eager CUDA"
        self.inputs = tuple(spec.name for spec in subject.specs)
        self.outputs: tuple[str, ...] = ()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once, copies to the GPU and back included; floating outputs are widened to float32."""
        with torch.inference_mode():
            on_device = {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in feeds.items()}
            tensors = {name: self._cast(tensor) for name, tensor in on_device.items()}
            args, kwargs = arguments(self._original, self._specs, tensors)
            result = self._module(*args, **kwargs)
        outputs = flatten_outputs(result, specs=self._specs)
        self.outputs = tuple(outputs)
        wide = {name: t.float() if t.is_floating_point() else t for name, t in outputs.items()}
        return {name: tensor.cpu().numpy() for name, tensor in wide.items()}

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what launches forward on tensors that lie on the GPU."""
        tensors = {
            name: self._cast(torch.from_numpy(np.array(array)).to(self._device)) for name, array in feeds.items()
        }
        args, kwargs = arguments(self._original, self._specs, tensors)

        def launch() -> None:
            with torch.inference_mode():
                self._module(*args, **kwargs)

        return launch

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Form:
    """What of ``export``'s options decides which artefacts there are; with CUDA's ``stream``."""

    target: Target = "onnx"
    tf32: bool = False
    plugin: PluginForm | None = None
    stream: int | None = None
    engine: bool = False
    sm: Sequence[str] = ()
    tune: bool = False
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Made:
    """An artefact that is ready to run.

    Attributes:
        runner: runs it.
        graph: what it runs; None for the module itself.
        single: the float32 graph that ``graph`` was rounded from; None where it computes in float32.
        unfolded: makes a runner of the unfolded graph in the same runtime; None where ``graph`` is that one.
    """

    runner: Runner
    graph: ir.Model | None = None
    single: ir.Model | None = None
    unfolded: Callable[[], Unfolded] | None = None


Factory = Callable[[], Made]
Run = Callable[[ir.Model, str], Runner]
"""Makes a runner of a graph, its files under a name."""


@dataclass(frozen=True)
class Network:
    """One network in one precision: the subject, and its graphs in float32 before and after the fold.

    ``folder`` is where files go, ``form`` what was asked for.
    """

    subject: Subject
    precision: Precision
    exported: ir.Model
    folded: ir.Model
    folder: Path
    form: Form

    def made(
        self, single: ir.Model, run: Run, name: str, change: Callable[[ir.Model], ir.Model] = lambda graph: graph
    ) -> Made:
        """Return what ``run`` makes of ``single``, a graph in float32, in the precision, and after a ``change``."""
        graph = change(self._narrow(single))
        return Made(
            run(graph, name), graph, None if self.precision == "fp32" else change(single),
            None if single is self.exported else lambda: self._unfolded(run, f"{name}.unfolded"),
        )  # fmt: skip

    def _narrow(self, graph: ir.Model) -> ir.Model:
        return to_precision(graph, self.precision)

    def _unfolded(self, run: Run, name: str) -> Unfolded:
        graph = self._narrow(self.exported)
        return Unfolded(run(graph, name), graph)

    def in_session(self, placement: Placement, options: Mapping[str, str] | None = None) -> Run:
        """Return what opens a graph in ONNX Runtime, with the options without which it is another model."""

        def run(graph: ir.Model, name: str) -> Runner:
            file = self._file(name, "onnx")
            ir.save(graph, file, external_data=f"{file.name}.data")
            return OnnxRuntimeRunner(
                file, placement=placement, options={**faithful(graph), **(options or {})}, stream=self.form.stream
            )

        return run

    def as_engine(self, backend: str) -> Run:
        """Return what builds an engine of a graph."""

        def run(graph: ir.Model, name: str) -> Runner:
            built = build(graph, self.subject.specs, precision=self.precision, backend=backend, sm=self.form.sm)
            return TensorRTRunner(built.write(self._file(name, "plan")))

        return run

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / f"{self.subject.name}.{self.precision}.{name}.{kind}"


def artefacts(network: Network) -> Iterator[tuple[str, Factory]]:
    """Every artefact by name, and how it is made; eager CUDA first, which the others are timed against."""
    form, dtype = network.form, DTYPES[network.precision]
    cuda, captured = placed("cuda", tf32=form.tf32), placed("cuda", tf32=form.tf32, cuda_graph=True)
    session = network.in_session(cuda)
    yield "eager CUDA", lambda: Made(EagerCuda(network.subject, dtype))
    yield "torch.compile", lambda: Made(EagerCuda(network.subject, dtype, compiled=True))
    yield "onnxruntime CUDA, unfolded", lambda: network.made(network.exported, session, "unfolded")
    yield "onnxruntime CUDA", lambda: network.made(network.folded, session, "cuda")
    yield "onnxruntime CUDA graph", lambda: network.made(network.folded, network.in_session(captured), "captured")
    if form.tune:
        yield from tuned(network, cuda)
    if form.target == "onnxruntime":
        return
    tensorrt = placed(provider="tensorrt", tf32=form.tf32)
    yield (
        "onnxruntime TensorRT",
        lambda: network.made(network.folded, network.in_session(tensorrt), "tensorrt-provider"),
    )
    for backend in BACKENDS:
        build_with = network.as_engine(backend.name)
        yield backend.title, partial(network.made, network.folded, build_with, backend.name)
        if plugin := form.plugin:
            with_them = partial(_with_plugins, form=plugin)
            made = partial(network.made, network.folded, build_with, f"{backend.name}.{plugin}", with_them)
            yield f"{backend.title}, {plugin} plugins", made


def _with_plugins(graph: ir.Model, form: PluginForm) -> ir.Model:
    return with_plugins(graph, form)[0]


def tuned(network: Network, placement: Placement) -> Iterator[tuple[str, Factory]]:
    """Every form that ``export --tune`` would measure beside the default one, by name."""
    if not SEVERAL_FORMS & norm_counts(network.folded).keys():
        return
    form = network.form

    def made(level: Level, target: Target, options: Mapping[str, str], name: str) -> Made:
        single = fold(network.exported, keep=form.keep, layernorm=level, target=target).model
        return network.made(single, network.in_session(placement, options), name)

    levels: list[tuple[Level, Target]] = [("affine", form.target), *other_forms(form.target, engine=form.engine)]
    for index, ((level, target), options) in enumerate(product(levels, SESSIONS)):
        if index:  # the first is the default, which has its row
            name = f"onnxruntime CUDA, {form_name(level, target, options)}"
            yield name, partial(made, level, target, options, f"form{index}")


def digits() -> Iterator[Subject]:
    """The four networks of this repository."""
    for name in ("resnet", "conv1d", "conv3d", "vit"):
        weights = ROOT / f"models/digits_{name}.safetensors"
        module = load(f"models.digits:{name}", app_dir=ROOT, weights=weights).module
        yield Subject(f"digits_{name}", module, parse(["x:N=1..16..64x1x8x8@f32"]))
