"""``normdeploy build`` with the real builder: what the plan is made of, and one message for each way there is none."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import ROOT, SPEC, tree

import normdeploy
from normdeploy.cli import main
from normdeploy.cli.options import Talk
from normdeploy.engine import Sidecar, read_plan
from normdeploy.errors import InputError, UnavailableError

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'normdeploy[rtx]'",
)
BATCH_NORMS = {"norm", *(f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2))}
BATCH_NORMS |= {"blocks.1.shortcut.1", "blocks.2.shortcut.1"}
LAYER_NORMS = {f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)} | {"norm"}

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Run ``normdeploy build`` with arguments; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["build", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def vit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vit") / "bundle"
    weights = ROOT / "models" / "digits_vit.safetensors"
    normdeploy.export("models.digits:vit", [SPEC], out, bench=False, app_dir=ROOT, weights=weights)
    return out


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where builds keep what they need while they run."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def model(path: Path, text: str) -> Path:
    domain = ', "my" : 1' if "my." in text else ""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20{domain}]> g {text}'), path)
    return path


# -- what is built -----------------------------------------------------------------------------


@needs_rtx
def test_after_the_fold_no_batch_norm_is_a_layer(digits_bundle: Path, tmp_path: Path, say: Say) -> None:
    code, out, _ = say(digits_bundle, "-o", tmp_path / "model.plan", "--json", "--sm", "86,89,120")
    assert code == 0
    document = json.loads(out)
    assert document["compute_capabilities"] == ["SM86", "SM89", "SM120"]
    for layer in document["layers"]:
        assert {"name", "modules", "precision", "tactic", "inputs", "outputs"} <= layer.keys()
        assert "BatchNormalization" not in layer["operators"]
        assert BATCH_NORMS.isdisjoint(layer["modules"])
    convolutions = [layer for layer in document["layers"] if "Conv" in layer["operators"] and layer["tactic"]]
    activated = [layer for layer in convolutions if "Relu" in layer["operators"] and layer["kind"] != "kgen"]
    assert len(activated) == 7  # of nine convolutions, two add to a shortcut first
    assert {layer["precision"] for layer in activated} == {"fp32"}
    plan, sidecar = read_plan(tmp_path / "model.plan")
    assert Sidecar.model_validate(document) == sidecar
    assert len(plan) == sidecar.size
    assert [str(span) for each in sidecar.profiles for span in each.values()] == ["1..1..64x1x8x8"]


@needs_rtx
def test_a_layer_norm_is_one_layer_with_its_residual(vit_bundle: Path, tmp_path: Path, say: Say) -> None:
    code, out, _ = say(vit_bundle, "-o", tmp_path / "model.plan", "--json")
    assert code == 0
    layers = [layer for layer in json.loads(out)["layers"] if "LayerNormalization" in layer["operators"]]
    averaging = [layer for layer in layers if layer["statistics"]]
    assert {layer["statistics"] for layer in averaging} == {"fp32"}
    held = [sorted(LAYER_NORMS & set(layer["modules"])) for layer in averaging]
    assert all(len(names) == 1 for names in held)
    assert sorted(name for (name,) in held) == sorted(LAYER_NORMS)
    assert all("Add" in layer["operators"] for layer in averaging)


@needs_rtx
def test_the_engine_computes_in_what_was_asked_and_says_so(digits_bundle: Path, tmp_path: Path, say: Say) -> None:
    code, out, err = say(digits_bundle, "-o", tmp_path / "model.plan", "--precision", "fp16", "--layers")
    assert code == 0
    assert "in fp16, for SM" in out
    assert "blocks.2.conv2" in out.replace("\n", "")
    assert out.rstrip().endswith("model.plan")
    assert err == ""
    sidecar = read_plan(tmp_path / "model.plan")[1]
    heavy = [layer for layer in sidecar.layers if {"Conv", "Gemm"} & set(layer.operators) and not layer.moves]
    assert {layer.precision for layer in heavy} == {"fp16"}


@needs_rtx
def test_the_same_in_python(digits_bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "new" / "model.plan"
    built = normdeploy.build(digits_bundle, plan, precision="fp16", sm=["89"])
    assert read_plan(plan) == (built.plan, built.sidecar)
    with pytest.raises(InputError, match="exists already"):
        normdeploy.build(digits_bundle, plan)


@needs_rtx
def test_a_file_is_built_in_its_own_precision_or_widened(tmp_path: Path, say: Say) -> None:
    text = "(float16[4,4] x) => (float16[4,4] y) { y = MatMul(x, x) }"
    path = model(tmp_path / "half.onnx", text)
    code, out, _ = say(path, "-o", tmp_path / "half.plan", "--json")
    assert code == 0
    assert json.loads(out)["precision"] == "fp16"
    code, out, _ = say(path, "-o", tmp_path / "wide.plan", "--precision", "fp32", "--json")
    assert code == 0
    assert json.loads(out)["precision"] == "fp32"


# -- what is not -------------------------------------------------------------------------------


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_backend")
def test_without_a_backend_it_says_what_to_install(digits_bundle: Path, tmp_path: Path, say: Say) -> None:
    for more in ([], ["--backend", "tensorrt_rtx"]):
        code, out, err = say(digits_bundle, "-o", tmp_path / "model.plan", *more)
        assert (code, out) == (3, "")
        assert "pip install 'normdeploy[rtx]'" in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnavailableError):
        normdeploy.build(digits_bundle, tmp_path / "model.plan")


GEMMS = "(float[N,4] x, float[4,4] w) => (float[N,4] y) { h = MatMul(x, w) r = Softmax(h) y = MatMul(r, w) }"
BAD = [
    pytest.param(GEMMS, [], "x: a dynamic shape without a range", id="no range"),
    pytest.param(GEMMS, ["--input", "x:N=1..8x5"], "dimension 1 is 4 in the model, 5..5 in the spec", id="other size"),
    pytest.param(GEMMS, ["--input", "z:N=1..8x4"], "the model has no such input", id="no such input"),
    pytest.param(GEMMS, ["--input", "x:N=8..1x4"], "x:N=8..1x4", id="backward range"),
    pytest.param(GEMMS, ["--input", "x:N=1..8x4", "--sm", "999"], "builds for no SM999", id="no such GPU"),
    pytest.param(GEMMS, ["--input", "x:N=1..8x4", "--level", "9"], "no such builder optimization level", id="level"),
    pytest.param(GEMMS, ["--input", "x:N=1..8x4", "--workspace", "0"], "out of workspace", id="workspace"),
    pytest.param(GEMMS, ["--input", "x:N=1..8x4", "--workspace", "-1"], "no such amount of memory", id="negative"),
    pytest.param(
        "(float[2,4] x) => (float[2,4] y) { h = Relu(x) y = my.Strange(h) }",
        [],
        "does not know the operator my::Strange",
        id="operator",
    ),
]


@needs_rtx
@pytest.mark.parametrize(("text", "arguments", "said"), BAD)
def test_what_cannot_be_built_is_one_message(
    text: str, arguments: list[str], said: str, tmp_path: Path, scratch: Path, say: Say
) -> None:
    path = model(tmp_path / "model.onnx", text)
    code, out, err = say(path, "-o", tmp_path / "model.plan", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert "bug" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "scratch"]
    assert list(scratch.iterdir()) == []


@needs_rtx
def test_files_that_are_no_model_and_places_that_are_none(digits_bundle: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "text").write_text("no model")
    (tmp_path / "old.plan").write_text("old")
    onnx_file = digits_bundle / "model.onnx"
    before = tree(digits_bundle)
    for arguments, said in (
        ([tmp_path / "text", "-o", tmp_path / "m.plan"], "the file cannot be read as an ONNX model"),
        ([tmp_path / "none", "-o", tmp_path / "m.plan"], "no such file"),
        ([tmp_path, "-o", tmp_path / "m.plan"], "not a bundle"),
        ([digits_bundle, "-o", tmp_path / "m.plan", "--input", SPEC], "a bundle has its own input specs"),
        ([digits_bundle, "-o", tmp_path / "old.plan"], "exists already"),
        ([digits_bundle, "-o", tmp_path], "there is a folder"),
        ([digits_bundle, "-o", tmp_path / "text" / "m.plan"], "a file is in the way of the output"),
        ([digits_bundle, "-o", digits_bundle / "m.plan"], "a bundle takes no further files"),
        ([onnx_file, "-o", onnx_file, "--force"], "the output is the input"),
    ):
        code, out, err = say(*arguments)
        assert (code, out) == (2, ""), said
        assert said in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.plan", "text"]
    assert tree(digits_bundle) == before
    assert (tmp_path / "old.plan").read_text() == "old"


@needs_rtx
def test_an_engine_of_another_precision_exits_1(
    digits_bundle: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the precision step to fail silently, the layer table of the built engine would tell."""
    monkeypatch.setattr("normdeploy.engine.builder.to_precision", lambda model, precision: model.clone())
    monkeypatch.setattr("normdeploy.engine.builder.wrong_precision", lambda model, precision: ())
    code, out, err = say(digits_bundle, "-o", tmp_path / "model.plan", "--precision", "fp16")
    assert (code, out) == (1, "")
    assert "the engine does not compute in fp16" in err
    assert "blocks.0.conv1" in err
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_ctrl_c_leaves_the_older_plan(
    digits_bundle: Path, tmp_path: Path, scratch: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "model.plan"
    normdeploy.build(digits_bundle, old, sm=["89"])
    before = tree(tmp_path)

    def interrupt(_: Any) -> None:
        assert list(scratch.iterdir())  # the builder is at work
        raise KeyboardInterrupt

    @contextmanager
    def building(_: Talk) -> Iterator[Callable[[Any], None]]:
        yield interrupt

    monkeypatch.setattr("normdeploy.cli.streams.building", building)
    code, out, err = say(digits_bundle, "-o", old, "--force")
    assert (code, out) == (130, "")
    assert "interrupted; nothing was written" in err
    assert tree(tmp_path) == before


def test_the_bars_are_for_terminals(capfd: pytest.CaptureFixture[str]) -> None:
    from normdeploy.cli import streams
    from normdeploy.engine.process import Progress

    with streams.building(Talk()) as progress:
        progress(Progress("Building engine", "", 0, 3))
    assert capfd.readouterr() == ("", "")
