"""IO binding, on the CPU: the same answers as a plain run, for every dtype and shape; what it is for needs a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from normdeploy.errors import InputError
from normdeploy.runtime.binding import Binding
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import Placement
from normdeploy.specs import parse

KINDS = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "int64": TensorProto.INT64, "int32": TensorProto.INT32,
    "int16": TensorProto.INT16, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL,
}  # fmt: skip


def runner(folder: Path, kind: int, rank: int, operator: str = "Identity") -> OnnxRuntimeRunner:
    dims = [f"d{axis}" for axis in range(rank)]
    x, y = (helper.make_tensor_value_info(name, kind, dims) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "m.onnx")
    return OnnxRuntimeRunner(folder / "m.onnx")


def bound(made: OnnxRuntimeRunner, feeds: dict[str, np.ndarray]) -> Binding:
    return Binding(made._session, feeds, "cpu", graph=1)  # the number is heeded on a GPU alone


@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4), (1,)])
@pytest.mark.parametrize("dtype", KINDS)
def test_what_is_bound_arrives(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.dtype(dtype))
    made = runner(tmp_path, KINDS[dtype], len(shape))
    binding = bound(made, {"x": x})
    for value in (x, x[::-1].copy() if shape and x.size else x):
        binding.write({"x": value})
        binding.launch()
        told = binding.read()["y"]
        assert told.shape() == list(shape)
        if dtype != "bfloat16" and x.size:
            np.testing.assert_array_equal(told.numpy(), value)


def test_a_captured_session_gives_new_answers_for_new_arrays_and_shapes(tmp_path: Path) -> None:
    """As with --cuda-graph: memory by shape, which is written anew; what was given out before stays as it was."""
    made = runner(tmp_path, TensorProto.FLOAT, 2, "Neg")
    made.placement = Placement("cuda", "cuda", cuda_graph=True)
    object.__setattr__(made.placement, "device", "cpu")  # there is no GPU whose memory could be taken
    generator, given = np.random.default_rng(0), []
    for shape in ((2, 3), (4, 3), (2, 3), (2, 3)):
        x = generator.standard_normal(shape).astype(np.float32)
        given.append((x, made({"x": x})["y"]))
    for x, y in given:
        np.testing.assert_array_equal(y, -x)
    assert len(made._bindings) == 2


def test_threads_do_not_write_into_each_others_memory(tmp_path: Path) -> None:
    made = runner(tmp_path, TensorProto.FLOAT, 1, "Neg")
    made.placement = Placement("cuda", "cuda", cuda_graph=True)
    object.__setattr__(made.placement, "device", "cpu")

    def right(value: int) -> bool:
        return bool((made({"x": np.full(4096, value, np.float32)})["y"] == -value).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(2000)))


def test_bfloat16_is_read_as_its_bits(tmp_path: Path) -> None:
    made = runner(tmp_path, TensorProto.BFLOAT16, 1)
    made.placement = Placement("cuda", "cuda", cuda_graph=True)
    object.__setattr__(made.placement, "device", "cpu")
    x = np.array([1.5, -2.25], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(made({"x": x})["y"], x)


def test_a_launcher_runs_where_the_inputs_lie(tmp_path: Path) -> None:
    made = runner(tmp_path, TensorProto.FLOAT, 1, "Neg")
    x = np.array([1.0, 2.0], np.float32)
    launch = made.launcher({"x": x})
    x[:] = 9.0  # the copy was taken
    launch()
    (binding,) = made._bindings.values()
    np.testing.assert_array_equal(binding.read()["y"].numpy(), [-1.0, -2.0])


def test_a_launcher_says_what_the_session_refuses(tmp_path: Path) -> None:
    made = runner(tmp_path, TensorProto.FLOAT, 2)
    with pytest.raises(InputError, match="takes the inputs x"):
        made.launcher({"z": np.zeros((1, 1), np.float32)})
    with pytest.raises(InputError, match="onnxruntime refuses"):
        made.launcher({"x": np.zeros(1, np.float32)})


def test_eager_launches_the_module_on_tensors_that_lie_there() -> None:
    seen: list[torch.Tensor] = []

    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x + 1

    launch = EagerRunner(Module().eval(), parse(["x:2x3"])).launcher({"x": np.ones((2, 3), np.float32)})
    assert seen == []
    launch()
    launch()
    assert seen[0] is seen[1]
