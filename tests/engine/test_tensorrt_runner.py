"""The TensorRT runner: refusals with real plans; tensors, shapes and profiles with an engine that is a stand-in.

The stand-in reads and writes memory by address, as an engine does, and computes y = 2 x on the CPU. Nothing here
says that a plan runs on a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from nets import graph

from normdeploy.engine import build
from normdeploy.engine.sidecar import Sidecar, sidecar_path, write_plan
from normdeploy.errors import InputError, UnavailableError
from normdeploy.runtime.tensorrt import LayerTime, TensorRTRunner
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x3@f32"])
MORE = parse(["x:N=8..8..16x3@f32"])


@pytest.fixture(scope="module")
def plan(rtx: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = graph("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    return build(model, SPECS, more_profiles=[MORE]).write(tmp_path_factory.mktemp("plan") / "model.plan")


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU says")


@needs_no_gpu
def test_without_a_gpu_a_plan_cannot_be_loaded(plan: Path) -> None:
    with pytest.raises(UnavailableError, match="this machine has none") as caught:
        TensorRTRunner(plan)
    assert caught.value.exit_code == 3


def test_a_corrupt_plan_is_refused_before_it_is_deserialised(plan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    sidecar_path(copy).write_text(sidecar_path(plan).read_text())
    with pytest.raises(InputError, match="SHA-256"):
        TensorRTRunner(copy)


def test_a_plan_of_another_version_is_refused(plan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.plan"
    copy.write_bytes(plan.read_bytes())
    text = sidecar_path(plan).read_text()
    import tensorrt_rtx

    sidecar_path(copy).write_text(text.replace(tensorrt_rtx.__version__, "1.0.0", 1))
    with pytest.raises(InputError, match=r"was built by TensorRT-RTX 1\.0\.0, and 1\.\d"):
        TensorRTRunner(copy)


def test_a_plan_whose_backend_is_not_there_is_refused(plan: Path, tmp_path: Path) -> None:
    from normdeploy.engine import read_plan

    data, sidecar = read_plan(plan)
    other = write_plan(tmp_path / "model.plan", data, sidecar.model_copy(update={"backend": "tensorrt"}))
    if __import__("importlib.util").util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    with pytest.raises(UnavailableError, match=r"TensorRT is not installed(.|\n)*normdeploy\[gpu\]"):
        TensorRTRunner(other)


class Context:
    """Execution context of an engine that doubles."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.active_optimization_profile, self.profiler = engine, 0, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        engine.contexts.append(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.output_shape or self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.fails:
            return False
        kind = {"FLOAT": ctypes.c_float}[self.engine.dtype] * prod(self.shapes["x"])
        source, target = (kind.from_address(self.addresses[name]) for name in ("x", "y"))
        target[:] = [2 * value for value in source]
        if self.profiler is not None:
            self.profiler.report_layer_time(self.engine.timed, 0.5)
        return True


class Engine:
    """An engine that doubles."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.dtype, self.fails, self.output_shape, self.timed = "FLOAT", False, (), ""

    def create_execution_context(self) -> Context:
        return Context(self)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.dtype)


class CpuQueue:
    device = torch.device("cpu")
    handle = 0
    waits = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        self.waits += 1


class Runner(TensorRTRunner):
    def _deserialize(self, data: bytes, plan: Path) -> Any:
        return Engine()

    def _open_queue(self) -> CpuQueue:
        return CpuQueue()


@pytest.fixture
def runner(plan: Path) -> Runner:
    return Runner(plan)


@pytest.mark.parametrize(("size", "profile"), [(1, 0), (4, 0), (8, 1), (16, 1), (3, 0)])
def test_each_shape_runs_in_the_profile_that_covers_it(runner: Runner, size: int, profile: int) -> None:
    x = np.arange(size * 3, dtype=np.float32).reshape(size, 3)
    result = runner({"x": x})
    assert list(result) == ["y"]
    np.testing.assert_array_equal(result["y"], 2 * x)
    assert runner._engine.contexts[0].active_optimization_profile == profile
    assert runner._queue.waits == 1
    assert (runner.name, runner.inputs, runner.outputs) == ("tensorrt_rtx", ("x",), ("y",))


@pytest.mark.parametrize("shape", [(5, 3), (17, 3), (2, 4), (2, 3, 1), (0, 3)])
def test_a_shape_outside_every_profile_is_refused(runner: Runner, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"no profile(.|\n)*x 1\.\.2\.\.4x3; x 8\.\.8\.\.16x3"):
        runner({"x": np.zeros(shape, np.float32)})


def test_other_names_and_dtypes_are_refused(runner: Runner) -> None:
    with pytest.raises(InputError, match="takes the inputs x"):
        runner({"z": np.zeros((1, 3), np.float32)})
    with pytest.raises(InputError, match=r"float32, and was given torch\.float64(.|\n)*input x"):
        runner({"x": np.zeros((1, 3))})


def test_tensors_are_bound_without_a_copy_and_strided_ones_are_made_whole(runner: Runner) -> None:
    x = torch.randn(2, 3)
    result = runner.run({"x": x})
    assert runner._engine.contexts[0].addresses["x"] == x.data_ptr()
    assert runner._engine.contexts[0].addresses["y"] == result["y"].data_ptr()
    strided = torch.randn(3, 2).T
    assert torch.equal(runner.run({"x": strided})["y"], 2 * strided)


def test_what_the_engine_cannot_do_is_a_message(runner: Runner) -> None:
    runner._engine.output_shape = (-1, 3)
    with pytest.raises(InputError, match="shape of output y depends on the values"):
        runner({"x": np.zeros((1, 3), np.float32)})
    runner._engine.output_shape, runner._engine.fails = (), True
    with pytest.raises(InputError, match="cannot run these inputs"):
        runner({"x": np.zeros((1, 3), np.float32)})


def test_layer_times_carry_module_names(runner: Runner) -> None:
    (adding, *_) = [layer.name for layer in runner.sidecar.layers if layer.modules]
    runner._engine.timed = adding
    times = runner.layer_times({"x": torch.zeros(2, 3)}, runs=4)
    assert times == (LayerTime(adding, ("net.y",), 0.5),)


def test_bfloat16_passes_through_bit_by_bit() -> None:
    from normdeploy.runtime.tensorrt import _array, _tensor

    values = np.array([1.5, -2.0, 3e38], np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(_array(_tensor(values)), values)
    assert _tensor(values).dtype == torch.bfloat16


class Loading:
    """A backend that notes whether code in a plan may run, and then has no engine."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        seen = self.seen

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, _: object) -> None: ...

            def deserialize_cuda_engine(self, _: bytes) -> None:
                seen.append(self.engine_host_code_allowed)

        self.Runtime = Runtime
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, _: None})


@pytest.mark.parametrize("options", [{"version_compatible": True}, {"version_compatible": 1, "refit": True}])
def test_a_plan_that_carries_code_is_loaded_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    """Its sidecar is no witness: whoever forged the plan wrote that as well."""
    plan, other = (write_plan(tmp_path / name, b"plan", sidecar(options)) for name in ("a.plan", "b.plan"))
    backend = Loading()
    monkeypatch.setattr("normdeploy.runtime.tensorrt._import", lambda _: backend)
    monkeypatch.setattr("normdeploy.engine.gpu.find", lambda: SimpleNamespace(capability="SM89"))
    for trust in ((), (other,), (tmp_path,)):
        with pytest.raises(InputError, match=rf"carries code(.|\n)*--trust {plan}"):
            TensorRTRunner(plan, trust=trust)
    assert backend.seen == []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be deserialised"):
        TensorRTRunner(plan, trust=(Path("a.plan"),))
    assert backend.seen == [True]


def test_trust_alone_lets_no_other_plan_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, backend = write_plan(tmp_path / "a.plan", b"plan", sidecar({})), Loading()
    monkeypatch.setattr("normdeploy.runtime.tensorrt._import", lambda _: backend)
    monkeypatch.setattr("normdeploy.engine.gpu.find", lambda: SimpleNamespace(capability="SM89"))
    with pytest.raises(InputError, match="cannot be deserialised"):
        TensorRTRunner(plan, trust=(plan,))
    assert backend.seen == [False]


@pytest.mark.parametrize("plugins", [None, "aot", "python"])
def test_plugins_that_python_launches_are_there_before_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: str | None
) -> None:
    document = sidecar({}).model_copy(update={"plugins": plugins})
    plan, backend, told = write_plan(tmp_path / "a.plan", b"plan", document), Loading(), []
    monkeypatch.setattr("normdeploy.runtime.tensorrt._import", lambda _: backend)
    monkeypatch.setattr("normdeploy.engine.gpu.find", lambda: SimpleNamespace(capability="SM89"))
    monkeypatch.setattr(
        "normdeploy.engine.plugin_v3.register", lambda trt, sm: told.append((trt, sm, list(backend.seen)))
    )
    with pytest.raises(InputError, match="cannot be deserialised"):
        TensorRTRunner(plan)
    assert told == ([(backend, 89, [])] if plugins == "python" else [])


def sidecar(options: dict[str, bool]) -> Sidecar:
    return Sidecar(
        backend="tensorrt_rtx", backend_version="1", gpu=None, compute_capabilities=("SM89",), inputs=("x",),
        outputs=("y",), profiles=(), precision="fp32", sha256=hashlib.sha256(b"plan").hexdigest(), size=4,
        timing_cache_key=None, options=options, layers=(),
    )  # fmt: skip
