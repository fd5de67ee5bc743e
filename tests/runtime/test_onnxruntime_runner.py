"""ONNX Runtime as a runner: files, bytes, external data, bfloat16, options, providers, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from normdeploy.errors import InputError, UnavailableError
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner, operators_run

X = np.linspace(-2, 3, 6, dtype=np.float32).reshape(2, 3)


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')


def scaled() -> onnx.ModelProto:
    proto = model(
        "agraph (float[N,3] x, int64 t, float[3] w) => (float[N,3] y, int64 u) { y = Mul(x, w)  u = Add(t, t) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, -3], np.float32), "w"))
    del proto.graph.input[2]
    return proto


def check(run: OnnxRuntimeRunner) -> None:
    outputs = run({"t": np.array(4), "x": X})
    assert (run.name, run.inputs, run.outputs) == ("onnxruntime", ("x", "t"), ("y", "u"))
    assert list(outputs) == ["y", "u"]
    np.testing.assert_array_equal(outputs["y"], X * np.array([1, 2, -3], np.float32))
    assert outputs["u"] == 8


def test_bytes_and_files_run_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(scaled().SerializeToString())
    check(OnnxRuntimeRunner(scaled().SerializeToString()))
    check(OnnxRuntimeRunner(path))


def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(scaled(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert (tmp_path / "m.onnx.data").stat().st_size > 0
    check(OnnxRuntimeRunner(path))


def test_missing_weights_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(scaled(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError) as caught:
        OnnxRuntimeRunner(path)
    assert caught.value.where == str(tmp_path / "m.onnx.data")


@pytest.mark.parametrize("content", [b"", b"no model", scaled().SerializeToString()[:-9]], ids=["empty", "text", "cut"])
def test_what_is_no_model_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(InputError, match=r"onnxruntime refuses|cannot be read as an ONNX model"):
            OnnxRuntimeRunner(source)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        OnnxRuntimeRunner(tmp_path / "none.onnx")
    assert "none.onnx" in caught.value.where


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": X, "t": np.array(1.0)},
        {"x": X.astype(np.float64), "t": np.array(1)},
        {"x": X[:, :2], "t": np.array(1)},
        {"x": X[0], "t": np.array(1)},
        {"x": X},
        {"x": X, "t": np.array(1), "z": X},
    ],
    ids=["dtype of t", "dtype of x", "size", "rank", "missing", "unknown"],
)
def test_arrays_that_do_not_fit_are_refused_not_cast(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError):
        OnnxRuntimeRunner(scaled().SerializeToString())(feeds)


def test_bfloat16_goes_in_and_out_bit_by_bit() -> None:
    run = OnnxRuntimeRunner(
        model("agraph (bfloat16[N,3] x, float[N] z) => (bfloat16[N,3] y, float[N,3] f, float[N] w) "
              "{ y = Identity(x)  f = Cast <to: int = 1> (x)  w = Neg(z) }").SerializeToString()
    )  # fmt: skip
    x = np.array([[1.5, -0.0, np.inf], [3.140625, -2.5, 0.0078125]], ml_dtypes.bfloat16)
    outputs = run({"x": x, "z": np.array([1, 2], np.float32)})
    assert outputs["y"].dtype == ml_dtypes.bfloat16
    assert outputs["y"].tobytes() == x.tobytes()
    np.testing.assert_array_equal(outputs["f"], x.astype(np.float32))
    np.testing.assert_array_equal(outputs["w"], [-1, -2])
    assert run({"x": x[:0], "z": np.empty(0, np.float32)})["y"].shape == (0, 3)
    transposed = np.asfortranarray(x)
    assert run({"x": transposed, "z": np.array([1, 2], np.float32)})["y"].tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["bfloat16", "float32"])
def test_a_scalar_stays_one_where_bfloat16_is_about(dtype: Any) -> None:
    kind = np.dtype(dtype).name.replace("float32", "float")
    text = f"agraph ({kind} x, bfloat16[2] z) => ({kind} y, bfloat16[2] w) {{ y = Identity(x)  w = Identity(z) }}"
    run = OnnxRuntimeRunner(model(text).SerializeToString())
    outputs = run({"x": np.asarray(1.5, dtype), "z": np.ones(4, ml_dtypes.bfloat16)[::2]})
    assert (outputs["y"].shape, outputs["y"].dtype, outputs["w"].shape) == ((), np.dtype(dtype), (2,))
    assert outputs["y"] == 1.5


def test_a_dtype_without_kernel_is_unavailable_not_wrong() -> None:
    with pytest.raises(UnavailableError, match="lacks a kernel") as caught:
        OnnxRuntimeRunner(model("agraph (bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }").SerializeToString())
    assert caught.value.exit_code == 3


def test_onnxruntime_that_is_not_installed_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="not installed") as caught:
        OnnxRuntimeRunner(scaled().SerializeToString())
    assert "normdeploy[cpu]" in caught.value.fix


def captured_options(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """The SessionOptions that a session is really made with."""
    seen: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda m, options, **kw: seen.append(options) or session(m, options, **kw)
    )
    OnnxRuntimeRunner(scaled().SerializeToString(), **arguments)
    return seen[0]


def test_threads_and_options_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    options = captured_options(
        monkeypatch,
        threads=2,
        options={
            "graph_optimization_level": "disable",
            "enable_mem_pattern": False,
            "session.set_denormal_as_zero": "1",
        },
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.enable_mem_pattern is False
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(
    "options", [{"graph_optimization_level": "most"}, {"no_such_option": 1}, {"enable_mem_pattern": "?"}], ids=str
)
def test_an_option_that_cannot_be_set_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        OnnxRuntimeRunner(scaled().SerializeToString(), options=options)
    assert next(iter(options)) in caught.value.where


NORM = """agraph (float[N,2,8] x, float[8] g) => (float[N,2,8] y) {
    a = Relu(x)  b = Neg(x)  s = Add(a, b)  y = LayerNormalization <axis = -1> (s, g)
}"""
NO_FUSION = {"disabled_optimizers": "NoSuchFusion,SkipLayerNormFusion"}


def norm(folder: Path) -> Path:
    proto = model(NORM)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32), "g"))
    del proto.graph.input[1]
    onnx.save_model(proto, folder / "norm.onnx", save_as_external_data=True, location="w", size_threshold=0)
    return folder / "norm.onnx"


def test_a_disabled_optimizer_leaves_the_graph_alone(tmp_path: Path) -> None:
    fused, left = operators_run(norm(tmp_path)), operators_run(norm(tmp_path), NO_FUSION)
    assert fused["SkipLayerNormalization", 3] == 1
    assert left == {("Relu", 1): 1, ("Neg", 1): 1, ("Add", 2): 1, ("LayerNormalization", 2): 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["norm.onnx", "w"]


def test_a_session_that_fails_is_not_made_again_without_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's own fallback makes it again, on the CPU, and forgets the disabled optimizers."""
    asked: list[set[str]] = []
    native = onnxruntime.capi._pybind_state.InferenceSession.initialize_session

    def failing(session: Any, providers: Any, provider_options: Any, disabled: set[str]) -> None:
        asked.append(disabled)
        if len(asked) == 1:
            raise RuntimeError("no memory")
        native(session, providers, provider_options, disabled)

    monkeypatch.setattr(onnxruntime.capi._pybind_state.InferenceSession, "initialize_session", failing)
    with pytest.raises(InputError, match="no memory"):
        OnnxRuntimeRunner(norm(tmp_path), options=NO_FUSION)
    assert asked == [{"NoSuchFusion", "SkipLayerNormFusion"}]


def test_a_failure_at_run_time_says_where() -> None:
    run = OnnxRuntimeRunner(
        model("agraph (float[N] x) => (float[M] y) <int64[1] s = {5}> { y = Reshape(x, s) }").SerializeToString()
    )
    np.testing.assert_array_equal(run({"x": np.ones(5, np.float32)})["y"], np.ones(5))
    with pytest.raises(InputError, match="Reshape"):
        run({"x": np.ones(4, np.float32)})
