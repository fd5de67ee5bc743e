"""Parity and latency of every artefact against eager PyTorch, on the GPU at hand: one table, one JSON.

For the four digit networks, or a checkpoint of your choice, which is given and folded as ``normdeploy export`` does, in
each precision: eager CUDA, torch.compile, ONNX Runtime on its CUDA provider (the unfolded graph, the deployed one, and
that in a CUDA graph), on TensorRT's, and an engine of each TensorRT that is installed. Parity is judged as everywhere:
against float64, relative to eager's own error on the CPU in that precision. Latency is taken in turns with eager CUDA,
on inputs that lie on the GPU, by the wall clock and by CUDA events. What cannot be made here is a row that says why.
With ``--plugin`` there are engines of the graph with LayerNorm plugins as well; with ``--tf32`` the products of eager
PyTorch, whose error on the GPU then counts, and of ONNX Runtime are rounded to TF32, those of engines never. A graph
for ``--target onnxruntime`` has no rows of TensorRT. Engines are rows in any case; with ``--engine`` it is an error,
told before anything is run, if none can be built, and ``--sm`` says for which GPUs. With ``--tune`` there is a row for
each form and session that ``export --tune`` would choose from; with ``--no-bench`` nothing is timed. Of ``export`` it
takes all but what is about a bundle (``--out``, ``--force``, ``--to-torch``) or about timing in other processes
(``--threads``, ``--processes``, ``--batch``, ``--compare``: torch.compile is a row in any case).

It ends in under eight minutes: what was not begun after ``--minutes`` (6.5) is a row that says so.

Exit code 0: all that ran passed; 1: something left its bound; 3: no GPU. This script has not been run on a GPU yet; its
rows, its table, its JSON and its clock are run on a CPU by tests/test_gpu_parity.py.

    python scripts/gpu_parity.py --json scripts/results/gpu_parity.json
    python scripts/gpu_parity.py --app-dir . --model my.nets:factory --weights w.safetensors --input "x:N=1..8x3x32x32"
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # float32 means float32, for every library; before any is loaded

import numpy as np
import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from normdeploy.bench.clocks import Clock, clock_of
from normdeploy.bench.stats import FEWEST, Comparison, over_processes
from normdeploy.bench.timers import take_rounds
from normdeploy.checkpoint import load
from normdeploy.cli.options import EagerOptions, ParityOptions, criteria, listed
from normdeploy.disk import write_file
from normdeploy.engine import BACKENDS, build
from normdeploy.engine.gpu import find
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.errors import NormdeployError, UnavailableError, VerdictError
from normdeploy.export import arguments, bind_inputs, flatten_outputs, to_graph
from normdeploy.fold import Level, Target, fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.plugins import with_plugins
from normdeploy.parity.verdict import Criteria, judge
from normdeploy.pipeline.account import norm_counts
from normdeploy.pipeline.deploy import check_options
from normdeploy.pipeline.files import check_plugin
from normdeploy.pipeline.source import app_dir_of, feeds_for, specs_of
from normdeploy.pipeline.source import load as load_source
from normdeploy.pipeline.tune import SESSIONS, SEVERAL_FORMS, form_name, other_forms
from normdeploy.precision import Precision, to_precision
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import CPU, Placement, placed
from normdeploy.runtime.runner import Runner
from normdeploy.runtime.tensorrt import TensorRTRunner
from normdeploy.specs import TensorSpec, parse

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSET = 22  # the first that has bfloat16 convolutions
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "normdeploy")


@dataclass(frozen=True)
class Subject:
    """A trained module and its inputs."""

    name: str
    module: nn.Module
    specs: tuple[TensorSpec, ...]
    feeds: tuple[Feed, ...] = ()


@dataclass(frozen=True)
class Row:
    """One artefact of one model in one precision; the numbers are None where it could not be run, and ``note`` why."""

    model: str
    precision: str
    artefact: str
    passed: bool | None = None
    smallest_k: float | None = None
    rms: float | None = None
    eager_rms: float | None = None
    p50_ms: float | None = None
    device_p50_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    note: str = ""


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


Factory = Callable[[], Runner]


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


def artefacts(
    subject: Subject, precision: Precision, graphs: tuple[ir.Model, ir.Model], folder: Path, form: Form
) -> Iterator[tuple[str, Factory]]:
    """Every artefact by name, and how it is made of the unfolded and the folded one of ``graphs``."""
    dtype = DTYPES[precision]
    files = [folder / f"{subject.name}.{precision}.{which}.onnx" for which in ("unfolded", "deployed")]
    unfolded, narrow = (to_precision(graph, precision) for graph in graphs)
    for graph, file in zip((unfolded, narrow), files, strict=True):
        ir.save(graph, file, external_data=f"{file.name}.data")
    before, model = files
    cuda, captured = placed("cuda", tf32=form.tf32), placed("cuda", tf32=form.tf32, cuda_graph=True)
    tensorrt, stream = placed(provider="tensorrt", tf32=form.tf32), form.stream
    yield "eager CUDA", lambda: EagerCuda(subject, dtype)
    yield "torch.compile", lambda: EagerCuda(subject, dtype, compiled=True)
    yield "onnxruntime CUDA, unfolded", lambda: OnnxRuntimeRunner(before, placement=cuda, stream=stream)
    yield "onnxruntime CUDA", lambda: OnnxRuntimeRunner(model, placement=cuda, stream=stream)
    yield "onnxruntime CUDA graph", lambda: OnnxRuntimeRunner(model, placement=captured, stream=stream)
    if form.tune:
        yield from tuned(precision, graphs, folder / f"{subject.name}.{precision}", form, cuda)
    if form.target == "onnxruntime":
        return
    yield "onnxruntime TensorRT", lambda: OnnxRuntimeRunner(model, placement=tensorrt, stream=stream)
    for backend in BACKENDS:
        plan = model.with_suffix(f".{backend.name}.plan")
        yield backend.title, partial(engine, lambda: narrow, subject, precision, backend.name, plan, form.sm)
        if plugin := form.plugin:
            plan = model.with_suffix(f".{backend.name}.{plugin}.plan")
            made = partial(
                engine, lambda: with_plugins(narrow, plugin)[0], subject, precision, backend.name, plan, form.sm
            )
            yield f"{backend.title}, {plugin} plugins", made


def tuned(
    precision: Precision, graphs: tuple[ir.Model, ir.Model], folder: Path, form: Form, placement: Placement
) -> Iterator[tuple[str, Factory]]:
    """Every form that ``export --tune`` would measure beside the default one, by name."""
    if not SEVERAL_FORMS & norm_counts(graphs[1]).keys():
        return

    def made(level: Level, target: Target, options: Mapping[str, str], file: Path) -> Runner:
        graph = to_precision(fold(graphs[0], keep=form.keep, layernorm=level, target=target).model, precision)
        file.parent.mkdir(exist_ok=True)
        ir.save(graph, file, external_data=f"{file.name}.data")
        return OnnxRuntimeRunner(file, placement=placement, options=options, stream=form.stream)

    levels: list[tuple[Level, Target]] = [("affine", form.target), *other_forms(form.target, engine=form.engine)]
    for index, ((level, target), options) in enumerate(product(levels, SESSIONS)):
        if index:  # the first is the default, which has its row
            name = f"onnxruntime CUDA, {form_name(level, target, options)}"
            yield name, partial(made, level, target, options, folder / f"{index}.onnx")


def engine(
    graph: Callable[[], ir.Model], subject: Subject, precision: Precision, backend: str, plan: Path, sm: Sequence[str]
) -> Runner:
    """An engine of ``graph``, built into ``plan`` for the GPUs ``sm``."""
    return TensorRTRunner(build(graph(), subject.specs, precision=precision, backend=backend, sm=sm).write(plan))


@dataclass(frozen=True)
class Terms:
    """By what artefacts are judged and timed, and until when, by ``time.monotonic``, one is begun.

    The error of eager PyTorch is that of ``placement``.
    """

    criteria: Criteria
    clock: Clock
    seconds: float
    until: float
    placement: Placement = CPU
    bench: bool = True


def compare(subject: Subject, precision: Precision, made: Sequence[tuple[str, Factory]], terms: Terms) -> list[Row]:
    """A row for each artefact in ``made``; the first is what the others are timed against."""
    feeds = subject.feeds or random_feeds(subject.specs)
    baseline: Runner | None = None
    rows: list[Row] = []
    for name, make in made:
        failed = partial(Row, subject.name, precision, name)
        if time.monotonic() > terms.until:
            rows.append(failed(note="not begun: the time is over"))
            continue
        try:
            runner = make()
            measured = measure(
                subject.module, subject.specs, runner, feeds, dtype=DTYPES[precision], placement=terms.placement
            )
            verdict = judge(measured.measurements, terms.criteria, measured.reference, measured.notes)
            baseline = baseline or runner
            timed = _timed(baseline, runner, feeds[0], terms) if terms.bench else None
        except VerdictError as error:
            rows.append(failed(passed=False, note=error.what))
        except NormdeployError as error:
            rows.append(failed(note=error.what))
        except Exception as error:  # a compiler or a driver raises what it likes: the other rows still count
            rows.append(failed(note=f"{type(error).__name__}: {str(error)[:200]}"))
        else:
            worst = max(measured.measurements, key=lambda each: each.deployed.rms)
            row = failed(verdict.passed, verdict.smallest_k, worst.deployed.rms, worst.eager.rms)
            rows.append(row if timed is None else _with_times(row, timed))
    return rows


def _with_times(row: Row, timed: Comparison) -> Row:
    return replace(
        row, p50_ms=timed.deployed.p50_ms, device_p50_ms=timed.deployed.device_p50_ms, speedup=timed.ratio,
        speedup_low=timed.ratio_low, speedup_high=timed.ratio_high, note="noisy" if timed.noisy else "",
    )  # fmt: skip


def _timed(baseline: Runner, runner: Runner, feed: Feed, terms: Terms) -> Comparison:
    rounds = take_rounds(
        {"eager": baseline, "deployed": runner}, feed, threads=torch.get_num_threads(), seconds=terms.seconds,
        fewest=FEWEST, clock=terms.clock,
    )  # fmt: skip
    names = {"eager": baseline.name, "deployed": runner.name}
    return over_processes([rounds.wall], names, threads=1, feed=feed.name, device=[rounds.device])


def digits() -> Iterator[Subject]:
    """The four networks of this repository."""
    for name in ("resnet", "conv1d", "conv3d", "vit"):
        weights = ROOT / f"models/digits_{name}.safetensors"
        module = load(f"models.digits:{name}", app_dir=ROOT, weights=weights).module
        yield Subject(f"digits_{name}", module, parse(["x:N=1..16..64x1x8x8@f32"]))


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows as the terminal shows them."""
    drawn = Table(title=title)
    headings = ("model", "precision", "artefact", "parity", "smallest k", "rms", "eager rms", "p50 ms", "GPU p50 ms")
    for heading in (*headings, "speed-up"):
        drawn.add_column(heading)
    for row in rows:
        parity = {True: "passed", False: "FAILED", None: "not run"}[row.passed]
        if row.rms is None:
            drawn.add_row(row.model, row.precision, row.artefact, parity, row.note)
            continue
        speed = "–" if row.speedup is None else f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
        taken = (row.smallest_k, row.rms, row.eager_rms, row.p50_ms, row.device_p50_ms)
        numbers = ["–" if value is None else f"{value:.3g}" for value in taken]
        drawn.add_row(row.model, row.precision, row.artefact, parity, *numbers, f"{speed} {row.note}")
    return drawn


def document(rows: Sequence[Row], gpu: str) -> dict[str, object]:
    """The JSON: the GPU, the packages, the rows."""
    versions = {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"] in PACKAGES}
    return {"schema_version": 1, "gpu": gpu, "packages": versions, "rows": [asdict(row) for row in rows]}


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the JSON")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--no-bench", action="store_true", help="leave the latency out")
    parser.add_argument("--seconds", type=float, default=0.5, help="time that each comparison of latency gets")
    parser.add_argument("--minutes", type=float, default=6.5, help="after these no artefact is begun")
    parser.add_argument("--model", help="module:factory of a checkpoint of your own, instead of the digit networks")
    for name in ("app-dir", "weights"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("weights-key", "strip-prefix", "add-prefix"):
        parser.add_argument(f"--{name}")
    for name in ("model-arg", "rename", "ignore-unexpected", "allow-missing", "trust", "input", "input-value", "data"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--keep", action="append", default=[], help="pattern of modules whose norms stay")
    parser.add_argument("--layernorm", choices=["off", "recognise", "affine", "centre"], default="affine")
    parser.add_argument("--target", choices=get_args(Target), default="onnx", help="what will run the model")
    parser.add_argument("--engine", action="store_true", help="end at once if no engine can be built here")
    parser.add_argument("--sm", default="", help="compute capabilities to build engines for, e.g. 86,89,120")
    parser.add_argument("--tune", action="store_true", help="the forms of LayerNorms and sessions as well")
    parser.add_argument("--plugin", action="store_true", help="engines with LayerNorm plugins, too")
    parser.add_argument("--plugin-form", choices=get_args(PluginForm), default="aot")
    parser.add_argument("--tf32", action="store_true", help="let float32 products be rounded to TF32")
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument("--k", type=float)
    parser.add_argument("--floor-eps", type=float)
    parser.add_argument("--output-names", default="")
    parser.add_argument("--force-eval", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def given(asked: argparse.Namespace) -> Subject:
    """Return the checkpoint that is named as for ``normdeploy export``, with its feeds."""
    eager = EagerOptions(**{name: _plain(getattr(asked, name)) for name in EagerOptions.__dataclass_fields__})
    parity = ParityOptions(
        input=tuple(asked.input), input_value=tuple(asked.input_value), output_names=asked.output_names,
        data=tuple(asked.data), seed=asked.seed,
    )  # fmt: skip
    source = eager.source()
    specs, module = specs_of(parity.inputs(), listed(asked.output_names)), load_source(asked.model, source).module
    feeds = feeds_for(specs, parity.data, parity.seed, app_dir_of(source), module)
    return Subject(asked.model, module, specs, feeds)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def form_of(asked: argparse.Namespace) -> Form:
    """Return which artefacts are asked for. Raises what ``export`` does where options contradict each other."""
    check_plugin(asked.plugin, asked.plugin_form, asked.target)
    check_options(asked.engine, listed(asked.sm), asked.layernorm, asked.target, asked.tune, asked.plugin)
    return Form(
        asked.target, asked.tf32, asked.plugin_form if asked.plugin else None, engine=asked.engine,
        sm=listed(asked.sm), tune=asked.tune, keep=asked.keep,
    )  # fmt: skip


def main() -> int:
    arguments, begun = parsed(), time.monotonic()
    form = form_of(arguments)
    gpu = find()
    if gpu is None:
        raise UnavailableError("no NVIDIA GPU that torch can use", fix="run this on a machine with one")
    cuda = placed("cuda", tf32=form.tf32)
    cuda.set_tf32()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = form.tf32
    clock = clock_of(cuda)
    form = replace(form, stream=clock.stream)
    until = begun + 60 * arguments.minutes
    judged_on = cuda if form.tf32 else CPU
    terms = Terms(
        criteria(arguments.k, arguments.floor_eps), clock, arguments.seconds, until, judged_on, not arguments.no_bench
    )
    subjects = [given(arguments)] if arguments.model else list(digits())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects:
            exported = to_graph(subject.module, subject.specs, opset=arguments.opset).model
            folded = fold(exported, keep=arguments.keep, layernorm=arguments.layernorm, target=form.target)
            graphs = exported, folded.model
            for precision in arguments.precision:
                made = list(artefacts(subject, precision, graphs, Path(folder), form))
                rows += compare(subject, precision, made, terms)
    Console().print(table(rows, str(gpu)))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_file(arguments.json, json.dumps(document(rows, str(gpu)), indent=1).encode(), replace=True)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NormdeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
