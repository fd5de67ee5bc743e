"""What of ``scripts/gpu_parity.py`` needs no GPU: its rows, its table, its JSON, its end; no timing is judged."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from rich.console import Console
from support import EAGER, ROOT, SPEC

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_parity as script

from normdeploy.bench.clocks import WallClock
from normdeploy.cli.making import export
from normdeploy.cli.options import EagerOptions, ParityOptions
from normdeploy.errors import InputError, UnavailableError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Criteria
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner


@pytest.fixture(scope="module")
def subject() -> script.Subject:
    whole = script.given(script.parsed([*EAGER, "--input", SPEC]))
    return replace(whole, feeds=whole.feeds[:1])


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


def made(subject: script.Subject, folder: Path) -> list[tuple[str, script.Factory]]:
    graph = fold(to_graph(subject.module, subject.specs).model).model
    ir.save(graph, folder / "model.onnx")
    weight = next(value for value in graph.graph.initializers.values() if len(value.shape or ()) == 4)
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01))
    ir.save(graph, folder / "wrong.onnx")

    def missing() -> Runner:
        raise RuntimeError("no driver")

    return [
        ("eager CUDA", lambda: script.EagerCuda(subject, None, device="cpu")),
        ("onnxruntime CUDA", lambda: OnnxRuntimeRunner(folder / "model.onnx")),
        ("onnxruntime TensorRT", lambda: OnnxRuntimeRunner(folder / "wrong.onnx")),
        ("TensorRT", missing),
    ]


def test_each_artefact_has_a_row_judged_and_timed_or_why_not(subject: script.Subject, tmp_path: Path) -> None:
    rows = script.compare(subject, "fp32", made(subject, tmp_path), terms())
    assert [row.artefact for row in rows] == ["eager CUDA", "onnxruntime CUDA", "onnxruntime TensorRT", "TensorRT"]
    assert [row.passed for row in rows] == [True, True, False, None]
    assert rows[3].note == "RuntimeError: no driver"
    assert all(row.p50_ms is not None and row.device_p50_ms is None for row in rows[:3])
    told = json.loads(json.dumps(script.document(rows, "a GPU")))
    assert [set(row) for row in told["rows"]] == [{each.name for each in fields(script.Row)}] * 4
    printed = io.StringIO()
    Console(width=200, file=printed).print(script.table(rows, "a GPU"))
    text = printed.getvalue()
    assert (text.count("passed"), text.count("FAILED"), text.count("no driver")) == (2, 1, 1)


def test_nothing_is_begun_after_the_time_is_over(subject: script.Subject, tmp_path: Path) -> None:
    rows = script.compare(subject, "fp32", made(subject, tmp_path), terms(until=time.monotonic() - 1))
    assert {row.note for row in rows} == {"not begun: the time is over"}
    assert {row.passed for row in rows} == {None}


def test_what_is_launched_is_what_is_judged(subject: script.Subject) -> None:
    eager, seen = script.EagerCuda(subject, None, device="cpu"), list[torch.Tensor]()
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


def test_without_the_latency_there_are_rows_of_parity_alone(subject: script.Subject, tmp_path: Path) -> None:
    rows = script.compare(subject, "fp32", made(subject, tmp_path)[1:3], replace(terms(), bench=False))
    assert [(row.passed, row.p50_ms, row.speedup) for row in rows] == [(True, None, None), (False, None, None)]
    printed = io.StringIO()
    Console(width=200, file=printed).print(script.table(rows, "a GPU"))
    assert printed.getvalue().count("FAILED") == 1


def test_tune_has_a_row_for_each_form_and_session_it_would_choose_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)).eval()
    specs = script.parse(["input:4x16@f32"])
    exported = to_graph(module, specs).model
    seen: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def opened(file: Path, *, options: dict[str, str], **_: object) -> None:
        seen[file] = {node.op_type for node in ir.load(file).graph}, options

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "OnnxRuntimeRunner", opened)
    form = script.form_of(script.parsed(["--tune"]))
    graphs = exported, fold(exported).model
    rows = dict(script.artefacts(script.Subject("net", module, specs), "fp32", graphs, tmp_path, form))
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


@pytest.fixture(scope="module")
def exported(subject: script.Subject) -> ir.Model:
    """Made before any test says that there is a GPU, which torch.export would believe."""
    return to_graph(subject.module, subject.specs).model


ENGINES = [backend.title for backend in script.BACKENDS]
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
    graphs = exported, fold(exported, target=form.target).model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = script.artefacts(subject, "fp32", graphs, tmp_path, form)
    assert [name for name, _ in made] == CUDA + others


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_reaches_every_session(
    tf32: bool, subject: script.Subject, exported: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placements = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "OnnxRuntimeRunner", lambda file, *, placement, stream: placements.append(placement))
    form = script.form_of(script.parsed(["--tf32"] if tf32 else []))
    for name, make in script.artefacts(subject, "fp32", (exported, exported), tmp_path, form):
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

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr(script, "TensorRTRunner", lambda plan: plan)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.ReLU()).eval()
    specs = script.parse(["input:4x64@f32"])
    graph = to_graph(module, specs).model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    form = script.form_of(script.parsed(["--plugin", "--target", "tensorrt"]))
    made = dict(script.artefacts(script.Subject("norm", module, specs), "fp32", (graph, graph), tmp_path, form))
    for title in ENGINES:
        made[title]()
        made[f"{title}, aot plugins"]()
    assert ["normdeploy" in domains for domains in built] == [False, True] * len(ENGINES)


def test_options_that_contradict_each_other_are_told_as_by_export() -> None:
    with pytest.raises(InputError, match="onnxruntime"):
        script.form_of(script.parsed(["--plugin", "--target", "onnxruntime"]))
