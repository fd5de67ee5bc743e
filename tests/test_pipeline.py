"""The main job as Python: what comes out is what the report says, and a failed verdict writes nothing."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import RESNET, ROOT, SPEC, WEIGHTS, tree

import normdeploy
from normdeploy.bench.stats import Comparison, Latency, over_processes
from normdeploy.errors import InputError, NormdeployError, VerdictError
from normdeploy.fold import FoldResult, fold, weights
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.proof import commute
from normdeploy.parity.verdict import Criteria
from normdeploy.pipeline import ParityError, Source, fold_file, judge_again, ledger_of, report_of
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

SOURCE: Source = {"app_dir": ROOT, "weights": WEIGHTS}


def digits(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).random((count, 1, 8, 8), dtype=np.float32)


# -- export ------------------------------------------------------------------------------------


def test_the_bundle_runs_as_the_network_does(digits_bundle: Path) -> None:
    from models.digits import resnet

    network = resnet()
    network.load_state_dict(load_file(WEIGHTS))
    scans = digits(7)
    with torch.no_grad():
        truth = network.double().eval()(torch.from_numpy(scans).double()).numpy()
    logits = normdeploy.load_bundle(digits_bundle)({"x": scans})["output"]
    # a few rounding errors of float32 a layer; a missing norm is off by more than 1
    np.testing.assert_allclose(logits, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_the_report_says_what_was_done(digits_bundle: Path) -> None:
    report = report_of(digits_bundle)
    assert report.norms_before == {"BatchNormalization": 9}
    assert report.norms_after == {}
    assert [entry.outcome for entry in report.ledger.norms()] == ["folded"] * 9
    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.reference == "float64"
    assert {judgement.measurement.shape[0] for judgement in report.parity.judgements} == {1, 3, 64}
    assert {judgement.measurement.part for judgement in report.parity.judgements} == {"graph", "runtime"}
    assert report.latency is None
    assert report.inputs == [SPEC]
    assert report.outputs == ["output"]
    assert report.precision == "float32"
    assert report.weights_sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert list(report.seconds) == ["load", "export", "fold", "parity"]
    model = onnx.load(digits_bundle / "model.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_model_carries_the_ledger_of_the_report(digits_bundle: Path) -> None:
    assert ledger_of(digits_bundle) == report_of(digits_bundle).ledger.entries
    assert [entry.module for entry in ledger_of(digits_bundle, "blocks.0.*")] == ["blocks.0.norm1", "blocks.0.norm2"]


def test_an_export_can_be_repeated_to_the_byte(digits_bundle: Path, tmp_path: Path) -> None:
    normdeploy.export(RESNET, [SPEC], tmp_path / "again", bench=False, **SOURCE)
    for name in ("model.onnx", "golden/inputs.npz", "golden/outputs.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (digits_bundle / name).read_bytes()


def test_latency_is_measured_unless_not_wanted(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    report = normdeploy.export(
        RESNET,
        [SPEC],
        tmp_path / "out",
        progress=lambda stage, seconds: told.append((stage, seconds is None)),
        seconds=0.05,
        processes=1,
        **SOURCE,
    )
    assert report.latency is not None
    assert report.latency.eager.runner == "eager"
    assert report.latency.deployed.runner == "onnxruntime"
    assert report == report_of(tmp_path / "out")
    stages = ["load", "export", "fold", "parity", "latency", "bundle"]
    assert told == [(stage, begins) for stage in stages for begins in (True, False)]


def test_kept_norms_stay(tmp_path: Path) -> None:
    report = normdeploy.export(RESNET, [SPEC], tmp_path / "out", keep=["blocks.1.*"], bench=False, **SOURCE)
    assert report.norms_after == {"BatchNormalization": 3}
    left = {entry.module for entry in report.ledger if entry.outcome == "left"}
    assert left == {"blocks.1.norm1", "blocks.1.norm2", "blocks.1.shortcut.1"}


# -- a model that is not the eager one ---------------------------------------------------------


@pytest.fixture
def fold_is_wrong(monkeypatch: pytest.MonkeyPatch) -> str:
    """A fold that enlarges one convolution's weights by a thousandth; returns the convolution's name."""

    def wrong(model: ir.Model, **options: Any) -> FoldResult:
        result = fold(model, **options)
        weight = result.model.graph.initializers["blocks.1.conv1.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name=weight.name)
        return result

    monkeypatch.setattr("normdeploy.pipeline.deploy.fold", wrong)
    return "blocks.1.conv1"


@pytest.mark.usefixtures("fold_is_wrong")
def test_a_failed_parity_writes_no_bundle_but_its_report(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="the report is in") as caught:
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", bench=False, **SOURCE)
    failed = tmp_path / "out.failed"
    assert list(tmp_path.iterdir()) == [failed]
    assert {path.name for path in failed.iterdir()} == {"report.json", "report.html"}
    assert report_of(failed) == caught.value.report
    assert not judge_again(report_of(failed), Criteria()).passed
    assert judge_again(report_of(failed), Criteria(floor_eps=1e5)).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_and_no_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    (tmp_path / "lost_net.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 3)\n")
    torch.save({"weight": torch.full((3, 4), value), "bias": torch.zeros(3)}, tmp_path / "lost.pt")
    source: Source = {"app_dir": tmp_path, "weights": tmp_path / "lost.pt"}
    with caplog.at_level("INFO"), pytest.raises(ParityError, match="cannot be judged") as caught:
        normdeploy.export("lost_net:make", ["input:N=1..1..4x4"], tmp_path / "out", bench=False, **source)
    assert "weight holds 12 NaN or infinite values of 12" in caplog.text
    assert "'output'" in caught.value.what
    assert caught.value.exit_code == 1
    report = report_of(tmp_path / "out.failed")
    assert report.parity is not None
    assert report.parity.blind == ("output",)
    assert not judge_again(report, Criteria(floor_eps=1e5)).passed
    assert "cannot be judged" in (tmp_path / "out.failed" / "report.html").read_text()


NOISY = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.noise = nn.{norm}, nn.Linear(16, 3), noise
    def forward(self, x):
        y = self.norm(x)
        return {{"scores": self.linear(y), **({{"mean": y.mean(-1)}} if self.noise else {{}})}}

def noisy(): return Noisy(True)
def clean(): return Noisy(False)
"""


@pytest.mark.parametrize("norm", ["LayerNorm(16)", "InstanceNorm1d(5)"])
def test_an_output_that_is_what_rounding_leaves_is_named_and_without_it_parity_passes(
    tmp_path: Path, norm: str
) -> None:
    name = f"noisy_{norm[:5].lower()}"
    (tmp_path / f"{name}.py").write_text(NOISY.format(norm=norm))
    shape = ["x:B=1..2..4x5x16"]
    with pytest.raises(ParityError, match="'mean': only what rounding leaves, as eager differs from") as caught:
        normdeploy.export(f"{name}:noisy", shape, tmp_path / "out", bench=False, app_dir=tmp_path)
    assert caught.value.fix.startswith("leave mean out of what forward returns")
    assert "only what rounding leaves" in (tmp_path / "out.failed" / "report.html").read_text()
    normdeploy.export(f"{name}:clean", shape, tmp_path / "clean", bench=False, app_dir=tmp_path)


def test_a_failed_parity_names_the_module_and_leaves_the_old_bundle(
    digits_bundle: Path, tmp_path: Path, fold_is_wrong: str
) -> None:
    import shutil

    shutil.copytree(digits_bundle, tmp_path / "out")
    with pytest.raises(ParityError, match="parity failed") as caught:
        normdeploy.export(RESNET, [SPEC], tmp_path / "out", force=True, **SOURCE)
    assert caught.value.exit_code == 1
    assert tree(tmp_path / "out") == tree(digits_bundle)
    verdict, latency = caught.value.report.parity, caught.value.report.latency
    assert verdict is not None
    assert not verdict.passed
    assert not verdict.noise
    assert verdict.first_divergent in (fold_is_wrong, "blocks.1.norm1")  # one map after the fold
    assert str(verdict.first_divergent) in caught.value.where
    assert latency is None


@pytest.mark.usefixtures("fold_is_wrong")
def test_the_criteria_can_be_set(tmp_path: Path) -> None:
    report = normdeploy.export(
        RESNET, [SPEC], tmp_path / "out", bench=False, criteria=Criteria(floor_eps=1e5), **SOURCE
    )
    assert report.parity is not None
    assert "floor = 100000 eps" in report.parity.formula


# -- integer inputs ----------------------------------------------------------------------------

EMBEDDING = """
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)

    def forward(self, ids):
        return self.norm(self.table(ids))
"""


@pytest.fixture
def bag(tmp_path: Path) -> Source:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "bag_of_words.py").write_text(EMBEDDING)
    return {"app_dir": tmp_path / "app"}


GATED = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.linear, self.norm = nn.Linear(4, 1), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def pick(self, hot, x):
        return self.norm(self.linear(x)) if hot else x * 2

    def forward(self, x):
        return self.pick(self.gate(x).mean() > 0, x)

class WithCond(Gated):
    def pick(self, hot, x):
        return torch.cond(hot, lambda x: self.norm(self.linear(x)), lambda x: x * 2, (x,))

class WithWhere(Gated):
    def pick(self, hot, x):
        return torch.where(hot, self.norm(self.linear(x)), x * 2)
"""


def test_what_is_advised_for_a_branch_on_values_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "gated_branch.py").write_text(GATED)
    monkeypatch.setattr(sys, "path", [*sys.path])
    where: Source = {"app_dir": tmp_path / "app"}
    inputs = ["x:N=1..2..5x4"]
    with pytest.raises(InputError, match="control flow depends on the values") as refused:
        normdeploy.export("gated_branch:Gated", inputs, tmp_path / "out", bench=False, **where)
    assert "torch.where or torch.cond" in refused.value.fix
    for name in ("WithWhere", "WithCond"):
        report = normdeploy.export(f"gated_branch:{name}", inputs, tmp_path / name, bench=False, **where)
        assert report.parity is not None
        assert report.parity.passed
        assert [norm.outcome for norm in report.ledger.norms()] == ["folded"]


def test_integers_come_from_the_data_where_they_have_no_range(bag: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", ids=np.arange(6).reshape(2, 3) % 9)
    out, inputs = tmp_path / "out", ["ids:N=1..2..4x3@i64"]
    with pytest.raises(InputError, match="range"):
        normdeploy.export("bag_of_words:Bag", inputs, out, bench=False, **bag)
    report = normdeploy.export("bag_of_words:Bag", inputs, out, data=tmp_path / "ids.npz", bench=False, **bag)
    assert report.parity is not None
    assert {judgement.measurement.feed for judgement in report.parity.judgements} == {"data"}


def test_data_is_judged_beside_the_random_inputs(bag: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", ids=np.arange(6).reshape(2, 3) % 9)
    report = normdeploy.export(
        "bag_of_words:Bag",
        ["ids:N=1..2..4x3@i64[0..8]"],
        tmp_path / "out",
        data=tmp_path / "ids.npz",
        bench=False,
        **bag,
    )
    assert report.parity is not None
    feeds = {judgement.measurement.feed for judgement in report.parity.judgements}
    assert feeds >= {"random N=2", "random N=1", "random N=4", "odd N=3", "integers: all at the high end", "data"}


# -- verify and bench --------------------------------------------------------------------------


def test_a_bundle_verifies_against_its_network(digits_bundle: Path) -> None:
    verdict = normdeploy.verify(digits_bundle, RESNET, seed=5, **SOURCE)
    assert verdict.passed
    assert not any("weights given" in note for note in verdict.notes)


def test_other_weights_fail_and_are_named(digits_bundle: Path, tmp_path: Path) -> None:
    weights = load_file(WEIGHTS)
    weights["blocks.0.conv2.weight"] *= 1.001
    save_file(weights, tmp_path / "other.safetensors")
    verdict = normdeploy.verify(digits_bundle, RESNET, app_dir=ROOT, weights=tmp_path / "other.safetensors")
    assert not verdict.passed
    assert verdict.first_divergent in ("blocks.0.conv2", "blocks.0.norm2")
    assert any("weights given" in note for note in verdict.notes)


def test_an_onnx_file_verifies_where_its_inputs_are_described(digits_bundle: Path) -> None:
    model = digits_bundle / "model.onnx"
    assert normdeploy.verify(model, RESNET, [SPEC], **SOURCE).passed
    with pytest.raises(InputError, match="no input is described"):
        normdeploy.verify(model, RESNET, **SOURCE)
    with pytest.raises(InputError, match="own input specs and output names"):
        normdeploy.verify(digits_bundle, RESNET, [SPEC], **SOURCE)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_bundle_is_measured_alone_or_beside_its_network(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    measured: list[Mapping[str, Sequence[float]]] = []

    def seen(samples: Sequence[Mapping[str, Sequence[float]]], *rest: Any, **named: Any) -> Comparison:
        measured.extend(samples)
        return over_processes(samples, *rest, **named)

    monkeypatch.setattr("normdeploy.pipeline.latency.over_processes", seen)
    alone = normdeploy.bench(digits_bundle, seconds=0.05)
    assert isinstance(alone, Latency)
    assert alone.p50_ms <= alone.p99_ms
    both = normdeploy.bench(digits_bundle, RESNET, seconds=0.05, processes=processes, **SOURCE)
    assert isinstance(both, Comparison)
    assert both.processes == len(measured) == processes
    ratios = [np.median(one["eager"]) / np.median(one["deployed"]) for one in measured]
    assert both.ratio == pytest.approx(np.prod(ratios) ** (1 / processes))
    if processes == 1:
        assert both.ratio == pytest.approx(both.eager.p50_ms / both.deployed.p50_ms)
    for row in (both.eager, both.deployed):
        assert row.p50_ms == pytest.approx(np.median(row.samples_ms))
        assert row.n == sum(len(one["deployed"]) for one in measured)


# -- fold a file -------------------------------------------------------------------------------


@pytest.fixture
def conv_bn(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 3, 5, 7] x) => (float[N, 4, 5, 7] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = BatchNormalization (c, gamma, beta, mean, var)
        }"""
    )
    arrays = {"w": generator.standard_normal((4, 3, 3, 3)), "var": generator.uniform(0.5, 2, 4)}
    arrays |= {name: generator.standard_normal(4) for name in ("gamma", "beta", "mean")}
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def outputs(model: Path) -> np.ndarray[Any, Any]:
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 7)).astype(np.float32)
    return np.asarray(OnnxRuntimeRunner(model, options={"graph_optimization_level": "disable"})({"x": x})["y"])


def operators(model: Path) -> list[str]:
    return [node.op_type for node in onnx.load(model, load_external_data=False).graph.node]


def test_a_file_is_folded_into_another(conv_bn: Path, tmp_path: Path) -> None:
    before = conv_bn.read_bytes()
    ledger = fold_file(conv_bn, tmp_path / "out.onnx")
    assert [entry.outcome for entry in ledger.norms()] == ["folded"]
    assert operators(tmp_path / "out.onnx") == ["Conv"]
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx"), outputs(conv_bn), rtol=0, atol=1e-5)
    assert conv_bn.read_bytes() == before
    assert ledger_of(tmp_path / "out.onnx") == ledger.entries


def weights_beside(model: Path) -> list[str]:
    """The files beside ``model``, each of which is called by its own sha256."""
    names = sorted(path.name for path in model.parent.iterdir() if path.name.startswith(f"{model.name}."))
    digests = [hashlib.sha256((model.parent / name).read_bytes()).hexdigest()[:16] for name in names]
    assert names == [f"{model.name}.{digest}.data" for digest in digests]
    return names


def test_large_weights_lie_beside_the_file_and_leave_with_it(conv_bn: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "on the way" / "out.onnx"
    fold_file(conv_bn, out, external_above=100)
    first = outputs(out)
    (name,) = weights_beside(out)
    fold_file(conv_bn, out, external_above=100, force=True)
    assert weights_beside(out) == [name]
    np.testing.assert_array_equal(outputs(out), first)
    fold_file(conv_bn, out, keep=["*"], external_above=100, force=True)  # other weights, another name
    assert len(weights_beside(out)) == 1
    assert weights_beside(out) != [name]
    np.testing.assert_allclose(outputs(out), first, rtol=0, atol=1e-5)
    fold_file(conv_bn, out, external_above=100, force=True)
    again = tmp_path / "again.onnx"
    fold_file(out, again)
    assert len(weights_beside(again)) == 1
    np.testing.assert_array_equal(outputs(again), first)


def test_the_output_may_not_be_the_input_nor_what_exists(conv_bn: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    link = tmp_path / "link.onnx"
    link.symlink_to(conv_bn)
    for out, force, message in (
        (conv_bn, True, "is the input"),
        (link, True, "is the input"),
        (conv_bn, False, "is the input"),
        (tmp_path, True, "a folder"),
        (conv_bn / "out.onnx", False, "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            fold_file(conv_bn, out, force=force)
    link.unlink()
    (tmp_path / "old.onnx").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        fold_file(conv_bn, tmp_path / "old.onnx")
    assert tree(tmp_path) == before | {"old.onnx": b"mine"}


def test_weights_of_the_input_are_not_written_over(conv_bn: Path, tmp_path: Path) -> None:
    source = tmp_path / "with" / "m.onnx"
    source.parent.mkdir()
    ir.save(ir.load(conv_bn), source, external_data="w.bin", size_threshold_bytes=0)
    before = tree(tmp_path)
    with pytest.raises(
        InputError, match="the output is the input: it would take the place of the weights of the model"
    ):
        fold_file(source, source.parent / "w.bin", force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_regular_file_is_left_alone(conv_bn: Path, tmp_path: Path, force: bool) -> None:
    """A device would be replaced by a file; a pipe would never end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file") as caught:
        fold_file(conv_bn, tmp_path / "pipe", force=force)
    assert "--force" not in caught.value.fix
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_leaves_the_old_file(conv_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.onnx").write_text("mine")
    before = tree(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for broken in ("onnx_ir.save", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, full)
            with pytest.raises(InputError, match="the disk is full"):
                fold_file(conv_bn, tmp_path / "old.onnx", force=True, external_above=100)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("external_above", [100, 10**9], ids=["beside", "inside"])
def test_a_weight_that_changes_while_it_is_written_leaves_nothing(
    conv_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external_above: int
) -> None:
    before, sums = tree(tmp_path), itertools.count()
    monkeypatch.setattr(weights, "HELD", 0)
    monkeypatch.setattr(weights, "fingerprint", lambda array: next(sums))
    with pytest.raises(NormdeployError, match="changed between its validation and its writing"):
        fold_file(conv_bn, tmp_path / "out.onnx", external_above=external_above)
    assert tree(tmp_path) == before


def test_strict_refuses_a_fold_that_dropped_a_plan(
    conv_bn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disproven(*_: Any, **__: Any) -> float:
        raise Refused("NF401", "validation: the outputs differ")

    monkeypatch.setattr(commute, "residual", disproven)
    with pytest.raises(VerdictError, match="failed its proof"):
        fold_file(conv_bn, tmp_path / "out.onnx", strict=True)
    assert not (tmp_path / "out.onnx").exists()
    assert fold_file(conv_bn, tmp_path / "out.onnx").dropped
    assert operators(tmp_path / "out.onnx") == ["Conv", "BatchNormalization"]


def test_what_has_no_ledger_or_report_is_refused(conv_bn: Path, tmp_path: Path) -> None:
    for path in (conv_bn, tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(InputError):
            ledger_of(path)
    for path in (conv_bn, tmp_path / "missing", tmp_path):
        with pytest.raises(InputError):
            report_of(path)
