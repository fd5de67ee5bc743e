"""A session in a process of its own: the same answers, its errors as they are, its crash a message."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normdeploy.errors import InputError
from normdeploy.runtime import optimizers
from normdeploy.runtime.isolated import CrashError, IsolatedRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(folder: Path, op: str = "Relu", dtype: int = TensorProto.FLOAT) -> Path:
    info = [helper.make_tensor_value_info(name, dtype, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", info[:1], info[1:])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_it_answers_what_a_session_here_answers(tmp_path: Path) -> None:
    path = model(tmp_path)
    there, here = IsolatedRunner(path), OnnxRuntimeRunner(path)
    assert (there.name, there.inputs, there.outputs) == (here.name, here.inputs, here.outputs)
    for x in (X, -X, np.zeros((0, 3), np.float32)):
        np.testing.assert_array_equal(there({"x": x})["y"], here({"x": x})["y"])


def test_bfloat16_goes_both_ways(tmp_path: Path) -> None:
    x = X.astype(ml_dtypes.bfloat16)
    y = IsolatedRunner(model(tmp_path, "Identity", TensorProto.BFLOAT16))({"x": x})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    assert y.tobytes() == x.tobytes()


def test_what_the_session_raises_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"cannot be read|refuses"):
        IsolatedRunner(tmp_path / "no.onnx")
    runner = IsolatedRunner(model(tmp_path))
    with pytest.raises(InputError, match="refuses"):
        runner({"x": np.zeros((2, 4), np.float32)})
    assert runner({"x": X})["y"].shape == (2, 3)  # and it goes on


def test_a_death_is_a_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "model").mkdir()
    runner = IsolatedRunner(model(tmp_path / "model"))
    os.kill(runner._process.pid, signal.SIGSEGV)
    with pytest.raises(CrashError, match="onnxruntime crashes") as caught:
        runner({"x": X})
    assert (caught.value.exit_code, caught.value.signal) == (1, "SIGSEGV")
    assert "where it runs the model" in caught.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_process_ends_with_its_runner(tmp_path: Path) -> None:
    runner = IsolatedRunner(model(tmp_path))
    process, folder = runner._process, runner._folder
    del runner
    assert process.wait(10) is not None
    assert not folder.exists()


@pytest.mark.parametrize("guilty", [{"GemmSumFusion"}, {"ConstantFolding", "SwiGluFusion"}, {"MatmulTransposeFusion"}])
def test_the_optimizers_to_blame_are_found(guilty: set[str]) -> None:
    asked: list[Sequence[str]] = []

    def crashes(off: Sequence[str]) -> bool:
        asked.append(off)
        return not guilty <= set(off)

    assert set(optimizers.culprits(crashes) or ()) == guilty
    assert len(asked) < 60


def test_what_no_optimizer_causes_accuses_none() -> None:
    assert optimizers.culprits(lambda off: True) is None


def test_a_quantized_network_keeps_its_weights() -> None:
    quantize = helper.make_node("QuantizeLinear", ["x", "s"], ["y"])
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("s", 1, [])]
    out = helper.make_tensor_value_info("y", TensorProto.UINT8, [2])
    graph = ir.serde.deserialize_model(helper.make_model(helper.make_graph([quantize], "g", info, [out])))
    assert optimizers.faithful(graph) == {"disabled_optimizers": "WeightBiasQuantization"}
    both = optimizers.without(optimizers.faithful(graph), ["GemmSumFusion"])
    assert both == {"disabled_optimizers": "WeightBiasQuantization,GemmSumFusion"}
