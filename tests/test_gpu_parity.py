"""What of ``scripts/gpu_parity.py`` needs no GPU: its rows, its table, its JSON, its end; no timing is judged."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from rich.console import Console
from support import EAGER, ROOT, SPEC

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_artefacts as artefacts
import gpu_parity as script

from normdeploy.bench.clocks import WallClock
from normdeploy.cli.making import export
from normdeploy.cli.options import EagerOptions, ParityOptions
from normdeploy.errors import InputError, UnavailableError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Criteria
from normdeploy.precision import Precision
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.runtime.placement import CPU
from normdeploy.runtime.runner import Runner
from normdeploy.specs import parse


@pytest.fixture(scope="module")
def subject() -> script.Subject:
    whole = script.given(script.parsed([*EAGER, "--input", SPEC]))
    return replace(whole, feeds=whole.feeds[:1])


@pytest.fixture(scope="module")
def exported(subject: script.Subject) -> ir.Model:
    """Made before any test says that there is a GPU, which torch.export would believe."""
    return to_graph(subject.module, subject.specs).model


@pytest.fixture
def net(subject: script.Subject, exported: ir.Model, tmp_path: Path) -> script.Network:
    return script.Network(subject, "fp32", exported, fold(exported).model, tmp_path, script.Form())


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU says")
def test_without_a_gpu_it_exits_3_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/gpu_parity.py"), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("no NVIDIA GPU that torch can use")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def terms(until: float = math.inf) -> script.Terms:
    return script.Terms(Criteria(), WallClock(), 0.01, until)


def scaled(graph: ir.Model, by: float) -> ir.Model:
    """The first convolution's weights, all or, of a copy, none."""
    wrong = graph.clone()
    weight = next(value for value in wrong.graph.initializers.values() if len(value.shape or ()) == 4)
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(by), name=weight.name)
    return wrong


def made(net: script.Network) -> list[tuple[str, script.Factory]]:
    """Eager, the folded graph, one with a fault of 1 %, and one that nothing here can make; all on the CPU."""

    def missing() -> script.Made:
        raise RuntimeError("no driver")

    session, wrong = net.in_session(CPU), replace(net, folded=scaled(net.folded, 1.01))
    return [
        ("eager CUDA", lambda: script.Made(artefacts.EagerCuda(net.subject, None, device="cpu"))),
        ("onnxruntime CUDA", lambda: net.made(net.folded, session, "right")),
        ("onnxruntime TensorRT", lambda: wrong.made(wrong.folded, session, "wrong")),
        ("TensorRT", missing),
    ]


def test_each_artefact_has_a_row_judged_and_timed_or_why_not(net: script.Network) -> None:
    rows = script.compare(net, made(net), terms())
    assert [row.artefact for row in rows] == ["eager CUDA", "onnxruntime CUDA", "onnxruntime TensorRT", "TensorRT"]
    assert [row.passed for row in rows] == [True, True, False, None]
    assert [row.graph for row in rows] == [None, True, False, None]
    assert [row.runtime for row in rows] == [True, True, True, None]
    assert rows[3].note == "RuntimeError: no driver"
    assert all(row.p50_ms is not None and row.device_p50_ms is None for row in rows[:3])
    told = json.loads(json.dumps(script.document(rows, "a GPU")))
    assert [set(row) for row in told["rows"]] == [{each.name for each in fields(script.Row)}] * 4
    printed = io.StringIO()
    Console(width=240, file=printed).print(script.table(rows, "a GPU"))
    text = printed.getvalue()
    assert (text.count("passed"), text.count("FAILED"), text.count("no driver")) == (4, 1, 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_graph_fails_by_its_graph_and_names_the_module(precision: Precision, net: script.Network) -> None:
    """A fault of 0.1 %, which no bound on the runtime alone would see in 16 bits."""
    net = replace(net, precision=precision)
    wrong = replace(net, folded=scaled(net.folded, 1.001))
    rows = script.compare(
        net,
        [
            (name, partial(each.made, each.folded, net.in_session(CPU), name))
            for name, each in (("a", net), ("b", wrong))
        ],
        replace(terms(), bench=False),
    )
    assert [(row.passed, row.graph, row.rounding is not False, row.runtime) for row in rows] == [
        (True, True, True, True),
        (False, False, True, True),
    ]
    assert rows[0].begins_in == ""
    assert rows[1].begins_in.startswith("module conv")


def test_a_constant_that_is_no_rounding_fails_and_names_its_module(net: script.Network) -> None:
    net = replace(net, precision="fp16")
    right = net.made(net.folded, net.in_session(CPU), "right")
    graph = right.graph
    assert graph is not None
    name = next(value.name for value in graph.graph.initializers.values() if len(value.shape or ()) == 4)
    wrong = graph.clone()
    tensor = wrong.graph.initializers[name].const_value
    array = tensor.numpy().copy()
    array.flat[0] = np.nextafter(np.nextafter(array.flat[0], np.float16(9)), np.float16(9))
    wrong.graph.initializers[name].const_value = ir.tensor(array, name=name)
    (row,) = script.compare(net, [("wrong", lambda: replace(right, graph=wrong))], replace(terms(), bench=False))
    assert (row.passed, row.graph, row.rounding) == (False, True, False)
    assert "conv" in row.begins_in


class Off:
    """A runtime that is off by as much in each graph, or in the deployed one alone."""

    name = "off"

    def __init__(self, graph: ir.Model, by: float) -> None:
        self._exact, self._by = Float64Runner(graph), by
        self.inputs, self.outputs = self._exact.inputs, self._exact.outputs

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: (array * (1 + self._by)).astype(np.float32) for name, array in self._exact(feeds).items()}


@pytest.mark.parametrize("excused", [True, False])
def test_a_runtime_is_excused_by_the_unfolded_graph_in_it_alone(excused: bool, net: script.Network) -> None:
    def run(graph: ir.Model, name: str) -> Runner:
        return Off(graph, 1e-5 if excused or "unfolded" not in name else 0.0)

    (row,) = script.compare(net, [("off", lambda: net.made(net.folded, run, "off"))], replace(terms(), bench=False))
    assert (row.passed, row.graph, row.runtime, row.excused) == (excused, True, excused, excused)
    assert row.begins_in == ""  # a kernel of ONNX Runtime would be somebody else's


def test_nothing_is_begun_after_the_time_is_over(net: script.Network) -> None:
    rows = script.compare(net, made(net), terms(until=time.monotonic() - 1))
    assert {row.note for row in rows} == {"not begun: the time is over"}
    assert {row.passed for row in rows} == {None}


def test_what_is_launched_is_what_is_judged(subject: script.Subject) -> None:
    eager, seen = artefacts.EagerCuda(subject, None, device="cpu"), list[torch.Tensor]()
    eager._module.register_forward_hook(lambda module, args, output: seen.append(output))
    feed = random_feeds(subject.specs)[0].arrays
    meant = eager(feed)["output"]
    eager.launcher(feed)()
    np.testing.assert_array_equal(seen[-1].numpy(), meant)


OF_A_BUNDLE = {"out", "force", "to_torch", "talk"}
OF_OTHER_PROCESSES = {"threads", "processes", "batch", "compare"}


def test_it_takes_what_export_takes() -> None:
    options = set(vars(script.parsed([])))
    assert {each.name for kind in (EagerOptions, ParityOptions) for each in fields(kind)} <= options
    taken = set(signature(export).parameters) - {"eager", "parity"} - OF_A_BUNDLE - OF_OTHER_PROCESSES
    assert {"engine", "sm", "tune", "no_bench", "keep", "plugin", "precision"} <= taken
    assert taken | {"tf32"} <= options


def test_without_the_latency_there_are_rows_of_parity_alone(net: script.Network) -> None:
    rows = script.compare(net, made(net)[1:3], replace(terms(), bench=False))
    assert [(row.passed, row.p50_ms, row.speedup) for row in rows] == [(True, None, None), (False, None, None)]
    printed = io.StringIO()
    Console(width=200, file=printed).print(script.table(rows, "a GPU"))
    assert printed.getvalue().count("FAILED") == 1


def test_tune_has_a_row_for_each_form_and_session_it_would_choose_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)).eval()
    specs = parse(["input:4x16@f32"])
    exported = to_graph(module, specs).model
    seen: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def opened(file: Path, *, options: dict[str, str], **_: object) -> str:
        seen[file] = {node.op_type for node in ir.load(file).graph}, options
        return "a runner"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(artefacts, "OnnxRuntimeRunner", opened)
    form = script.form_of(script.parsed(["--tune"]))
    subject = script.Subject("net", module, specs)
    net = script.Network(subject, "fp32", exported, fold(exported).model, tmp_path, form)
    rows = dict(script.artefacts(net))
    forms = {name: make for name, make in rows.items() if name.startswith("onnxruntime CUDA, ")}
    del forms["onnxruntime CUDA, unfolded"]
    assert [name.removeprefix("onnxruntime CUDA, ") for name in forms] == [
        "affine without SkipLayerNormFusion",
        "centre for onnxruntime",
        "centre for onnxruntime without SkipLayerNormFusion",
        "recognise",
        "recognise without SkipLayerNormFusion",
    ]
    for make in forms.values():
        make()
    norms = ["SimplifiedLayerNormalization" in operators for operators, _ in seen.values()]
    assert norms == [False, True, True, False, False]
    assert [bool(options) for _, options in seen.values()] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tune", "--layernorm", "centre"], "either given or chosen"),
        (["--tune", "--target", "tensorrt"], "measures in ONNX Runtime"),
        (["--engine", "--target", "onnxruntime"], "TensorRT builds the engine"),
        (["--sm", "89"], "those of an engine"),
    ],
)
def test_options_are_refused_as_by_export(options: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        script.form_of(script.parsed(options))


def test_an_engine_that_cannot_be_built_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise UnavailableError("no TensorRT")

    monkeypatch.setattr("normdeploy.pipeline.deploy.require_backend", missing)
    with pytest.raises(UnavailableError, match="no TensorRT"):
        script.form_of(script.parsed(["--engine"]))


ENGINES = [backend.title for backend in artefacts.BACKENDS]
CUDA = ["eager CUDA", "torch.compile", "onnxruntime CUDA, unfolded", "onnxruntime CUDA", "onnxruntime CUDA graph"]


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ([], ["onnxruntime TensorRT", *ENGINES]),
        (["--target", "tensorrt"], ["onnxruntime TensorRT", *ENGINES]),
        (["--target", "onnxruntime"], []),
        (
            ["--plugin", "--target", "tensorrt"],
            ["onnxruntime TensorRT", *(f"{title}{end}" for title in ENGINES for end in ("", ", aot plugins"))],
        ),
    ],
)
def test_the_options_of_export_decide_which_artefacts_there_are(
    options: list[str],
    others: list[str],
    subject: script.Subject,
    exported: ir.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = script.form_of(script.parsed(options))
    folded = fold(exported, target=form.target).model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = script.artefacts(script.Network(subject, "fp32", exported, folded, tmp_path, form))
    assert [name for name, _ in rows] == CUDA + others


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_reaches_every_session(
    tf32: bool, subject: script.Subject, exported: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placements = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(artefacts, "OnnxRuntimeRunner", lambda file, *, placement, **_: placements.append(placement))
    form = script.form_of(script.parsed(["--tf32"] if tf32 else []))
    for name, make in script.artefacts(script.Network(subject, "fp32", exported, exported, tmp_path, form)):
        if name.startswith("onnxruntime"):
            make()
    assert [placement.tf32 for placement in placements] == [tf32] * 4


def test_an_engine_with_plugins_is_built_of_the_graph_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    class Built:
        def write(self, plan: Path) -> Path:
            return plan

    def build(graph: ir.Model, specs: object, **options: object) -> Built:
        built.append({node.domain for node in graph.graph})
        return Built()

    monkeypatch.setattr(artefacts, "build", build)
    monkeypatch.setattr(artefacts, "TensorRTRunner", lambda plan: plan)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.ReLU()).eval()
    specs = parse(["input:4x64@f32"])
    graph = to_graph(module, specs).model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    form = script.form_of(script.parsed(["--plugin", "--target", "tensorrt"]))
    net = script.Network(script.Subject("norm", module, specs), "fp32", graph, graph, tmp_path, form)
    rows = dict(script.artefacts(net))
    for title in ENGINES:
        rows[title]()
        rows[f"{title}, aot plugins"]()
    assert ["normdeploy" in domains for domains in built] == [False, True] * len(ENGINES)


def test_options_that_contradict_each_other_are_told_as_by_export() -> None:
    with pytest.raises(InputError, match="onnxruntime"):
        script.form_of(script.parsed(["--plugin", "--target", "onnxruntime"]))
