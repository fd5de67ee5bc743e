"""``normdeploy inspect``: what it says of the digits bundle is so, and the program it prints runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from normdeploy.bundle.contents import contents
from normdeploy.bundle.interface import Axis, Interface, Tensor
from normdeploy.cli import main
from normdeploy.serving import snippets
from normdeploy.serving.describe import describe


def section(text: str, head: str) -> str:
    """The lines below ``head``, as they can be run."""
    lines = text.partition(f"{head}\n")[2].partition("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("  ") for line in lines)


@pytest.fixture
def told(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["inspect", str(digits_bundle)]) == 0
    return capsys.readouterr().out


def test_it_says_what_the_bundle_takes_and_gives(told: str, digits_bundle: Path) -> None:
    assert "  x  float32  N (1 to 64, usually 1) x 1 x 8 x 8" in told
    assert "  output  float32  N (1 to 64, usually 1) x 10" in told
    assert "N is axis 0 of the input x and axis 0 of the output output" in told
    assert "parity passed: The graph is right" in told
    assert re.search(r"model.onnx  \d+ kB", told)
    assert len(section(told, "in Python:").splitlines()) == 5


def test_the_python_that_it_prints_runs(told: str) -> None:
    code = section(told, "in Python:")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 10)\n"


def test_the_cpp_that_it_prints_runs(told: str, tmp_path: Path) -> None:
    home = Path(os.environ.get("ONNXRUNTIME_HOME", "/usr"))
    headers = next(iter((home / "include").glob("**/onnxruntime_cxx_api.h")), None)
    if headers is None or shutil.which("g++") is None:
        pytest.skip("no g++, or no headers of ONNX Runtime: name its release folder in ONNXRUNTIME_HOME")
    (tmp_path / "main.cpp").write_text(section(told, "in C++, with ONNX Runtime:"))
    library = home / "lib"
    build = ["g++", "-std=c++17", f"-I{headers.parent}", "main.cpp", f"-L{library}", f"-Wl,-rpath,{library}"]
    subprocess.run([*build, "-lonnxruntime", "-o", "program"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "10"]


def test_the_commands_for_triton_run(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the server, which tests of its own start with the same words."""
    monkeypatch.chdir(tmp_path)
    add, serve, check = (shlex.split(line)[1:] for line in section(told, "in Triton:").splitlines())
    assert main(add) == 0
    assert main([*serve[:2], "--dry-run"]) in (0, 3)
    assert check == ["check", "http://127.0.0.1:8000", "grpc://127.0.0.1:8001", "--bundle", add[1]]


def test_what_triton_cannot_serve_is_said(digits_bundle: Path) -> None:
    found = contents(digits_bundle)
    manifest = found.manifest.model_copy(update={"session_options": {"disabled_optimizers": "SkipLayerNormFusion"}})
    text = describe(replace(found, manifest=manifest))
    assert "which Triton's onnxruntime backend cannot be told" in section(text, "in Triton:")


def test_json_has_all_of_it(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["interface"] == json.loads((digits_bundle / "io.json").read_text())
    assert document["manifest"] == json.loads((digits_bundle / "manifest.json").read_text())
    assert document["sizes"]["model.onnx"] == (digits_bundle / "model.onnx").stat().st_size


def test_what_is_no_bundle_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "it has no manifest.json" in capsys.readouterr().err


def test_a_value_lies_in_the_range_and_names_are_quoted() -> None:
    ids = Tensor(name="id's", dtype="int64", dims=(Axis(name="T", min=1, usual=3, max=9),), low=2, high=5)
    mask = Tensor(name="m", dtype="bool", dims=())
    interface = Interface(inputs=(ids, mask), outputs=(mask,), dimensions={})
    feeds: dict[str, np.ndarray] = {}
    code = snippets.python(interface, Path("it's")).splitlines()
    call = next(line for line in code if line.startswith("outputs"))
    exec(call, {"model": lambda given: feeds.update(given), "np": np})
    assert (feeds["id's"] == 2).all()
    assert (feeds["id's"].shape, feeds["id's"].dtype) == ((3,), np.int64)
    assert (feeds["m"].shape, feeds["m"].dtype) == ((), bool)


def test_session_options_are_set_in_cpp_too(digits_bundle: Path) -> None:
    options = {"disabled_optimizers": "SkipLayerNormFusion,GeluFusion"}
    code = snippets.cpp(contents(digits_bundle).interface, digits_bundle, options)
    disabled = '"optimization.disable_specified_optimizers", "SkipLayerNormFusion;GeluFusion"'
    assert f"options.AddConfigEntry({disabled});" in code
