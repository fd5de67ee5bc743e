"""No output is one of the command's own inputs, by whatever name; what is replaced is called as what is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import ROOT, tree

from normdeploy.cli import main
from normdeploy.disk.outputs import require_apart
from normdeploy.errors import InputError
from normdeploy.fleet.run import export_all
from normdeploy.serving.server import Ports, running

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from normdeploy.cli import main; sys.exit(main(sys.argv[1:]))"
EXPORT = ["export", "--model", "nets_here:net", "--input", "x:2x3", "--no-bench", "--out"]
CALIBRATE = ["calibrate", "--model", "nets_here:net", "--input", "x:2x3", "--data", "d.npz", "--out"]
INIT = ["init", "--model", "nets_here:net", "--out"]
WEIGHTS = ["--weights", "w.safetensors"]
TOML = "[export]\nno-bench = true\n"


def onnx_model(path: Path) -> None:
    import numpy as np

    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of inputs; none of them but the model is what its name says: nothing may be read before."""
    for name in ("w.safetensors", "w.pt", "d.npz", "hf/model.safetensors", "hf/config.json", "shard-1.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "index.index.json").write_text('{"weight_map": {"a": "shard-1.safetensors"}}')
    (tmp_path / "nets_here.py").write_text("raise SystemExit('it was imported')")
    (tmp_path / "normdeploy.toml").write_text(TOML)
    onnx_model(tmp_path / "m.onnx")
    (tmp_path / "soft.safetensors").symlink_to("w.safetensors")
    for name, other in (("hard.safetensors", "w.safetensors"), ("hard.onnx", "m.onnx"), ("data.onnx", "m.data")):
        (tmp_path / name).hardlink_to(tmp_path / other)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SAME = [
    *([*EXPORT, "o", *WEIGHTS, "--to-torch", name] for name in ("w.safetensors", "./hf/../w.safetensors")),
    *([*EXPORT, "o", *WEIGHTS, "--to-torch", name] for name in ("hard.safetensors", "soft.safetensors")),
    [*EXPORT, "o", "--weights", "hf", "--to-torch", "hf/model.safetensors"],
    [*EXPORT, "o", "--weights", "index.index.json", "--to-torch", "shard-1.safetensors"],
    [*EXPORT, "o", "--weights", "w.pt", "--trust", "w.safetensors", "--to-torch", "w.safetensors"],
    [*EXPORT, "o", "--data", "d.npz", "--to-torch", "d.npz"],
    [*EXPORT, "o", "--to-torch", "nets_here.py"],
    [*EXPORT, "o", "--data", "nets_here:batches", "--to-torch", "nets_here.py"],
    [*EXPORT, "o", "--to-torch", "normdeploy.toml"],
    [*EXPORT, "w.pt", "--weights", "w.pt"],
    [*EXPORT, "hf", "--weights", "hf"],
    *([*CALIBRATE, name, *WEIGHTS] for name in ("w.safetensors", "d.npz", "nets_here.py", "hard.safetensors")),
    [*CALIBRATE, "new", *WEIGHTS, "--partial", "w.safetensors"],
    [*CALIBRATE, "new", "--partial", "d.npz"],
    [*CALIBRATE, "new.safetensors", "--partial", "w.pt", "--merge", "w.pt"],
    *([*INIT, name, *WEIGHTS] for name in ("w.safetensors", "soft.safetensors", "nets_here.py")),
    *(["fold", "m.onnx", "-o", name] for name in ("m.onnx", "m.data", "hard.onnx", "data.onnx")),
    *(["build", "m.onnx", "-o", name] for name in ("m.onnx", "m.data", "hard.onnx")),
]


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("arguments", SAME, ids=" ".join)
def test_no_input_is_an_output(
    arguments: list[str], force: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    assert main([*arguments, *force]) == 2
    assert "error: the output is the input" in capsys.readouterr().err
    assert tree(here) == before
    assert (here / "soft.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*EXPORT, "o", "--to-torch", "o/f.safetensors"], "one output lies in the other: --to-torch is in --out"),
        ([*EXPORT, "o", "--to-torch", "x/../o/a/f.safetensors"], "one output lies in the other"),
        ([*EXPORT, "o", "--to-torch", "o"], "one output lies in the other"),
        ([*CALIBRATE, "a", "--partial", "a"], "one output lies in the other"),
        (["fold", "m.onnx", "-o", "steps/o.onnx", "--dump", "steps"], "one output lies in the other"),
        ([*EXPORT, "hf", "--data", "hf/config.json"], "the output holds the input: the data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_outputs_lie_apart(arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(here)
    assert main([*arguments, "--force"]) == 2
    assert said in capsys.readouterr().err
    assert tree(here) == before


@pytest.mark.parametrize(
    "arguments",
    [[*EXPORT, "o", "--to-torch"], CALIBRATE, INIT, ["fold", "m.onnx", "-o"], ["build", "m.onnx", "-o"]],
    ids=lambda value: value[0],
)
def test_force_replaces_what_is_called_as_what_is_written(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "thesis.txt").write_text("years of work")
    before = tree(here)
    for force, said in (([], "exists already"), (["--force"], "not called as what is written here")):
        assert main([*arguments, "thesis.txt", *force]) == 2
        assert said in capsys.readouterr().err
    assert tree(here) == before


def test_what_was_written_under_a_usual_name_is_replaced(here: Path) -> None:
    (here / "old.onnx").write_text("old")
    assert main(["fold", "m.onnx", "-o", "old.onnx"]) == 2
    assert main(["fold", "m.onnx", "-o", "old.onnx", "--force"]) == 0
    assert onnx.load("old.onnx").graph.node[0].op_type == "MatMul"


@pytest.mark.parametrize(
    "arguments",
    [
        [*EXPORT, "hf"],
        [*EXPORT, "hf", "--force"],
        [*EXPORT, "o", "--to-torch", "w.safetensors"],
        [*CALIBRATE, "w.safetensors"],
        [*INIT, "normdeploy.toml"],
        ["build", "m.onnx", "-o", "hard.onnx"],
        ["build", "m.onnx", "-o", "hf"],
    ],
    ids=" ".join,
)
def test_a_place_that_is_taken_is_told_before_torch_is_imported(arguments: list[str], here: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    before = tree(here)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "error: the" in done.stderr
    assert "torch" not in done.stderr.replace("--to-torch", "")
    assert tree(here) == before


def test_a_fleet_is_not_written_over(here: Path) -> None:
    (here / "fleet.json").write_text("[[model]]\nname = 'a'\nmodel = 'nets_here:net'\n")
    before = tree(here)
    with pytest.raises(InputError, match="the output is the input"):
        export_all(here / "fleet.json", here)
    assert tree(here) == before


def test_a_log_is_no_file_that_is_served(here: Path) -> None:
    before = tree(here)
    with (
        pytest.raises(InputError, match="the output is the input"),
        running(here / "hf", Ports(1, 2, 3), log=here / "hf" / "model.safetensors"),
    ):
        pass
    assert tree(here) == before


def test_what_is_not_there_is_no_input(tmp_path: Path) -> None:
    require_apart({"--out": tmp_path / "new"}, {"the weights": [tmp_path / "new", tmp_path / "other"]})
