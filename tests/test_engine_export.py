"""``normdeploy export --engine`` and ``--precision``: what is in the bundle, and how its parity is judged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from support import EAGER, RESNET, ROOT, SPEC, WEIGHTS, tree

import normdeploy
from normdeploy.bundle.manifest import Manifest
from normdeploy.cli import main
from normdeploy.disk import sha256_of
from normdeploy.engine import read_plan
from normdeploy.errors import InputError
from normdeploy.parity.verdict import Criteria
from normdeploy.pipeline import ParityError, Source, judge_again, ledger_of, report_of
from normdeploy.precision import Precision, to_precision

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'normdeploy[rtx]'",
)
SOURCE: Source = {"app_dir": ROOT, "weights": WEIGHTS}
HALF_EPS = 2.0**-10
FLOAT_EPS = 2.0**-23


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float16, with an engine where one can be built."""
    out = tmp_path_factory.mktemp("half") / "bundle"
    engine = importlib.util.find_spec("tensorrt_rtx") is not None
    normdeploy.export(RESNET, [SPEC], out, precision="fp16", engine=engine, bench=False, **SOURCE)
    return out


# -- the precision -----------------------------------------------------------------------------


def test_the_model_computes_in_16_bits_behind_float32_borders(half_bundle: Path) -> None:
    graph = onnx.load(half_bundle / "model.onnx").graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert weights["blocks.0.conv1.weight"] == onnx.TensorProto.FLOAT16
    borders = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert borders == {onnx.TensorProto.FLOAT}
    report = report_of(half_bundle)
    assert report.precision == "float16"
    assert report.norms_after == {}
    assert [entry.outcome for entry in ledger_of(half_bundle)] == ["folded"] * 9


def test_parity_is_judged_by_what_eager_loses_in_16_bits(half_bundle: Path) -> None:
    parity = report_of(half_bundle).parity
    assert parity is not None
    assert parity.passed
    assert "judged by what eager loses in fp16" in parity.notes
    module = normdeploy_resnet()
    for judgement in parity.judgements:
        measured = judgement.measurement
        assert measured.dtype == ("float32" if measured.part == "graph" else "float16")
        if measured.feed.startswith("random N="):  # in corners it may lose more
            least, most = (1e-8, 4 * FLOAT_EPS) if measured.part == "graph" else (1e-5, HALF_EPS)
            assert least < measured.eager.rms < most  # 0 would be no measurement
        if measured.part == "graph":  # the graph in float32, before it was rounded
            assert judgement.bound_rms == pytest.approx(measured.eager.rms + 2 * FLOAT_EPS)
        elif measured.part == "rounding":  # twice what rounding the weights costs, and float32's own steps
            assert judgement.bound_rms == pytest.approx(2 * measured.eager.rms + 2 * FLOAT_EPS)
        else:
            own = measured.eager.rms  # and never more than 8 times what eager itself loses
            assert judgement.bound_rms == pytest.approx(min(4 * own + 8 * HALF_EPS, 8 * own))
    scans = np.random.default_rng(3).random((5, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        truth = module.double()(torch.from_numpy(scans).double()).numpy()
    logits = normdeploy.load_bundle(half_bundle)(x=scans)["output"]
    assert logits.dtype == np.float32
    error = np.abs(logits - truth).max() / np.abs(truth).max()
    assert 1e-6 < error < 8 * HALF_EPS


def normdeploy_resnet() -> torch.nn.Module:
    from models.digits import resnet

    network = resnet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def test_verify_judges_a_bundle_in_the_type_that_it_computes_in(
    half_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(half_bundle), *EAGER, "--json"]) == 0
    verdict = json.loads(capfd.readouterr().out)
    parts = {(one["measurement"]["part"], one["measurement"]["dtype"]) for one in verdict["judgements"]}
    assert parts == {("graph", "float32"), ("rounding", "float16"), ("runtime", "float16")}
    assert main(["verify", str(half_bundle), *EAGER, "--k", "0", "--floor-eps", "0"]) == 1


def test_a_wrong_16_bit_model_is_refused_by_the_name_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model, precision: Precision) -> ir.Model:
        weight = model.graph.initializers["blocks.1.conv1.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.2), name=weight.name)
        return to_precision(model, precision)

    monkeypatch.setattr("normdeploy.pipeline.deploy.to_precision", wrong)
    with pytest.raises(ParityError, match="parity failed") as caught:
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", precision="fp16", bench=False, **SOURCE)
    assert "blocks.1" in caught.value.where
    assert caught.value.report.engine is None
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"], "a report of the failure, and no bundle"


def test_an_opset_without_bfloat16_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at opset 20 these have no bfloat16 form"):
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", precision="bf16", opset=20, bench=False, **SOURCE)
    assert list(tmp_path.iterdir()) == []


# -- a runtime without the kernels -------------------------------------------------------------


def test_a_graph_that_nothing_here_runs_is_judged_alone_and_is_no_bundle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["--input", SPEC, "--precision", "bf16", "--out", str(tmp_path / "out"), "--no-bench"]
    assert main(["export", *EAGER, *asked]) == 3
    told = capfd.readouterr()
    assert "parity of the graph passed, of the runtime not judged" in told.out
    assert "lacks a kernel" in told.err
    assert "normdeploy build BUNDLE --precision bf16" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
    verdict = report_of(tmp_path / "out.failed").parity
    assert verdict is not None
    assert verdict.unjudged
    assert not verdict.passed
    assert {each.measurement.part for each in verdict.judgements} == {"graph", "rounding"}
    assert "It was not judged: onnxruntime lacks a kernel" in (tmp_path / "out.failed" / "report.html").read_text()
    assert main(["judge", str(tmp_path / "out.failed"), "--k", "100"]) == 3, "no k makes up for a run"


def test_a_graph_that_is_wrong_fails_whatever_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model, precision: Precision) -> ir.Model:
        narrow = to_precision(model, precision)
        weight = narrow.graph.initializers["blocks.1.conv1.weight"]
        assert weight.const_value is not None
        off = (weight.const_value.numpy().astype(np.float32) * 1.02).astype(weight.const_value.numpy().dtype)
        weight.const_value = ir.Tensor(off, dtype=weight.dtype, name=weight.name)
        return narrow

    monkeypatch.setattr("normdeploy.pipeline.deploy.to_precision", wrong)
    with pytest.raises(ParityError, match="parity failed") as caught:
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", precision="bf16", bench=False, **SOURCE)
    assert caught.value.exit_code == 1
    assert "blocks.1.conv1" in caught.value.where
    saved = report_of(tmp_path / "out.failed")
    assert saved.parity is not None
    assert saved.parity.misrounded
    assert not judge_again(saved, Criteria(k=1e6, floor_eps=1e6)).passed, "no tolerance excuses another constant"


@pytest.mark.parametrize("command", ["verify", "bisect"])
def test_a_file_that_nothing_here_runs_is_judged_by_its_graph(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    normdeploy.export(RESNET, [SPEC], tmp_path / "out", precision="fp32", opset=22, bench=False, **SOURCE)
    file = tmp_path / "narrow.onnx"
    assert main(["fold", str(tmp_path / "out/model.onnx"), "--precision", "bf16", "--out", str(file)]) == 0
    assert main([command, str(file), "--input", SPEC, *EAGER]) == 3
    told = capfd.readouterr()
    assert "The graph is right" in told.out
    assert "--device cuda" in told.err
    assert main(["bench", str(file), "--input", SPEC, "--seconds", "0.1"]) == 3, "what does not run has no latency"


# -- overflow ----------------------------------------------------------------------------------

BRIGHT = "x:N=1..1..4x1x8x8@f32[50000..60000]"
"""Scans of a brightness that float16 can hold, whose convolutions it cannot."""


@pytest.mark.parametrize(("brightness", "named"), [(1.0, False), (5e4, True)])
def test_activations_that_overflow_are_noted_by_module_name(
    brightness: float, named: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.full((1, 1, 8, 8), brightness, np.float32))
    options = [
        "--precision",
        "fp16",
        "--data",
        str(tmp_path / "data.npz"),
        "--out",
        str(tmp_path / "out"),
        "--no-bench",
    ]
    code = main(["export", *EAGER, "--input", SPEC, *options, "--json"])
    assert code == named  # eager in float16 ends in NaN, and ONNX Runtime, which has no such kernels here, does not
    notes = [note for note in json.loads(capfd.readouterr().out)["notes"] if "overflow" in note]
    assert len(notes) == named
    assert all("float16" in note and "in conv (" in note and "on 'data'" in note for note in notes)


def test_in_float32_nothing_overflows(tmp_path: Path) -> None:
    report = normdeploy.export(RESNET, [BRIGHT], tmp_path / "out", bench=False, **SOURCE)
    assert not any("overflow" in note for note in report.notes)


@needs_rtx
def test_an_engine_in_16_bits_notes_what_overflows_on_the_golden_inputs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    normdeploy.export(RESNET, [BRIGHT], tmp_path / "out", bench=False, **SOURCE)
    assert main(["build", str(tmp_path / "out"), "-o", str(tmp_path / "half.plan"), "--precision", "fp16"]) == 0
    notes = [note for note in read_plan(tmp_path / "half.plan")[1].notes if "overflow" in note]
    assert len(notes) == 1
    assert "blocks." in notes[0]
    assert "on 'golden'" in notes[0]
    assert "note: activations overflow float16" in capfd.readouterr().out
    wide = normdeploy.build(tmp_path / "out", tmp_path / "wide.plan", precision="fp32")
    assert not any("overflow" in note for note in wide.sidecar.notes)


# -- the engine --------------------------------------------------------------------------------


@needs_rtx
def test_the_engine_is_in_the_bundle_with_its_layers_in_the_report(half_bundle: Path) -> None:
    report = report_of(half_bundle)
    plan, sidecar = read_plan(half_bundle / "model.plan")
    assert report.engine == sidecar
    assert sidecar.precision == "fp16"
    assert sidecar.size == len(plan) > 0
    assert list(report.seconds) == ["load", "export", "fold", "parity", "engine"]
    convolutions = [layer for layer in sidecar.layers if "Conv" in layer.operators and not layer.moves]
    assert {layer.precision for layer in convolutions} == {"fp16"}
    manifest = Manifest.model_validate_json((half_bundle / "manifest.json").read_bytes())
    for name in ("model.plan", "model.plan.json"):
        assert manifest.files[name] == sha256_of(half_bundle, name)
    assert "runtime_fusion" in (half_bundle / "report.html").read_text()
    bundle = normdeploy.load_bundle(half_bundle)
    assert bundle.plan_path is not None
    assert bundle.plan_path.read_bytes() == plan


@needs_rtx
def test_the_report_shows_the_engine(half_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(half_bundle)]) == 0
    assert "engine  tensorrt_rtx" in capfd.readouterr().out


@needs_rtx
def test_a_gpu_that_no_engine_is_built_for_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normdeploy.pipeline.deploy.load", None)
    with pytest.raises(InputError, match=r"builds for no SM42(.|\n)*choose among 75, 80, 86, 89, 120"):
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", engine=True, sm=["42"], bench=False, **SOURCE)
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_an_engine_that_cannot_be_built_leaves_the_older_bundle(
    half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normdeploy.pipeline.deploy.require_targets", lambda sm: None)
    shutil.copytree(half_bundle, tmp_path / "out")
    with pytest.raises(InputError, match="builds for no SM7"):
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", engine=True, sm=["7"], bench=False, force=True, **SOURCE)
    assert tree(tmp_path / "out") == tree(half_bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_a_backend_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("normdeploy.pipeline.deploy.load", begun)
    assert main(["export", *EAGER, "--input", SPEC, "-o", str(tmp_path / "out"), "--engine"]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert "pip install 'normdeploy[rtx]'" in err
    assert list(tmp_path.iterdir()) == []


def test_capabilities_without_an_engine_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--engine"):
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", sm=["89"], **SOURCE)
