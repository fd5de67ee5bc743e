"""``fold --precision``: files of other exporters and opsets in 16 bits, which load and agree in ONNX Runtime."""

from __future__ import annotations

import importlib
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from normdeploy.cli import main
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

GRAPH = """<ir_version: 8, opset_import: [%s]>
g (float[N,4,6,6] x, int64[2] keep) => (float[N,4,12,12] y, int64[M] at, float[N,4,6,6] z)
<float[4,4,1,1] w = {%s}, float[4] s = {1.5,0.5,2.0,1.0}, float[4] t = {0.1,0.2,0.3,0.4}, float[4] m = {0,1,2,3},
 float[4] v = {1,2,3,4}, float[4] scales = {1,1,2,2}, float[0] roi = {}, float zero = {0}, float one = {1},
 float far = {3000}, int64[1] first = {0}> {
    c = Conv(x, w) b = BatchNormalization(c, s, t, m, v) r = Relu(b)
    y = Resize<mode = "nearest">(r, roi, scales)
    all = Range(zero, far, one) at_float = Gather(all, keep) at = Cast<to = 7>(at_float)
    half = ReduceSum<axes = [0], keepdims = 0>(keep) go = Cast<to = 9>(half)
    z = If(go) <then_branch = yes () => (float[N,4,6,6] a) { a = Mul(r, one) },
                else_branch = no () => (float[N,4,6,6] a) { a = Neg(r) }>
}"""


def agree(source: Path, out: Path, feeds: dict[str, np.ndarray], bound: float) -> None:
    exact, actual = OnnxRuntimeRunner(source, threads=1)(feeds), OnnxRuntimeRunner(out, threads=1)(feeds)
    assert list(exact) == list(actual)
    for name, array in exact.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        difference = np.abs(actual[name].astype(np.float64) - array).max()
        assert difference <= (bound * np.abs(array).max() if array.dtype.kind == "f" else 0), name


def types_read(path: Path, operator: str) -> set[int]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {kinds[node.input[0]] for node in graph.node if node.op_type == operator}


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_file_of_all_kinds_of_operators_loads_and_agrees(opset: int, tmp_path: Path) -> None:
    weights = ",".join(str(round(float(each), 3)) for each in np.random.default_rng(0).standard_normal(16))
    source, out = tmp_path / "model.onnx", tmp_path / "half.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH % (f'"" : {opset}', weights)), source)
    assert main(["fold", str(source), "-o", str(out), "--precision", "fp16"]) == 0
    assert types_read(out, "Conv") == {onnx.TensorProto.FLOAT16}
    assert types_read(out, "Gather") == {onnx.TensorProto.FLOAT}  # of a constant Range: 2049 is no float16
    assert not types_read(out, "BatchNormalization")
    random = np.random.default_rng(1)
    for keep in ([2049, 2999], [-3, 3]):  # both branches
        feeds = {"x": random.standard_normal((2, 4, 6, 6)).astype(np.float32), "keep": np.array(keep)}
        agree(source, out, feeds, 4 * 2.0**-11)


def test_what_the_older_exporter_of_torch_writes_loads_and_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4),
    ).eval()  # fmt: skip
    source, out = tmp_path / "model.onnx", tmp_path / "half.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(2, 3, 8, 8),), source, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
    assert main(["fold", str(source), "-o", str(out), "--precision", "fp16"]) == 0
    x = torch.randn(3, 3, 8, 8)
    exact = net.double()(x.double()).detach().numpy()
    (actual,) = OnnxRuntimeRunner(out, threads=1)({"x": x.numpy()}).values()
    assert np.abs(actual - exact).max() < 8 * 2.0**-11 * np.abs(exact).max()


def test_a_16_bit_file_is_widened_exactly(tmp_path: Path) -> None:
    weights = ",".join(str(round(float(each), 3)) for each in np.random.default_rng(0).standard_normal(16))
    source, half, wide = tmp_path / "model.onnx", tmp_path / "half.onnx", tmp_path / "wide.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH % ('"" : 12', weights)), source)
    assert main(["fold", str(source), "-o", str(half), "--precision", "fp16"]) == 0
    assert main(["fold", str(half), "-o", str(wide), "--precision", "fp32"]) == 0
    assert types_read(wide, "Conv") == {onnx.TensorProto.FLOAT}
    feeds = {"x": np.ones((1, 4, 6, 6), np.float32), "keep": np.array([5, 6])}
    agree(half, wide, feeds, 4 * 2.0**-11)


def test_an_opset_without_the_type_is_refused_with_what_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model.onnx"
    weights = ",".join(["1"] * 16)
    onnx.save(onnx.parser.parse_model(GRAPH % ('"" : 12', weights)), source)
    assert main(["fold", str(source), "-o", str(tmp_path / "out.onnx"), "--precision", "bf16"]) == 2
    assert "opset 12 has no bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def scaled_by(scale: float, kind: str) -> onnx.ModelProto:
    """A product of a weight and a map that makes it too small for float16: a Mul, or a BatchNormalization."""
    inits = {"w": np.random.default_rng(0).standard_normal((64, 8)) * 0.01, "s": np.full(8, scale)}
    nodes = "y = Mul(c, s)"
    if kind == "BatchNormalization":
        inits |= {"b": np.zeros(8), "m": np.zeros(8), "v": np.full(8, 4.0)}
        nodes = "y = BatchNormalization(c, s, b, m, v)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x) => (float[N,8] y) {{ c = MatMul(x, w) {nodes} }}'
    )
    arrays = {name: array.astype(np.float32) for name, array in inits.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


@pytest.mark.parametrize("kind", ["Mul", "BatchNormalization"])
@pytest.mark.parametrize("scale", [1e-2, 1e-5, 1e-6, 1e-7])
def test_weights_that_would_vanish_in_float16_are_left_as_they_are(kind: str, scale: float, tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "half.onnx"
    proto = scaled_by(scale, kind)
    onnx.save(proto, source)
    assert main(["fold", str(source), "-o", str(out), "--precision", "fp16"]) == 0
    assert types_read(out, "MatMul") == {onnx.TensorProto.FLOAT16}
    assert bool(types_read(out, kind)) is (scale < 1e-2)
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32) * 1000
    w = onnx.numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    exact = x @ w * np.float32(scale) / (np.sqrt(4 + 1e-5) if kind == "BatchNormalization" else 1)
    (actual,) = OnnxRuntimeRunner(out, threads=1)({"x": x}).values()
    assert np.abs(actual - exact).max() < 8 * 2.0**-11 * np.abs(exact).max()


NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    return module.requires_grad_(False)
"""


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write what torch.onnx.export makes of ``told_nets:net``, whose weights lie in net.pt, and return the file."""
    (tmp_path / "told_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(**options: Any) -> Path:
        module = importlib.import_module("told_nets").net()
        torch.save(module.state_dict(), "net.pt")
        names = {"input_names": ["input"], "output_names": ["output"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx", **names, **options)
        return tmp_path / "net.onnx"

    yield write
    sys.modules.pop("told_nets", None)


def test_what_16_bits_cost_is_told_as_not_judged_with_the_command_that_judges(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = exported(dynamo=True, optimize=False), tmp_path / "half .onnx"
    assert main(["fold", str(source), "-o", str(tmp_path / "wide.onnx"), "--precision", "fp32"]) == 0
    assert "not judged" not in capsys.readouterr().out
    assert main(["fold", str(source), "-o", str(out), "--precision", "fp16"]) == 0
    said = capsys.readouterr().out
    assert "note: what fp16 costs is not judged here" in said
    line = next(line for line in said.splitlines() if line.startswith("  normdeploy verify"))
    told = line.replace("PACKAGE.MODULE:FACTORY", "told_nets:net").replace("FILE", "net.pt")
    assert main(shlex.split(told.replace("SPEC", "input:1x3x8x8"))[1:]) == 0
    assert "parity passed" in capsys.readouterr().out
    model = onnx.load(out)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float16(1.01)).tobytes()
    onnx.save(model, out)
    assert main(shlex.split(told.replace("SPEC", "input:1x3x8x8"))[1:]) == 1, "the command judges"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"dynamo": True, "optimize": True},
            "torch.onnx.export has folded 1 BatchNormalization itself (optimize=True)",
        ),
        ({"dynamo": False}, "folds BatchNormalization itself, but with dynamo=True, optimize=False"),
        ({"dynamo": True, "optimize": False}, None),
    ],
)
def test_where_torch_has_folded_it_is_told_why_there_is_nothing(
    exported: Callable[..., Path], tmp_path: Path, options: Any, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    source = exported(**options)
    assert main(["fold", str(source), "-o", str(tmp_path / "out.onnx")]) == 0
    told = capsys.readouterr().out
    assert ("nothing to fold" in told) is (said is not None)
    assert said is None or said in told
