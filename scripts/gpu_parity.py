"""Parity and latency of every artefact against eager PyTorch, on the GPU at hand: one table, one JSON.

For the four digit networks, or a checkpoint of your choice, which is given and folded as ``normdeploy export`` does, in
each precision: eager CUDA, torch.compile, ONNX Runtime on its CUDA provider (the unfolded graph, the deployed one, and
that in a CUDA graph), on TensorRT's, and an engine of each TensorRT that is installed. Parity is judged by what judges
``export`` and ``verify``: the graph of each in float64 against the module, what rounding it to 16 bits costs, and the
runtime against the float64 run of that very graph, beside eager's own error on the GPU, and where it fails that of the
unfolded graph in the same runtime. Eager CUDA and torch.compile have no graph. A row that fails says where it begins:
by module and, in ONNX Runtime, by the node that its provider computes worst. Latency is taken in turns with eager CUDA,
on inputs that lie on the GPU, by the wall clock and by CUDA events. What cannot be made here is a row that says why.
With ``--plugin`` there are engines of the graph with LayerNorm plugins as well; with ``--tf32`` the products of eager
PyTorch and of ONNX Runtime are rounded to TF32, those of engines never. A graph
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
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # float32 means float32, for every library; before any is loaded
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from gpu_artefacts import DTYPES, Factory, Form, Made, Network, Subject, artefacts, digits
from rich import box
from rich.console import Console
from rich.table import Table

from normdeploy.bench.clocks import Clock, clock_of
from normdeploy.bench.stats import FEWEST, Comparison, over_processes
from normdeploy.bench.timers import take_rounds
from normdeploy.cli.options import EagerOptions, ParityOptions, criteria, listed
from normdeploy.disk import write_file
from normdeploy.engine.gpu import find
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.errors import NormdeployError, UnavailableError, VerdictError
from normdeploy.export import to_graph
from normdeploy.fold import Target, fold
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.verdict import Criteria, Verdict
from normdeploy.pipeline.deploy import check_options
from normdeploy.pipeline.files import check_plugin
from normdeploy.pipeline.judge import begins_in, verdict_on
from normdeploy.pipeline.source import app_dir_of, feeds_for, specs_of
from normdeploy.pipeline.source import load as load_source
from normdeploy.report import view
from normdeploy.runtime.placement import CPU, Placement, placed
from normdeploy.runtime.runner import Runner

OPSET = 22  # the first that has bfloat16 convolutions
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "normdeploy")


@dataclass(frozen=True)
class Row:
    """One artefact of one model in one precision; the numbers are None where it could not be run, and ``note`` why.

    Attributes:
        passed: the verdict.
        graph, rounding, runtime: whether that part passed; None where nothing of it was judged.
        graph_rms: the error of the graph, in the output that comes closest to its bound; ``rms`` that of the runtime.
        eager_rms: eager's own in that output.
        smallest_k: the least k that would pass the runtime.
        excused: it passes only because the unfolded graph is as far off in the same runtime.
        begins_in: the module and the node where a failure begins.
    """

    model: str
    precision: str
    artefact: str
    passed: bool | None = None
    graph: bool | None = None
    rounding: bool | None = None
    runtime: bool | None = None
    graph_rms: float | None = None
    smallest_k: float | None = None
    rms: float | None = None
    eager_rms: float | None = None
    excused: bool = False
    begins_in: str = ""
    p50_ms: float | None = None
    device_p50_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    note: str = ""


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


def compare(network: Network, made: Iterable[tuple[str, Factory]], terms: Terms) -> list[Row]:
    """Return a row for each artefact in ``made``; the first is what the others are timed against."""
    subject = network.subject
    feeds = subject.feeds or random_feeds(subject.specs)
    baseline: Runner | None = None
    rows: list[Row] = []
    for name, make in made:
        row = Row(subject.name, network.precision, name)
        if time.monotonic() > terms.until:
            rows.append(replace(row, note="not begun: the time is over"))
            continue
        try:
            artefact = make()
            row = _judged(row, verdict(network, artefact, feeds, terms))
            baseline = baseline or artefact.runner
            if terms.bench:
                row = _with_times(row, _timed(baseline, artefact.runner, feeds[0], terms))
        except VerdictError as error:
            row = replace(row, passed=False, runtime=False, begins_in=error.where, note=error.what)
        except NormdeployError as error:
            row = replace(row, note=error.what)
        except Exception as error:  # a compiler or a driver raises what it likes: the other rows still count
            row = replace(row, note=f"{type(error).__name__}: {str(error)[:200]}")
        rows.append(row)
    return rows


def verdict(network: Network, made: Made, feeds: Sequence[Feed], terms: Terms) -> Verdict:
    """Return the verdict on ``made`` as ``export`` and ``verify`` reach it."""
    unfolded = made.unfolded
    return verdict_on(
        network.subject.module, network.subject.specs, made.runner, made.graph, feeds, terms.criteria,
        precision=network.precision, single=made.single, exported=lambda: network.exported,
        unfolded=None if unfolded is None else lambda: nullcontext(unfolded()), placement=terms.placement,
    )  # fmt: skip


def _judged(row: Row, found: Verdict) -> Row:
    graph, runtime = view.worst(found, "graph"), view.worst(found, "runtime")
    assert runtime is not None  # what runs was judged
    return replace(
        row, passed=found.passed, graph=view.part_passed(found, "graph"), rounding=view.part_passed(found, "rounding"),
        runtime=view.part_passed(found, "runtime"), graph_rms=None if graph is None else graph.measurement.deployed.rms,
        smallest_k=view.smallest_k(found), rms=runtime.measurement.deployed.rms,
        eager_rms=runtime.measurement.eager.rms, excused=any(each.excused for each in found.of("runtime")),
        begins_in=begins_in(found),
    )  # fmt: skip


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


HEADINGS = (
    "model", "precision", "artefact", "graph", "runtime", "graph rms", "smallest k", "rms", "eager rms", "p50 ms",
    "GPU p50 ms", "speed-up, or what is to be said",
)  # fmt: skip
WIDE = 200
"""Columns that the table takes where no terminal says how many there are."""


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as the terminal shows them."""
    drawn = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for heading in HEADINGS:
        drawn.add_column(heading, no_wrap=heading != HEADINGS[-1])
    for row in rows:
        judged = (_word(None if row.graph is None else row.graph and row.rounding is not False), _word(row.runtime))
        said = "; ".join(part for part in (row.begins_in, row.note) if part)
        names = row.model, row.precision, row.artefact
        if row.rms is None:
            ran = "not run" if row.runtime is None else judged[1]
            drawn.add_row(*names, "–", ran, *[""] * 6, said)
            continue
        speed = "–" if row.speedup is None else f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
        taken = (row.graph_rms, row.smallest_k, row.rms, row.eager_rms, row.p50_ms, row.device_p50_ms)
        numbers = ["–" if value is None else f"{value:.3g}" for value in taken]
        drawn.add_row(*names, *judged, *numbers, f"{speed} {said}".rstrip())
    return drawn


def _word(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "–"}[passed]


def document(rows: Sequence[Row], gpu: str) -> dict[str, object]:
    """Return the JSON: the GPU, the packages, the rows."""
    versions = {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"] in PACKAGES}
    return {"schema_version": 2, "gpu": gpu, "packages": versions, "rows": [asdict(row) for row in rows]}


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
    terms = Terms(
        criteria(arguments.k, arguments.floor_eps), clock, arguments.seconds, until, cuda, not arguments.no_bench
    )
    subjects = [given(arguments)] if arguments.model else list(digits())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects:
            exported = to_graph(subject.module, subject.specs, opset=arguments.opset).model
            folded = fold(exported, keep=arguments.keep, layernorm=arguments.layernorm, target=form.target).model
            for precision in arguments.precision:
                network = Network(subject, precision, exported, folded, Path(folder), form)
                rows += compare(network, artefacts(network), terms)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(rows, str(gpu)))
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
