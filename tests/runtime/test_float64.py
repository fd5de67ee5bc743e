"""The float64 runner against second ones: onnx's own node cases, PyTorch in float64, and what must be refused."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from normdeploy.export import to_graph
from normdeploy.precision import to_precision
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error
from normdeploy.specs import parse

LEFT_OUT = re.compile(
    r"_expanded|adagrad|adam|momentum|flexattention"  # functions written out; domains for training and in preview
    r"|bernoulli|training_dropout|training_mode"  # random, or batch statistics
    r"|bitcast|tfidf|melweight|array_feature|binarizer|label_encoder|tree_ensemble"  # no float64: see below
    r"|_bf16|bfloat16"  # what is expected is rounded to bfloat16
    r"|dynamicquantizelinear$"  # a tie that float64 breaks the other way
    r"|align_corners$"  # at scales that are no quotient of sizes: PyTorch and onnxruntime go by the sizes, as we do
    r"|scan_sum$"  # Scan of opset 8
    r"|sequence_map"  # a function over sequences
)


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some divide by zero when they are made
        from onnx.backend.test.case.node import collect_testcases

        found = [case for case in collect_testcases(None) if not LEFT_OUT.search(case.name)]
    return [
        case for case in found if not any(_is_packed(item) for ins, outs in case.data_sets for item in (*ins, *outs))
    ]


def _is_packed(item: Any) -> bool:
    """Whether an array comes as a protobuf message: types of 8 and 4 bits, which NumPy has not."""
    return isinstance(item, onnx.TensorProto)


def difference(actual: Any, expected: Any, rtol: float) -> str:
    if isinstance(expected, list):
        return "; ".join(difference(a, e, rtol) for a, e in zip(actual, expected, strict=True)).strip("; ")
    if expected is None:
        return "" if actual is None else "something"
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, not {expected.shape}"
    if expected.dtype.kind in "iubOUS":
        same = actual.dtype.kind in "OUS" or actual.dtype == expected.dtype
        return "" if same and (actual == expected).all() else f"{actual} is not {expected}"
    close = np.isclose(actual, expected.astype(actual.dtype), rtol=max(rtol, 1e-5), atol=2e-5, equal_nan=True)
    return "" if close.all() else f"{np.abs(actual - expected).max()} off"


def test_onnxs_own_cases_come_out_as_onnx_expects() -> None:
    wrong, operators = [], set()
    for case in cases():
        for inputs, outputs in case.data_sets:
            names = [value.name for value in case.model.graph.input]
            try:
                got = Float64Runner(ir.serde.deserialize_model(case.model))(dict(zip(names, inputs, strict=True)))
            except NoFloat64Error as error:
                wrong.append(f"{case.name}: {error}")
                continue
            found = [difference(a, e, case.rtol) for a, e in zip(got.values(), outputs, strict=False)]
            wrong += [f"{case.name}: {each}" for each in found if each]
            operators |= {node.op_type for node in case.model.graph.node}
    assert wrong == []
    assert len(operators) > 150


def graph(op: str, inputs: dict[str, Any], *, opset: int = 20, domain: str = "", **attributes: Any) -> ir.Model:
    """One node whose inputs are the model's; arrays that start with ``c_`` are constants."""
    node = helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)
    constants = [numpy_helper.from_array(a, name) for name, a in inputs.items() if name.startswith("c_")]
    fed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
        if not name.startswith("c_")
    ]
    made = helper.make_graph([node], "g", fed, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return ir.serde.deserialize_model(helper.make_model(made, opset_imports=imports))


def run(op: str, inputs: dict[str, Any], **more: Any) -> Any:
    fed = {name: array for name, array in inputs.items() if not name.startswith("c_")}
    return Float64Runner(graph(op, inputs, **more))(fed)["y"]


RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((2, 6, 9, 7))
WIDE = torch.from_numpy(X)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("group", "inner"), [(1, 6), (2, 3), (6, 1)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_convolutions_are_pytorchs_in_float64(group: int, inner: int, stride: int, dilation: int) -> None:
    w, b = weight(6, inner, 3, 2), weight(6)
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(WIDE, (2, 1, 1, 0)),
        torch.from_numpy(w.astype(np.float64)),
        torch.from_numpy(b.astype(np.float64)),
        stride,
        0,
        dilation,
        group,
    )
    given = {"x": X, "c_w": w, "c_b": b}
    y = run("Conv", given, group=group, strides=[stride] * 2, dilations=[dilation] * 2, pads=[1, 2, 0, 1])
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-13, atol=1e-13)


PLAIN = {
    "Erf": torch.erf, "Sigmoid": torch.sigmoid, "Softplus": torch.nn.functional.softplus, "Tanh": torch.tanh,
    "Mish": torch.nn.functional.mish, "HardSwish": torch.nn.functional.hardswish, "Exp": torch.exp,
    "Relu": torch.relu, "Gelu": torch.nn.functional.gelu, "Softsign": torch.nn.functional.softsign,
}  # fmt: skip


@pytest.mark.parametrize("op", PLAIN)
def test_functions_have_all_digits(op: str) -> None:
    np.testing.assert_allclose(run(op, {"x": X}), PLAIN[op](WIDE).numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_before_opset_13_is_over_all_trailing_axes(opset: int) -> None:
    y = run("Softmax", {"x": X}, opset=opset, axis=1)
    flat = torch.softmax(WIDE.reshape(2, -1), 1).reshape(WIDE.shape) if opset < 13 else torch.softmax(WIDE, 1)
    np.testing.assert_allclose(y, flat.numpy(), rtol=1e-13)


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers_are_pytorchs(layer: str, both: bool) -> None:
    torch.manual_seed(0)
    module = getattr(nn, layer)(5, 4, num_layers=2, bidirectional=both, batch_first=True).eval()

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    model = to_graph(First().eval(), parse(["x:N=1..2..4x7x5@f32"])).model
    x = RANDOM.standard_normal((3, 7, 5)).astype(np.float32)
    got = Float64Runner(model)({"x": x})["output"]
    expected = module.double()(torch.from_numpy(x.astype(np.float64)))[0].detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
def test_resizing_is_pytorchs(mode: str, corners: bool) -> None:
    if mode == "nearest" and corners:
        return  # PyTorch has no such thing
    options = {} if mode == "nearest" else {"align_corners": corners}
    expected = torch.nn.functional.interpolate(WIDE, (13, 4), mode=mode, **options)
    where = "asymmetric" if mode == "nearest" else "align_corners" if corners else "pytorch_half_pixel"
    kind = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}[mode]
    given = {"x": X, "c_roi": np.zeros(0), "c_scales": np.zeros(0, np.float32), "c_sizes": np.array([2, 6, 13, 4])}
    y = run("Resize", given, mode=kind, coordinate_transformation_mode=where, nearest_mode="floor")
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-6, atol=1e-7)  # PyTorch's own coordinates are not exact


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.fc(self.norm(torch.nn.functional.silu(self.bn(self.conv(x))).mean((2, 3)))), -1)


def test_a_network_is_the_module_in_float64_but_for_its_constants() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    model = to_graph(net, parse(["x:N=1..2..4x3x8x9@f32"])).model
    x = RANDOM.standard_normal((2, 3, 8, 9)).astype(np.float32)
    expected = net.double()(torch.from_numpy(x.astype(np.float64))).detach().numpy()
    np.testing.assert_allclose(Float64Runner(model)({"x": x})["output"], expected, rtol=1e-7)  # ε is a float32
    runner = Float64Runner(to_precision(model, "fp16"))
    half = runner({"x": x})["output"]
    assert half.dtype == np.float64
    assert 1e-6 < np.abs(half - expected).max() < 1e-3  # weights are rounded, activations are not


def test_values_are_forgotten_when_they_die(monkeypatch: pytest.MonkeyPatch) -> None:
    from normdeploy.runtime.float64 import runner

    largest = 0
    seen = runner._Walk.node

    def spy(self: Any, node: Any, inputs: Any, scope: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(scope))
        return seen(self, node, inputs, scope)

    monkeypatch.setattr(runner._Walk, "node", spy)
    model = to_graph(nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)]).eval(), parse(["input:2x4@f32"])).model
    Float64Runner(model)({"input": np.zeros((2, 4), np.float32)})
    assert largest <= 5


@pytest.mark.parametrize(
    ("op", "inputs", "domain"),
    [
        ("Gelu", {"x": X}, "com.example"),
        ("RandomNormalLike", {"x": X}, ""),
        ("MatMul", {"x": X, "y_": X}, ""),
    ],
)
def test_what_has_no_float64_is_named(op: str, inputs: dict[str, Any], domain: str) -> None:
    with pytest.raises(NoFloat64Error) as caught:
        run(op, inputs, domain=domain)
    assert op in f"{caught.value.what} {caught.value.where}"
