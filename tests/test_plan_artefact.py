"""A plan as ``verify`` and ``bench`` take it: every reason why it cannot be run, and what is judged where it can."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import EAGER, RESNET, ROOT, SPEC, WEIGHTS, tree

import normdeploy
from normdeploy.cli import main
from normdeploy.disk import sha256_of
from normdeploy.engine.sidecar import read_plan
from normdeploy.errors import InputError
from normdeploy.pipeline import report_of
from normdeploy.pipeline.artefact import open_artefact
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'normdeploy[rtx]'",
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
INPUT = ["--input", SPEC]

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def engine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "bundle"
    normdeploy.export(RESNET, [SPEC], out, engine=True, sm=["89"], bench=False, app_dir=ROOT, weights=WEIGHTS)
    return out


@pytest.fixture
def plan(engine_bundle: Path, tmp_path: Path) -> Path:
    """The bundle's plan and sidecar, alone in a folder."""
    for name in ("model.plan", "model.plan.json"):
        (tmp_path / name).write_bytes((engine_bundle / name).read_bytes())
    return tmp_path / "model.plan"


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def change(plan: Path, **fields: Any) -> None:
    sidecar = plan.with_name("model.plan.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | fields))


# -- why it cannot be run ----------------------------------------------------------------------


@without_gpu
def test_without_a_gpu_it_says_so(plan: Path, engine_bundle: Path, say: Say) -> None:
    before = tree(engine_bundle)
    for arguments in (
        ["verify", plan, *EAGER, *INPUT],
        ["bench", plan, *INPUT],
        ["bench", plan, *EAGER, *INPUT],
        ["verify", engine_bundle / "model.plan", *EAGER],
        ["bench", engine_bundle / "model.plan"],
    ):
        code, out, err = say(*arguments)
        assert (code, out) == (3, "")
        assert "error: a plan runs on an NVIDIA GPU, and this machine has none" in err
    assert tree(engine_bundle) == before


def _cut(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def _flip(plan: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "SHA-256 differs"),
        (_flip, "SHA-256 differs"),
        (lambda plan: plan.with_name("model.plan.json").unlink(), "cannot read the plan's sidecar"),
        (lambda plan: plan.with_name("model.plan.json").write_text("{}"), "the plan's sidecar is damaged"),
        (lambda plan: plan.unlink(), "no such file"),
        (lambda plan: change(plan, backend_version="1.2.3.4"), "the plan was built by TensorRT-RTX 1.2.3.4, and"),
        (lambda plan: change(plan, backend="other"), "the plan was built by 'other'"),
    ],
    ids=["cut", "flipped bit", "no sidecar", "empty sidecar", "no plan", "other version", "other backend"],
)
def test_a_plan_that_does_not_fit_is_one_message(
    damage: Callable[[Path], None], said: str, plan: Path, say: Say
) -> None:
    damage(plan)
    for verb in ("verify", "bench"):
        code, out, err = say(verb, plan, *EAGER, *INPUT)
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x:N=1..1..65x1x8x8@f32", "no profile of the engine covers x [65, 1, 8, 8]"),
        ("x:N=1..1..64x1x8x9@f32", "no profile of the engine covers x [1, 1, 8, 9]"),
        ("z:N=1..1..64x1x8x8@f32", "the engine takes the inputs x"),
    ],
)
def test_inputs_that_no_profile_covers_are_refused(spec: str, said: str, plan: Path, say: Say) -> None:
    for verb in ("verify", "bench"):
        code, out, err = say(verb, plan, *EAGER, "--input", spec)
        assert (code, out) == (2, "")
        assert said in err


def test_a_plan_alone_needs_its_inputs_and_one_in_a_bundle_has_them(plan: Path, engine_bundle: Path, say: Say) -> None:
    code, _, err = say("verify", plan, *EAGER)
    assert code == 2
    assert "no input is described" in err
    code, _, err = say("bench", engine_bundle / "model.plan", *INPUT)
    assert code == 2
    assert "a bundle has its own input specs" in err


def test_without_the_backend_that_built_it_it_says_what_to_install(
    plan: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    code, _, err = say("bench", plan, *INPUT)
    assert code == 3
    assert "pip install 'normdeploy[rtx]'" in err


# -- what is judged where it runs --------------------------------------------------------------


@pytest.fixture
def computes(engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stands in for the GPU: the bundle's model in ONNX Runtime, its outputs scaled."""

    def stand_in(scale: float) -> None:
        model = OnnxRuntimeRunner(engine_bundle / "model.onnx", threads=1)

        class OnCpu:
            name, inputs, outputs = "tensorrt_rtx", model.inputs, model.outputs

            def __init__(self, plan: Path, *, trust: Sequence[Path] = (), where: Path | None = None) -> None:
                _, self.sidecar = read_plan(plan)

            def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                return {name: array * np.float32(scale) for name, array in model(feeds).items()}

        monkeypatch.setattr("normdeploy.pipeline.artefact.TensorRTRunner", OnCpu)

    return stand_in


def test_a_plan_that_runs_is_judged_and_measured(plan: Path, say: Say, computes: Callable[[float], None]) -> None:
    computes(1.0)
    assert say("verify", plan, *EAGER, *INPUT)[0] == 0
    code, out, _ = say("bench", plan, *INPUT, "--seconds", "0.05", "--json")
    assert code == 0
    assert json.loads(out)["runner"] == "tensorrt_rtx"
    computes(1.001)
    code, out, _ = say("verify", plan, *EAGER, *INPUT, "--json")
    assert code == 1
    assert json.loads(out)["first_divergent"] is None
    change(plan, precision="fp16")
    code, out, _ = say("verify", plan, *EAGER, *INPUT, "--json")
    assert code == 0  # a thousandth is one rounding of float16
    assert {one["measurement"]["dtype"] for one in json.loads(out)["judgements"]} == {"float16"}


def test_an_onnx_file_is_measured_too(engine_bundle: Path, say: Say) -> None:
    code, out, _ = say("bench", engine_bundle / "model.onnx", *INPUT, "--seconds", "0.05", "--json")
    assert code == 0
    assert json.loads(out)["runner"] == "onnxruntime"
    assert say("bench", engine_bundle / "model.onnx")[0] == 2


# -- a bundle with an engine -------------------------------------------------------------------


def _sign(folder: Path) -> None:
    """Write the files' true sha256 into the manifest, as one who makes a bundle by hand would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = [name for name in tree(folder) if name != "manifest.json"]
    path.write_text(json.dumps(manifest | {"files": {name: sha256_of(folder, name) for name in names}}))


def _forget(folder: Path) -> None:
    for name in ("model.plan", "model.plan.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: _cut(folder / "model.plan"), "SHA-256 differs"),
        (lambda folder: change(folder / "model.plan", precision="fp16"), "not the one that its report tells of"),
        (lambda folder: (folder / "model.plan.json").unlink(), "cannot read the plan's sidecar"),
        (_forget, "not the one that its report tells of"),
    ],
    ids=["cut", "another sidecar", "no sidecar", "no engine"],
)
def test_the_engine_of_a_bundle_is_the_one_that_was_built(
    break_it: Callable[[Path], None], said: str, engine_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(engine_bundle, tmp_path / "bundle"))
    bundle, built = normdeploy.load_bundle(folder), read_plan(folder / "model.plan")
    assert bundle.plan_path == bundle.copy / "model.plan"
    assert read_plan(bundle.plan_path) == built
    break_it(folder)
    assert read_plan(bundle.plan_path) == built  # what was checked is what runs
    with pytest.raises(InputError, match="the bundle is not as it was written"):
        normdeploy.load_bundle(folder)
    _sign(folder)
    with pytest.raises(InputError, match=said):
        normdeploy.load_bundle(folder)


def test_the_plan_of_a_bundle_runs_from_the_checked_copy_and_is_trusted_by_its_own_path(
    engine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(engine_bundle, tmp_path / "bundle"))
    path, opened = folder / "model.plan", []

    def swapped(plan: Path, **named: Any) -> None:
        path.write_bytes(b"another plan")
        opened.append((plan, read_plan(plan)[1], named))
        raise InputError("seen")

    monkeypatch.setattr("normdeploy.pipeline.artefact.TensorRTRunner", swapped)
    with pytest.raises(InputError, match="seen"):
        open_artefact(path, (), trust=[path])
    ((plan, sidecar, named),) = opened
    assert plan.parent != folder
    assert sidecar.size == (engine_bundle / "model.plan").stat().st_size
    assert named == {"trust": [path], "where": path}


def test_a_bundle_without_an_engine_has_no_plan(digits_bundle: Path) -> None:
    assert normdeploy.load_bundle(digits_bundle).plan_path is None
    assert report_of(digits_bundle).engine is None
