"""A LayerNorm network goes through --plugin to a graph of plugins that computes what eager PyTorch does."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from models import digits, quantized
from normdeploy import cli
from normdeploy.bundle import load_bundle
from normdeploy.engine import plugin_graph
from normdeploy.parity import plugins
from normdeploy.pipeline import deploy, fold_file
from normdeploy.runtime.float64 import Float64Runner

ROOT = Path(__file__).parent.parent
VIT = ["--app-dir", str(ROOT), "--model", "models.digits:vit", "--weights", str(ROOT / "models/digits_vit.safetensors")]
INPUT = ["--input", "x:N=1..1..64x1x8x8@f32"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with a graph of plugins."""
    out = tmp_path_factory.mktemp("plugin") / "vit"
    arguments = ["export", *VIT, *INPUT, "--out", str(out), "--plugin", "--target", "tensorrt", "--no-bench"]
    assert cli.main(arguments) == 0
    return out


def operators(path: Path) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}".lstrip(":") for node in onnx.load(path).graph.node)


def test_every_norm_is_a_plugin_and_the_model_stays_portable(exported: Path) -> None:
    norms = {kind: n for kind, n in operators(exported / "model.plugin.onnx").items() if "Norm" in kind}
    assert norms == {"normdeploy::LayerNorm": 1, "normdeploy::AddLayerNorm": 6}
    assert operators(exported / "model.onnx")["LayerNormalization"] == 7
    assert "model.plugin.onnx" in json.loads((exported / "manifest.json").read_text())["files"]
    assert load_bundle(exported).specs, "it loads with all its checks"


def test_a_norm_that_no_plugin_runs_is_noted(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[2,3,8] x, float[8] s) => (float[2,3,8] y)
        <float[8] k = {1, 2, 3, 4, 5, 6, 7, 8}> { n = LayerNormalization (x, k)  y = LayerNormalization (n, s) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    ledger = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", plugin=True, target="tensorrt")
    assert [note.code for note in ledger.notes] == ["NF416", "NF418"]
    assert ledger.notes[1].text == "run by plugins: LayerNorm 1"


def test_the_graph_of_plugins_computes_what_the_module_does(exported: Path) -> None:
    module = digits.vit()
    module.load_state_dict(load_file(ROOT / "models/digits_vit.safetensors"))
    x = np.random.default_rng(3).standard_normal((5, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        reference = module.double().eval()(torch.from_numpy(x).double()).numpy()
    (got,) = Float64Runner(ir.load(exported / "model.plugin.onnx"))({"x": x}).values()
    error = np.abs(got - reference).max() / np.abs(reference).max()
    assert error < 4 * np.finfo(np.float32).eps, "its weights are rounded to float32, and nothing else is"


def test_a_norm_a_sum_and_a_quantization_become_a_plugin_each(tmp_path: Path) -> None:
    out = tmp_path / "quantized"
    network = ["--app-dir", str(ROOT), "--model", "models.quantized:perceptron", "--input", "x:N=1..2..4x16"]
    assert cli.main(["export", *network, "-o", str(out), "--plugin", "--target", "tensorrt", "--no-bench"]) == 0
    plugins = {kind: n for kind, n in operators(out / "model.plugin.onnx").items() if "Norm" in kind}
    assert plugins == {f"normdeploy::{name}": 1 for name in ("LayerNorm", "AddLayerNorm", "LayerNormQuantize")}
    assert json.loads((out / "report.json").read_text())["plugin_parity"]["passed"]
    module = quantized.perceptron().eval()
    x = np.random.default_rng(5).standard_normal((3, 16)).astype(np.float32)
    with torch.no_grad():
        reference = module.double()(torch.from_numpy(x).double()).numpy()
    (got,) = Float64Runner(ir.load(out / "model.plugin.onnx"))({"x": x}).values()
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-6 * np.abs(reference).max())


def test_the_report_has_the_verdict_on_the_graph_of_plugins(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = json.loads((exported / "report.json").read_text())["plugin_parity"]
    assert verdict["passed"]
    assert verdict["reference"] == "float64"
    assert {each["measurement"]["part"] for each in verdict["judgements"]} == {"graph"}
    assert all(each["measurement"]["deployed"]["rms"] <= each["bound_rms"] for each in verdict["judgements"])
    assert len(verdict["judgements"]) > 4, "random feeds and corners"
    assert cli.main(["report", str(exported)]) == 0
    assert "the graph of plugins passed, in float64 against the module" in capsys.readouterr().out
    assert "the graph of plugins passed" in (exported / "report.html").read_text()


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every plugin have an epsilon of its own."""
    put = plugin_graph._put

    def mistaken(graph: ir.Graph, norm: plugin_graph._Norm, *arguments: Any, **integers: int) -> None:
        put(graph, replace(norm, epsilon=norm.epsilon * 1.01), *arguments, **integers)

    monkeypatch.setattr(plugin_graph, "_put", mistaken)


def test_a_wrong_plugin_is_refused_and_nothing_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong(monkeypatch)
    out = tmp_path / "out.onnx"
    assert cli.main(["fold", str(exported / "model.onnx"), "-o", str(out), "--plugin", "--target", "tensorrt"]) == 1
    assert "a plugin is not what it stands for" in capsys.readouterr().err
    bundle = ["export", *VIT, *INPUT, "--out", str(tmp_path / "b"), "--plugin", "--target", "tensorrt", "--no-bench"]
    assert cli.main(bundle) == 1
    assert "a plugin is not what it stands for" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_plugins_that_fails_against_the_module_is_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the proof of each plugin the verdict on the whole graph still refuses."""
    wrong(monkeypatch)
    monkeypatch.setattr(plugins, "require_same", lambda before, after: None)
    arguments = ["export", *VIT, *INPUT, "--out", str(tmp_path / "b"), "--plugin", "--target", "tensorrt", "--no-bench"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "the graph of plugins FAILED" in captured.out
    assert "parity failed by the graph" in captured.err
    assert not (tmp_path / "b").exists()
    assert not json.loads((tmp_path / "b.failed" / "report.json").read_text())["plugin_parity"]["passed"]


def test_a_file_of_plugins_is_built_by_the_full_tensorrt_only(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT-RTX's parser would end the process at the first of them."""
    source = str(exported / "model.plugin.onnx")
    command = ["build", source, "--input", "x:N=1..1..64x1x8x8@f32", "-o", str(tmp_path / "plan")]
    for more, code in (([], 3), (["--backend", "tensorrt_rtx"], 2), (["--sm", "86"], 2)):
        assert cli.main([*command, *more]) == code
        said = capsys.readouterr().err
        assert "a graph of LayerNorm plugins needs the full TensorRT" in said
        assert "--plugin" not in said, "nobody gave it"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_folded_to_plugins(exported: Path, tmp_path: Path) -> None:
    model, out = str(exported / "model.onnx"), tmp_path / "plugins.onnx"
    assert cli.main(["fold", model, "-o", str(out), "--plugin", "--target", "tensorrt"]) == 0
    assert operators(out)["normdeploy::AddLayerNorm"] == 6


def test_the_form_is_in_the_graph_and_its_price_is_said(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(exported / "model.onnx"), tmp_path / "plugins.onnx"
    fold = ["fold", model, "-o", str(out), "--target", "tensorrt"]
    assert cli.main([*fold, "--plugin", "--plugin-form", "python"]) == 0
    assert "leak" not in capsys.readouterr().out
    assert forms(out) == {("2", 0)}
    assert cli.main([*fold, "--plugin", "--force"]) == 0
    assert "--plugin-form python" in capsys.readouterr().out
    assert forms(out) == {("1", 1)}
    assert cli.main([*fold, "--plugin-form", "python", "--force"]) == 2
    assert "give --plugin too" in capsys.readouterr().err


def forms(path: Path) -> set[tuple[str, int]]:
    """Return version and ``aot`` of the plugins in a file."""
    nodes = [node for node in ir.load(path).graph if node.domain == "normdeploy"]
    return {(n.attributes["plugin_version"].as_string(), n.attributes["aot"].as_int()) for n in nodes}


def test_plugins_are_for_tensorrt(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plugins.onnx"
    assert cli.main(["fold", str(exported / "model.onnx"), "-o", str(out), "--plugin"]) == 2
    assert "--target tensorrt" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (["--backend", "tensorrt_rtx"], "--backend"),
        (["--sm", "89"], "--sm"),
        (["--backend", "tensorrt_rtx", "--sm", "89"], "--backend and --sm"),
    ],
)
def test_a_build_for_what_has_no_plugins_says_which_option_to_leave_out(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], options: str
) -> None:
    """No machine can do it, so nothing need be installed; without the options the build gets as far as any."""
    command = ["build", str(exported), "-o", str(tmp_path / "plan"), "--plugin"]
    assert cli.main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert f"where: {' '.join(more)}\n" in said
    assert f"fix: leave {options} out, or leave --plugin out" in said
    assert "pip" not in said
    assert "RTX" not in said
    assert cli.main(command) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_plugins_for_other_gpus_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "load", None)
    arguments = ["export", *VIT, *INPUT, "-o", str(tmp_path / "b"), "--plugin", "--target", "tensorrt", "--engine"]
    assert cli.main([*arguments, "--sm", "86"]) == 2
    assert "fix: leave --sm out, or leave --plugin out" in capsys.readouterr().err


def test_a_build_without_the_full_tensorrt_says_what_is_missing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan"
    assert cli.main(["build", str(exported), "-o", str(out), "--plugin"]) == 3
    said = capsys.readouterr().err
    assert "the full TensorRT" in said
    assert "normdeploy[gpu]" in said
    assert not out.exists()


def test_a_model_without_norms_has_no_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    files = [str(tmp_path / "relu.onnx"), "-o", str(tmp_path / "out.onnx")]
    assert cli.main(["fold", *files, "--plugin", "--target", "tensorrt"]) == 2
    assert "it has no LayerNorm or RMSNorm" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
    assert cli.main(["build", *files, "--plugin"]) == 2, "that TensorRT is missing is not what is wrong"
    assert "it has no LayerNorm or RMSNorm" in capsys.readouterr().err


def test_onnx_runtime_tells_that_it_runs_no_plugins(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(exported / "model.plugin.onnx"), *VIT, *INPUT]) == 2
    said = capsys.readouterr().err
    assert "it is a graph of LayerNorm plugins, which only the full TensorRT runs" in said
    assert "plugin_parity in report.json" in said
    assert "registered" not in said


def test_what_became_which_plugin_is_said_and_in_which_file(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = "LayerNorm 1, AddLayerNorm 6"
    fold = ["fold", str(exported / "model.onnx"), "-o", str(tmp_path / "out.onnx"), "--plugin", "--target", "tensorrt"]
    assert cli.main(fold) == 0
    assert f"note: run by plugins: {kinds} [NF418]" in capsys.readouterr().out
    assert cli.main([*fold, "--json", "--force"]) == 0
    said = capsys.readouterr().out
    assert f"run by plugins: {kinds}" in said
    assert "NF419" in said, "its batch is dynamic, and the plugins are of the first form"
    ledger = json.loads((exported / "report.json").read_text())["ledger"]
    assert {"code": "NF418", "text": f"run by plugins, in model.plugin.onnx: {kinds}"} in ledger["notes"]


def test_that_a_layer_norm_becomes_an_rms_norm_in_a_plugin_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = ["fold", str(exported / "model.onnx"), "-o", str(tmp_path / "out.onnx"), "--plugin", "--target", "tensorrt"]
    assert cli.main([*fold, "--layernorm", "centre"]) == 2
    assert "fix: leave --layernorm out" in capsys.readouterr().err
    bundle = ["export", *VIT, *INPUT, "--out", str(tmp_path / "b"), "--plugin", "--target", "tensorrt", "--no-bench"]
    assert cli.main([*bundle, "--layernorm", "centre"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_norms_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "in_onnxruntime", None)
    weights = ["--weights", str(ROOT / "models/digits_conv1d.safetensors")]
    network = ["--app-dir", str(ROOT), "--model", "models.digits:conv1d", *weights, *INPUT]
    assert cli.main(["export", *network, "-o", str(tmp_path / "b"), "--plugin", "--target", "tensorrt"]) == 2
    assert "it has no LayerNorm or RMSNorm" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


RMS = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16), nn.GELU(), nn.RMSNorm(16), nn.Linear(16, 4)).eval()
"""


def test_an_rms_norm_that_the_opset_has_not_is_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rms.py").write_text(RMS)
    command = ["export", "--app-dir", str(tmp_path), "--model", "rms:network", "--input", "input:N=1..2..4x8"]
    out = tmp_path / "b"
    assert cli.main([*command, "-o", str(out), "--plugin", "--target", "tensorrt", "--no-bench", "--opset", "18"]) == 0
    found = operators(out / "model.plugin.onnx")
    assert found["normdeploy::RMSNorm"] == 2
    assert found["ReduceMean"] == 0
    assert operators(out / "model.onnx")["ReduceMean"] == 2
    assert json.loads((out / "report.json").read_text())["plugin_parity"]["passed"]
    said = " ".join(capsys.readouterr().out.split())
    assert "left: ONNX has it as one operator, RMSNormalization, from opset 23 on" in said
    assert "run by the plugin, which needs no opset: 1, 3" in said
    assert "run by plugins, in model.plugin.onnx: RMSNorm 2" in said


def test_a_quantized_network_in_sixteen_bits_passes(tmp_path: Path) -> None:
    """Behind its quantization an output moves by whole steps, in eager as in the runtime, on other rows."""
    network = ["--app-dir", str(ROOT), "--model", "models.quantized:perceptron", "--input", "x:N=1..2..4x16"]
    plugin = ["--plugin", "--target", "tensorrt", "--no-bench", "--precision", "fp16"]
    assert cli.main(["export", *network, "-o", str(tmp_path / "b"), *plugin]) == 0
    verdict = json.loads((tmp_path / "b" / "report.json").read_text())["plugin_parity"]
    assert verdict["passed"]
    assert {each["measurement"]["part"] for each in verdict["judgements"]} == {"graph", "rounding"}
    assert verdict["misrounded"] == []


def test_a_graph_of_plugins_in_sixteen_bits_is_judged_before_its_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundredth of what rounding costs is seen all the same: in the float32 graph with the same plugins."""
    put = plugin_graph._put

    def mistaken(graph: ir.Graph, norm: plugin_graph._Norm, *arguments: Any, **integers: int) -> None:
        put(graph, replace(norm, epsilon=norm.epsilon * 3), *arguments, **integers)

    monkeypatch.setattr(plugin_graph, "_put", mistaken)
    monkeypatch.setattr(plugins, "require_same", lambda before, after: None)
    arguments = ["export", *VIT, *INPUT, "--out", str(tmp_path / "b"), "--plugin", "--target", "tensorrt", "--no-bench"]
    assert cli.main([*arguments, "--precision", "fp16"]) == 1
    assert "the graph of plugins FAILED" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "b.failed" / "report.json").read_text())["plugin_parity"]
    failed = {each["measurement"]["part"] for each in verdict["judgements"] if not each["passed"]}
    assert failed == {"graph"}, "after the rounding nothing shows"
