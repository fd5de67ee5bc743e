"""A provider that was asked for runs the model, or that is an error: nothing falls back to the CPU in silence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser

from normdeploy.bundle import load_bundle
from normdeploy.cli import main
from normdeploy.engine.job import TF32_OVERRIDE
from normdeploy.errors import InputError, UnavailableError
from normdeploy.runtime.isolated import IsolatedRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import CPU, Placement, from_json, placed

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
MODEL = parser.parse_model(
    """<ir_version: 10, opset_import: ["": 20]>
    agraph (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { p = MatMul(x, w)  y = Relu(p) }"""
)


def path(folder: Path) -> Path:
    onnx.save(MODEL, folder / "model.onnx")
    return folder / "model.onnx"


@needs_no_gpu
@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"provider": "cuda"}, {"provider": "nv-tensorrt-rtx"}])
def test_a_gpu_that_is_not_there_is_unavailable(asked: dict[str, str]) -> None:
    with pytest.raises(UnavailableError, match="no NVIDIA GPU") as caught:
        placed(**asked)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"provider": "cdua"}, "no provider 'cdua'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"device": "cuda", "provider": "cpu"}, "does not run on the device cuda"),
        ({"tf32": True}, "--tf32 is of NVIDIA GPUs alone"),
        ({"cuda_graph": True}, "--cuda-graph is of NVIDIA GPUs alone"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        placed(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("runner", [OnnxRuntimeRunner, IsolatedRunner])
@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "xnnpack", "RocketExecutionProvider"])
def test_a_provider_that_is_not_in_the_package_is_unavailable(
    provider: str, runner: type[OnnxRuntimeRunner], tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="cannot be used"):
        runner(path(tmp_path), placement=Placement(provider=provider))


def test_a_provider_that_takes_no_node_is_unavailable(tmp_path: Path) -> None:
    """A real one: every package of ONNX Runtime has Azure's, which runs what is in the cloud, and leaves the rest."""
    assert "AzureExecutionProvider" in onnxruntime.get_available_providers()
    with pytest.raises(UnavailableError, match="AzureExecutionProvider was asked for and runs no node"):
        OnnxRuntimeRunner(path(tmp_path), placement=Placement(provider="AzureExecutionProvider"))


def test_a_provider_that_leaves_the_heavy_nodes_is_unavailable(tmp_path: Path) -> None:
    from normdeploy.runtime.placement import require_taken

    class Node:
        def __init__(self, kind: str) -> None:
            self.op_type, self.name = kind, f"node_{kind}"

    class Part:
        def __init__(self, provider: str, *kinds: str) -> None:
            self.ep_name, self._kinds = provider, kinds

        def get_nodes(self) -> list[Node]:
            return [*map(Node, self._kinds)]

    class Session:  # as of a machine with a GPU
        def __init__(self, *parts: Part) -> None:
            self.get_provider_graph_assignment_info = lambda: parts

    cuda = Placement("cuda", "cuda")
    ours = Part("CUDAExecutionProvider", "Conv", "Relu")
    assert require_taken(Session(ours), cuda) == ()
    (note,) = require_taken(Session(ours, Part("CPUExecutionProvider", "Shape", "Gather")), cuda)
    assert note == "2 small nodes run on the CPU beside CUDAExecutionProvider: Shape 1, Gather 1"
    with pytest.raises(UnavailableError, match="runs not MatMul node_MatMul"):
        require_taken(Session(ours, Part("CPUExecutionProvider", "MatMul")), cuda)


def test_a_plugin_that_is_not_installed_says_which_package(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is not installed") as caught:
        OnnxRuntimeRunner(path(tmp_path), placement=Placement("cuda", "nv-tensorrt-rtx"))
    assert caught.value.fix == "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"


def test_a_plugin_whose_library_does_not_load_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.__spec__ = onnx.__spec__
    module.__dict__["get_library_path"] = lambda: str(tmp_path / "none.so")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        OnnxRuntimeRunner(path(tmp_path), placement=Placement("cuda", "nv-tensorrt-rtx"))


def test_the_cpu_says_nothing_and_runs(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(path(tmp_path), placement=CPU)
    np.testing.assert_array_equal(runner({"x": np.eye(2, dtype=np.float32)})["y"], [[1, 2], [3, 4]])
    assert runner.notes == CPU.notes == ()


def test_a_placement_survives_the_way_to_another_process() -> None:
    one = Placement("cuda", "tensorrt", tf32=True, cuda_graph=True)
    assert from_json(json.loads(json.dumps(one.as_json()))) == one


def test_tf32_is_said_and_set_for_both() -> None:
    with_tf32, without = Placement("cuda", "cuda", tf32=True), Placement("cuda", "cuda")
    assert (with_tf32.options()["use_tf32"], without.options()["use_tf32"]) == ("1", "0")
    assert "TF32 products, in eager PyTorch too" in with_tf32.notes[0]
    assert "no TF32" in without.notes[0]


def test_a_plugin_that_is_not_told_to_capture_is_not_said_to() -> None:
    with pytest.raises(InputError, match="is not told to capture graphs"):
        Placement("cuda", "nv-tensorrt-rtx", cuda_graph=True)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_stream_of_the_callers_is_passed_on(provider: str) -> None:
    assert Placement("cuda", provider).options(stream=140_000)["user_compute_stream"] == "140000"
    assert "user_compute_stream" not in Placement("cuda", provider).options()


@pytest.mark.parametrize(("tf32", "left"), [(False, "0"), (True, None)])
def test_libraries_that_have_no_option_are_told_by_the_environment(
    tf32: bool, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's provider rounds to TF32 unless this says that it may not (onnxruntime issue 26029)."""
    monkeypatch.setenv(TF32_OVERRIDE, "1")
    CPU.set_tf32()
    assert os.environ[TF32_OVERRIDE] == "1"
    Placement("cuda", "tensorrt", tf32=tf32).set_tf32()
    assert os.environ.get(TF32_OVERRIDE) == left


@needs_no_gpu
@pytest.mark.parametrize("verb", ["verify", "bench", "bisect"])
@pytest.mark.parametrize(
    ("given", "code"), [(["--device", "cuda"], 3), (["--provider", "tensorrt"], 3), (["--provider", "gpu"], 2)]
)
def test_a_command_ends_before_anything_is_read(verb: str, given: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "no_model.onnx").touch()
    assert main([verb, str(tmp_path / "no_model.onnx"), "--model", "models.digits:resnet", *given]) == code


@needs_no_gpu
def test_a_bundle_is_not_loaded_elsewhere_than_asked() -> None:
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        load_bundle("nowhere", provider="cuda")
