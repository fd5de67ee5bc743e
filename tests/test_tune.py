"""``normdeploy export --tune``: what is kept is faster and right, and everything in the bundle is made of it.

Times are planted: no test here depends on how fast anything is.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from support import EAGER, ROOT, SPEC, VIT, VIT_EAGER, VIT_WEIGHTS, says

import normdeploy
from normdeploy.bench.choice import Tuning
from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.fold import FoldResult, fold
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Criteria
from normdeploy.pipeline import Source, report_of
from normdeploy.report.schema import Report
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner

SOURCE: Source = {"app_dir": ROOT, "weights": VIT_WEIGHTS}
TUNED = ["export", *VIT_EAGER, "--input", SPEC, "--no-bench", "--tune", "--out"]
NO_FUSION = "affine without SkipLayerNormFusion"
RMS = "centre for onnxruntime"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'normdeploy[rtx]'",
)

Fast = Callable[[frozenset[str]], bool]


class Stopwatch:
    """In place of the timers: 1 ms, or half of it for the sessions whose operators ``fast`` holds of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fast: Fast) -> None:
        self.fast, self.threads = fast, list[int]()
        self.operators: list[frozenset[str]] = []
        monkeypatch.setattr("normdeploy.pipeline.tune.take_turns", self)
        monkeypatch.setattr("normdeploy.pipeline.tune.OnnxRuntimeRunner", self._opened)

    def _opened(self, path: Path, *, threads: int, options: dict[str, str]) -> Runner:
        from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner, operators_run

        self.operators.append(frozenset(name for name, _ in operators_run(path, options)))
        self.threads.append(threads)
        return OnnxRuntimeRunner(path, threads=threads, options=options)

    def __call__(self, first: Runner, second: Runner, feed: Feed, **_: Any) -> tuple[list[float], list[float]]:
        """The session that was opened last is the candidate's."""
        assert first is not second
        for runner in (first, second):
            runner(feed.arrays)
        return [1.0] * 50, [0.5 if self.fast(self.operators[-1]) else 1.0] * 50


def nothing(_: frozenset[str]) -> bool:
    return False


def without_fusion(operators: frozenset[str]) -> bool:
    return "LayerNormalization" in operators and "SkipLayerNormalization" not in operators


def rms(operators: frozenset[str]) -> bool:
    return "SimplifiedLayerNormalization" in operators


def tuning(bundle: Path) -> Tuning:
    found = report_of(bundle).tuning
    assert found is not None
    return found


def kept(bundle: Path) -> str:
    (name,) = [row.name for row in tuning(bundle).candidates if row.kept]
    return name


def options(bundle: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((bundle / "manifest.json").read_text())["session_options"]
    return found


def norms(bundle: Path) -> Counter[str]:
    """The norms in the graph of the bundle."""
    nodes = onnx.load(bundle / "model.onnx").graph.node
    return Counter(node.op_type for node in nodes if node.op_type.endswith("Normalization"))


@pytest.fixture(scope="module")
def digits_vit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported without a choice; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("vit") / "bundle"
    normdeploy.export(VIT, [SPEC], out, bench=False, **SOURCE)
    return out


class Here(OnnxRuntimeRunner):
    """A session of this process in place of one of its own."""

    def __init__(self, model: Path, *, worker: object = None, **options: Any) -> None:
        super().__init__(model, **options)

    def close(self) -> None:
        """It ends with its object."""


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], Counter[str]]]:
    """What ONNX Runtime made of the graph of the last session: its norms, counted."""
    path, session = tmp_path / "optimized.onnx", onnxruntime.InferenceSession

    def opened(model: Any, asked: Any, **named: Any) -> Any:
        asked.optimized_model_filepath = str(path)
        return session(model, asked, **named)

    def count() -> Counter[str]:
        nodes = onnx.load(path).graph.node
        return Counter(node.op_type for node in nodes if node.op_type.endswith("Normalization"))

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", opened)
        for room in ("pipeline.session", "bundle.load"):  # another process would not be seen
            patch.setattr(f"normdeploy.{room}.IsolatedRunner", Here)
        yield count


def truth(scans: np.ndarray) -> np.ndarray:
    from models.digits import vit

    network = vit().eval()
    network.load_state_dict(load_file(VIT_WEIGHTS))
    with torch.no_grad():
        exact: np.ndarray = network.double()(torch.from_numpy(scans).double()).numpy()
    return exact


def assert_right(bundle: Path) -> None:
    scans = np.random.default_rng(3).random((7, 1, 8, 8), dtype=np.float32)
    exact = truth(scans)
    np.testing.assert_allclose(
        normdeploy.load_bundle(bundle)(x=scans)["output"], exact, rtol=0, atol=1e-5 * np.abs(exact).max()
    )


# -- what is kept ------------------------------------------------------------------------------


def test_a_faster_session_is_kept_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        watch = Stopwatch(patch, without_fusion)
        assert main([*TUNED, str(out)]) == 0
    assert len(set(watch.threads)) == 1
    assert kept(out) == NO_FUSION
    assert options(out) == {"disabled_optimizers": "SkipLayerNormFusion"}
    optimized = request.getfixturevalue("optimized")
    assert_right(out)
    assert optimized() == {"LayerNormalization": 7}
    normdeploy.verify(out, VIT, seed=5, **SOURCE)
    assert optimized() == {"LayerNormalization": 7}
    normdeploy.bench(out, seconds=0.01)
    assert optimized() == {"LayerNormalization": 7}
    followed: list[dict[str, str]] = []
    monkeypatch.setattr(
        "normdeploy.pipeline.judge.first_divergent_module", lambda *_, **named: followed.append(named["options"])
    )
    assert not normdeploy.verify(out, VIT, criteria=Criteria(k=0, floor_eps=0), **SOURCE).passed
    assert followed == [options(out)]


def test_without_the_option_the_session_fuses(digits_vit_bundle: Path, optimized: Callable[[], Counter[str]]) -> None:
    normdeploy.load_bundle(digits_vit_bundle)
    assert optimized()["SkipLayerNormalization"] == 1
    assert options(digits_vit_bundle) == {}
    assert report_of(digits_vit_bundle).tuning is None


def test_a_faster_form_is_kept_and_all_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(monkeypatch, rms)
    out = tmp_path / "out"
    report = normdeploy.export(VIT, [SPEC], out, tune=True, seconds=0.05, processes=1, **SOURCE)
    assert (kept(out), options(out)) == (RMS, {})
    assert norms(out) == {"SimplifiedLayerNormalization": 7}
    assert report.norms_after == {"SimplifiedLayerNormalization": 7}
    assert all("its mean is gone" in entry.reason for entry in report.ledger.norms())
    assert report.parity is not None
    assert report.parity.passed
    assert report.latency is not None
    assert report == report_of(out)
    assert_right(out)
    assert normdeploy.verify(out, VIT, seed=5, **SOURCE).passed


def test_the_default_is_what_comes_out_where_nothing_is_faster(
    digits_vit_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch, nothing)
    out = tmp_path / "out"
    assert main([*TUNED, str(out)]) == 0
    assert (kept(out), options(out)) == ("affine", {})
    for name in ("model.onnx", "golden/outputs.npz"):
        assert (out / name).read_bytes() == (digits_vit_bundle / name).read_bytes()
    rows = {row.name: row.reason for row in tuning(out).candidates}
    assert rows["affine"] == "kept: the default"
    assert rows[NO_FUSION] == rows[RMS] == "no difference"
    assert rows[f"{RMS} without SkipLayerNormFusion"] == f"ONNX Runtime runs the same operators as in {RMS!r}"


# -- what is not -------------------------------------------------------------------------------


def plant(monkeypatch: pytest.MonkeyPatch, level: str, factor: float) -> None:
    """A fold that gets one weight wrong by ``factor`` at ``level``, and at no other."""

    def wrong(model: ir.Model, **given: Any) -> FoldResult:
        result = fold(model, **given)
        if given["layernorm"] == level:
            weight = result.model.graph.initializers["blocks.1.expand.weight"]
            assert weight.const_value is not None
            weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name=weight.name)
        return result

    monkeypatch.setattr("normdeploy.pipeline.deploy.fold", wrong)


@pytest.mark.parametrize(("factor", "name"), [(1.01, "affine"), (1.0, RMS)])
def test_a_fast_form_that_is_wrong_is_not_kept(
    factor: float, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch, rms)
    plant(monkeypatch, "centre", factor)
    out = tmp_path / "out"
    normdeploy.export(VIT, [SPEC], out, tune=True, bench=False, **SOURCE)
    assert kept(out) == name
    row = next(row for row in tuning(out).candidates if row.name == RMS)
    assert row.parity is (factor == 1.0)
    assert row.reason.startswith("faster, but wrong: parity failed" if factor != 1.0 else "kept")
    assert_right(out)


def test_a_fast_session_that_is_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity is judged in the very session: the graph is the default's, only the options differ."""
    from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

    run = OnnxRuntimeRunner.__call__

    def make(runner: OnnxRuntimeRunner, *arguments: Any, **named: Any) -> None:
        init(runner, *arguments, **named)
        runner.is_odd = bool((named.get("options") or {}).get("disabled_optimizers"))  # type: ignore[attr-defined]

    def off(runner: OnnxRuntimeRunner, feeds: Any) -> dict[str, np.ndarray]:
        outputs = run(runner, feeds)
        return {name: value * np.float32(1.01) for name, value in outputs.items()} if runner.is_odd else outputs  # type: ignore[attr-defined]

    init = OnnxRuntimeRunner.__init__
    Stopwatch(monkeypatch, without_fusion)
    monkeypatch.setattr(OnnxRuntimeRunner, "__init__", make)
    monkeypatch.setattr(OnnxRuntimeRunner, "__call__", off)
    normdeploy.export(VIT, [SPEC], tmp_path / "out", tune=True, bench=False, **SOURCE)
    assert (kept(tmp_path / "out"), options(tmp_path / "out")) == ("affine", {})
    assert next(row for row in tuning(tmp_path / "out").candidates if row.name == NO_FUSION).parity is False


def test_a_default_that_is_wrong_fails_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, rms)
    plant(monkeypatch, "affine", 1.01)
    assert main([*TUNED, str(tmp_path / "out")]) == 1
    assert watch.operators == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_a_form_that_cannot_be_made_or_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(model: ir.Model, **given: Any) -> FoldResult:
        if given["layernorm"] == "centre":
            raise InputError("no memory for it")
        result = fold(model, **given)
        if given["layernorm"] == "recognise":
            next(node for node in result.model.graph if node.op_type == "LayerNormalization").op_type = "NoSuchNorm"
        return result

    Stopwatch(monkeypatch, nothing)
    monkeypatch.setattr("normdeploy.pipeline.deploy.fold", refusing)
    normdeploy.export(VIT, [SPEC], tmp_path / "out", tune=True, bench=False, **SOURCE)
    rows = {row.name: row.reason for row in tuning(tmp_path / "out").candidates}
    assert rows[RMS] == "it cannot be made: no memory for it"
    assert "it cannot be run: onnxruntime refuses" in rows["recognise"]
    assert "NoSuchNorm" in rows["recognise"]


def test_a_default_that_cannot_be_looked_into_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Counter[tuple[str, int]]:
        raise InputError("the disk is full")

    monkeypatch.setattr("normdeploy.pipeline.tune.operators_run", full)
    with pytest.raises(InputError, match="the disk is full"):
        normdeploy.export(VIT, [SPEC], tmp_path / "out", tune=True, **SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_layernorms_has_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(monkeypatch, lambda _: True)
    out = tmp_path / "out"
    assert main(["export", *EAGER, "--input", SPEC, "--no-bench", "--tune", "-o", str(out)]) == 0
    assert [row.name for row in tuning(out).candidates if row.race] == []
    assert (kept(out), options(out)) == ("affine", {})


def test_kept_norms_stay_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(monkeypatch, rms)
    out = tmp_path / "out"
    report = normdeploy.export(VIT, [SPEC], out, tune=True, keep=["blocks.1.*"], bench=False, **SOURCE)
    assert norms(out) == {"SimplifiedLayerNormalization": 5, "LayerNormalization": 2}
    assert {entry.module for entry in report.ledger.norms() if says(entry, "NF008")} == {
        "blocks.1.norm1",
        "blocks.1.norm2",
    }


# -- what it goes with -------------------------------------------------------------------------


@needs_rtx
def test_with_an_engine_there_is_no_form_that_tensorrt_would_take_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch, lambda operators: rms(operators) or without_fusion(operators))
    out = tmp_path / "out"
    report = normdeploy.export(VIT, [SPEC], out, tune=True, engine=True, sm=["86"], bench=False, **SOURCE)
    assert kept(out) == NO_FUSION
    assert norms(out) == {"LayerNormalization": 7}
    assert report.engine is not None
    row = next(row for row in tuning(out).candidates if row.name == "centre for tensorrt")
    assert "has one kernel for LayerNormalization" in row.reason


def test_16_bits_are_tuned_in_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stopwatch(monkeypatch, rms)
    out = tmp_path / "out"
    report = normdeploy.export(VIT, [SPEC], out, tune=True, precision="fp16", bench=False, **SOURCE)
    assert kept(out) == RMS
    assert report.precision.startswith("float16")
    assert report.parity is not None
    assert "judged by what eager loses in fp16" in report.parity.notes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layernorm", "centre"], "either given or chosen"),
        (["--layernorm", "off"], "either given or chosen"),
        (["--target", "tensorrt"], "measures in ONNX Runtime"),
    ],
)
def test_what_contradicts_it_is_refused_before_anything_is_done(
    more: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("normdeploy.pipeline.deploy.load", begun)
    assert main([*TUNED, str(tmp_path / "out"), *more]) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_real_timers_come_to_a_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On the machine's own clock: that something is kept, that it is right, and that all is told; never what."""
    out = tmp_path / "out"
    assert main([*TUNED, str(out)]) == 0
    told = capfd.readouterr()
    assert [line.split()[0] for line in told.err.splitlines()] == ["load", "export", "fold", "parity", "tune", "bundle"]
    assert f"tuning  {kept(out)} is kept" in told.out
    assert_right(out)
    assert Report.model_validate_json((out / "report.json").read_bytes()).tuning == tuning(out)
