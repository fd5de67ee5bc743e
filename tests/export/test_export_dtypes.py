"""16-bit modules: exported as they are, widened exactly, or told how; no advice leads back to where it was given."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from exporting import export
from torch import nn

from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.export import in_float32
from normdeploy.export.dtypes import advice
from normdeploy.specs import parse

NETWORK = """
import torch
from torch import nn

def make(dtype="bfloat16"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return net.eval().to(getattr(torch, dtype))
"""


def net(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).eval().to(dtype)


def test_a_bfloat16_module_is_exported_as_a_bfloat16_graph() -> None:
    exported = export(net(torch.bfloat16), "input:N=1..2..3x3x8@bf16")
    assert exported.model.opset_imports[""] == 22
    assert {value.dtype.name for value in exported.model.graph.outputs if value.dtype} == {"BFLOAT16"}
    with pytest.raises(InputError, match="not valid ONNX") as caught:
        export(net(torch.bfloat16), "input:N=1..2..3x3x8@bf16", opset=20)
    assert "leave --opset out, or give --opset 22" in caught.value.fix


def test_a_linear_layer_of_other_type_is_told_as_that() -> None:
    """torch traces it all the same, into a graph that is not valid."""
    with pytest.raises(InputError, match="of different floating-point types") as caught:
        export(nn.Linear(4, 3).bfloat16(), "input:N=1..2..3x4")
    assert caught.value.where == "--input input:N=1..2..3x4@f32"
    assert "give the inputs as @bf16, or widen the module by --precision fp32" in caught.value.fix


def test_a_module_is_widened_exactly_with_what_goes_in() -> None:
    module = net(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    specs, notes = in_float32(module, parse(["x:2x3@bf16", "y:2@f16[0..1]", "z:2@f32", "i:2@i64[0..3]", "flag=True"]))
    assert [spec.dtype for spec in specs] == ["float32", "float32", "float32", "int64"]
    assert specs.values == {"flag": True}
    assert any("bfloat16 weights were widened" in note for note in notes)
    assert any("inputs x, y are float32" in note for note in notes)
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == (torch.float32 if before[name].is_floating_point() else before[name].dtype)
        assert torch.equal(tensor, before[name].to(tensor.dtype))
    given = parse(["x:2x3@bf16"])
    assert in_float32(module, given) == (given, ())


def test_advice_is_only_given_where_the_types_differ() -> None:
    assert advice(net(torch.float32), parse(["input:2x3x8", "i:2@i64[0..3]"])) == ""
    assert advice(net(torch.bfloat16), parse(["i:2@i64[0..3]"])) == ""
    assert advice(nn.ReLU(), parse(["input:2@bf16"])) == ""
    assert advice(net(torch.float64), parse(["input:2x3x8"])).endswith("give the inputs as @f64")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("narrow")
    (folder / "narrow_net.py").write_text(NETWORK)
    return ["export", "--app-dir", str(folder), "--model", "narrow_net:make", "--no-bench"]


@pytest.mark.parametrize("spec", ["input:N=1..2..3x3x6x6", "input:N=1..2..3x3x6x6@bf16"])
def test_what_each_message_tells_to_do_works(
    given: list[str], spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--input", spec]
    assert main([*given, *out]) in (2, 3)  # float32 into bfloat16 weights; no bfloat16 kernels in ONNX Runtime
    told = re.findall(r"--precision fp32", capsys.readouterr().err)
    assert told
    assert main([*given, *out, "--precision", "fp32"]) == 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert {tensor.data_type for tensor in model.graph.initializer} <= {1, 7}
    assert main(["verify", str(tmp_path / "out"), *given[1:-1]]) == 0


def test_a_bfloat16_module_is_deployed_in_float16_at_the_first_command(given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*given, "--input", "input:2x3x6x6", "--out", str(out), "--precision", "fp16"]) == 0
    assert 10 in {tensor.data_type for tensor in onnx.load(out / "model.onnx").graph.initializer}
