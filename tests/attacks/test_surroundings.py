"""What a process is started in, and what runs in it: no folder, no room, no words; one error that says which."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from normdeploy.cli import main, output
from normdeploy.cli.guard import Guard
from normdeploy.errors import words


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Let this process have no more than ``most`` of what ``kind`` limits."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def conv_bn(folder: Path, channels: int = 256) -> Path:
    """A model of some 30 kB."""
    draw = np.random.default_rng(0)
    weights = [numpy_helper.from_array(draw.standard_normal((channels, 3, 3, 3)).astype(np.float32), "w")]
    weights += [numpy_helper.from_array(draw.uniform(0.5, 1.5, channels).astype(np.float32), name) for name in "sbmv"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("BatchNormalization", ["c", *"sbmv"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 3, 8, 8]), ("y", None)))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("out", ["o.onnx", "/"])
def test_a_folder_that_was_removed_is_none_to_run_in(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, gone = conv_bn(tmp_path), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["fold", str(model), "-o", str(tmp_path / "o.onnx") if out == "/" else out]) == 2
    assert "error: the current folder is not there any more" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_may_not_become_so_large_is_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = conv_bn(tmp_path)
    assert main(["fold", str(model), "-o", str(tmp_path / "first.onnx")]) == 0  # what is cached is written
    with limited(resource.RLIMIT_FSIZE, 8192):
        assert main(["fold", str(model), "-o", str(tmp_path / "o.onnx")]) == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "free some space, or choose another --out" in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "o."))]


def test_a_copy_of_a_bundle_that_finds_no_space_is_no_fault_of_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with limited(resource.RLIMIT_FSIZE, 100):
        assert main(["package", str(bundle), "-o", str(tmp_path / "models")]) == 2
    assert "there is no space for a copy of the bundle" in capsys.readouterr().err


def test_too_many_open_files_are_no_fault_of_the_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0  # all is imported
    free = os.dup(0)
    os.close(free)
    with limited(resource.RLIMIT_NOFILE, free + 3):
        assert main(["inspect", str(bundle)]) == 2
    said = capsys.readouterr().err
    assert "Too many open files" in said
    assert "ulimit -n" in said


def test_no_memory_is_what_this_machine_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    with Guard(debug=False) as guard:
        bytearray(2**62)
    assert guard.code == 3
    assert "error: there is not enough memory" in capsys.readouterr().err


def test_a_path_that_is_no_text_is_spelled_out(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(os.fsencode(bundle.parent) + b"/b\xff")
    shutil.copytree(bundle, odd)
    assert main(["inspect", odd, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"].endswith("/b\\udcff")


def test_the_command_that_a_report_names_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["normdeploy", "export", "--out", "o\udcff\n"])
    assert output.command_line() == "normdeploy export --out 'o\\udcff\\n'"


FACTORIES = """
class Own(BaseException): ...
class Mute(Exception):
    def __str__(self): raise RuntimeError("no words")
def own(): raise Own("of its own")
def mute(): raise Mute
def ends(): raise GeneratorExit
def leaves(): raise SystemExit(0)
def long(): raise ValueError("long " * 10_000_000)
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [("own", "Own: of its own"), ("mute", "Mute"), ("ends", "GeneratorExit"), ("leaves", "SystemExit: 0"),
     ("long", "ValueError: long long")],
)  # fmt: skip
def test_whatever_a_factory_raises_is_the_factorys(
    factory: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"factories_of_{factory}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    assert main(["doctor", "--app-dir", str(tmp_path), "--model", f"{name}:{factory}"]) == 2
    told = capsys.readouterr().err
    assert f"error: {name}:{factory} raised {said}" in told
    assert "bug in normdeploy" not in told
    assert len(told) < 10_000


def test_words_of_an_error_without_words_are_none() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert words(Mute()) == ""


CHANGES = """
import os, sys
import numpy
from torch import nn

def moves():
    os.chdir("/")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

def strict():
    numpy.seterr(all="raise")
    module = moves()
    with __import__("torch").no_grad():
        module[0].weight.mul_(1e-30)
    return module

class Leaves(nn.Module):
    def forward(self, input):
        sys.exit(0)

def leaves():
    return Leaves().eval()
"""


@pytest.mark.parametrize("factory", ["moves", "strict"])
def test_what_a_factory_changes_of_the_process_is_undone(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"changes_{factory}.py").write_text(CHANGES)
    command = ["export", "--app-dir", ".", "--model", f"changes_{factory}:{factory}", "--no-bench"]
    assert main([*command, "--input", "input:N=1..1..2x3x8x8", "--out", "here"]) == 0, capsys.readouterr().err
    assert (tmp_path / "here" / "manifest.json").is_file()
    assert Path.cwd() == tmp_path


def test_a_forward_that_ends_the_process_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "changes_leaves.py").write_text(CHANGES)
    command = ["export", "--app-dir", str(tmp_path), "--model", "changes_leaves:leaves", "--input", "input:1x3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "ended the process, by SystemExit(0)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
