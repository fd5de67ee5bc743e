"""``bench --layernorm`` and what a build makes of its record, with a stand-in for the GPU and its clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from normdeploy import cli, pipeline
from normdeploy.engine import gpu
from normdeploy.engine.backends import TensorRT
from normdeploy.engine.layernorm_times import Spread, Times, times_for
from normdeploy.pipeline import engines, layernorm
from normdeploy.runtime.float64 import Float64Runner

GPU = gpu.Gpu("NVIDIA Made Up", "SM90")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda: GPU)
    monkeypatch.setattr(TensorRT, "is_installed", lambda self: True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU says")
def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--layernorm"]) == 3
    said = capsys.readouterr().err
    assert "bench --layernorm needs the full TensorRT" in said
    assert "--plugin" not in said


def test_without_the_full_tensorrt_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find", lambda: GPU)
    monkeypatch.setattr(TensorRT, "is_installed", lambda self: False)
    assert cli.main(["bench", "--layernorm"]) == 3
    assert "normdeploy[gpu]" in capsys.readouterr().err


def test_either_an_artefact_or_the_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--layernorm"]):
        assert cli.main(["bench", *arguments]) == 2
        assert "normdeploy bench --layernorm" in capsys.readouterr().err


def clock(case: layernorm.Case, graphs: Sequence[ir.Model]) -> dict[int, list[Spread]]:
    """Let the plugin be faster where a sum is in front."""
    own, plugin = (3.0, 1.0) if case.operator == "AddLayerNorm" else (1.0, 3.0)
    return {64: [Spread(least=ms, median=ms, most=ms) for ms in (own, plugin)]}


def test_every_case_is_recorded(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(layernorm, "_timed", clock)
    assert cli.main(["bench", "--layernorm"]) == 0
    shown = capsys.readouterr().out
    assert "3.00x" in shown
    assert "layernorm.json" in shown
    recorded = times_for(GPU.model)
    assert {(t.operator, t.dtype, t.features) for t in recorded} == {
        (c.operator, c.dtype, c.features) for c in layernorm.CASES
    }
    assert cli.main(["bench", "--layernorm", "--json"]) == 0
    assert [Times.model_validate(each) for each in json.loads(capsys.readouterr().out)] == list(recorded)


@pytest.mark.parametrize("case", layernorm.CASES[::6], ids=str)
def test_both_graphs_of_a_case_compute_the_same(case: layernorm.Case) -> None:
    native = case.graph()
    plugin, _ = layernorm.with_plugins(native)
    assert [n.op_type for n in plugin.graph if n.domain == "normdeploy"] == [case.operator]
    assert all(value.dtype == native.graph.inputs[0].dtype for value in plugin.graph.outputs)
    feeds = {name: np.random.default_rng(0).standard_normal((3, case.features)) for name in case.inputs}
    expected = Float64Runner(native)(feeds)
    for name, array in Float64Runner(plugin)(feeds).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-10, atol=1e-12)


def network() -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n,512] x, float[n,512] r) => (float[n,512] y)
        { s = Add (x, r) a = LayerNormalization (s, g) b = Relu (a) y = LayerNormalization (b, g) }"""
    proto = onnx.parser.parse_model(text)
    gamma = np.random.default_rng(0).uniform(1, 2, 512).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(gamma, "g"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_a_build_takes_the_plugin_where_it_is_recorded_faster(on_a_gpu: None) -> None:
    model = network()
    assert engines.recorded(model, "fp32", None) == (model, ()), "native where nothing is recorded"
    pipeline.bench_layernorm(timer=clock)
    graph, (note, *_) = engines.recorded(model, "fp32", None)
    assert [node.op_type for node in graph.graph] == ["AddLayerNorm", "Relu", "LayerNormalization"]
    assert note.startswith("1 of its norms run by the plugin")


def test_a_build_elsewhere_stays_native(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.bench_layernorm(timer=clock)
    model = network()
    assert engines.recorded(model, "fp32", "tensorrt_rtx") == (model, ()), "it takes no plugins"
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("Another", "SM90"))
    assert engines.recorded(model, "fp32", None) == (model, ())
    monkeypatch.setattr(gpu, "find", lambda: None)
    assert engines.recorded(model, "fp32", None) == (model, ())
