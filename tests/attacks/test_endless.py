"""Models that never end, or take all memory, in ONNX Runtime: one error, and the process that ran them is gone."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import bundle_samples as samples
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normdeploy.bundle import load_bundle
from normdeploy.cli import main
from normdeploy.errors import InputError, NormdeployError
from normdeploy.runtime.isolated import PATIENCE, IsolatedRunner, patience

MOST = 3 << 30
"""Bytes that the process of a session may take in these tests."""


def looped(model: onnx.ModelProto, body: str, rounds: int) -> onnx.ModelProto:
    """``model`` whose first output goes through ``rounds`` of an operator: ``Relu``, or ``Concat`` with itself."""
    graph = model.graph
    (last,) = [node for node in graph.node if graph.output[0].name in node.output]
    last.output[0] = "before"
    for node in graph.node:
        node.input[:] = ["before" if name == graph.output[0].name else name for name in node.input]
    step = (
        helper.make_node("Relu", ["carried"], ["stepped"])
        if body == "Relu"
        else helper.make_node("Concat", ["carried"] * 2, ["stepped"], axis=0)
    )
    info = helper.make_tensor_value_info
    counted, go, state = info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("carried", 1, None)
    outputs = [info("d", TensorProto.BOOL, []), info("stepped", 1, None)]
    inner = helper.make_graph([helper.make_node("Identity", ["c"], ["d"]), step], "b", [counted, go, state], outputs)
    graph.initializer.append(numpy_helper.from_array(np.array(rounds), "rounds"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    graph.node.insert(
        [*graph.node].index(last) + 1,
        helper.make_node("Loop", ["rounds", "go", "before"], [graph.output[0].name], body=inner),
    )
    return model


def relu(path: Path, body: str, rounds: int) -> Path:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", "x", "y")], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(looped(model, body, rounds), path)
    return path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "2")


@pytest.fixture
def narrow() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.usefixtures("hasty")
def test_a_model_without_an_end_is_one_error(tmp_path: Path) -> None:
    runner = IsolatedRunner(relu(tmp_path / "m.onnx", "Relu", 2**62))
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"no answer after 2 s where it runs the model") as caught:
        runner({"x": np.ones(2, np.float32)})
    assert time.monotonic() - begin < 10
    assert PATIENCE in caught.value.fix
    assert runner._process.poll() is not None
    assert not runner._folder.exists()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("isolated", [False, True])
def test_a_bundle_without_an_end_is_one_error(bundle: Path, isolated: bool) -> None:
    model = looped(onnx.load(bundle / "model.onnx"), "Relu", 2**62)
    onnx.save(model, bundle / "model.onnx")
    samples.sign(bundle)
    with pytest.raises(InputError, match="no answer after 2 s"):
        load_bundle(bundle, isolated=isolated)


@pytest.mark.usefixtures("hasty")
def test_commands_end_on_a_model_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = relu(tmp_path / "m.onnx", "Relu", 2**62)
    (tmp_path / "endless_nets.py").write_text("import torch\ndef net(): return torch.nn.ReLU()\n")
    eager = ["--app-dir", str(tmp_path), "--model", "endless_nets:net"]
    for command in (["bench", str(path)], ["verify", str(path), *eager, "--output-names", "y"]):
        name = "x" if command[0] == "bench" else "input"
        if command[0] == "verify":
            model = onnx.load(path)
            model.graph.input[0].name = model.graph.node[0].input[0] = "input"
            onnx.save(model, path)
        code = main([*command, "--input", f"{name}:N=1..2..4"])
        said = capsys.readouterr().err
        assert code == 2, said
        assert said.count("error: ") == 1
        assert "no answer after 2 s" in said


@pytest.mark.usefixtures("narrow")
def test_a_model_that_takes_all_memory_is_one_error(tmp_path: Path) -> None:
    runner = IsolatedRunner(relu(tmp_path / "m.onnx", "Concat", 60))
    with pytest.raises(NormdeployError, match=r"onnxruntime (refuses|crashes)") as caught:
        runner({"x": np.ones(2, np.float32)})
    assert "\n" not in caught.value.what


def test_what_a_session_may_take_grows_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = relu(tmp_path / "m.onnx", "Relu", 2)
    (tmp_path / "m.onnx.data").write_bytes(bytes(80 << 20))
    assert patience(path) == 130
    monkeypatch.setenv(PATIENCE, "7.5")
    assert patience(path) == 7.5
    for wrong in ("0", "-1", "nan", "inf", "soon", ""):
        monkeypatch.setenv(PATIENCE, wrong)
        with pytest.raises(InputError, match="no number of seconds"):
            patience(path)
