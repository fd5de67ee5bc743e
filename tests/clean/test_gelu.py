"""A spelled-out GELU, its three factors multiplied in every order: what ONNX Runtime fuses, and what is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from normdeploy.clean import clean
from normdeploy.fold import fold

X = np.random.default_rng(11).standard_normal((2, 6, 4)).astype(np.float32) * 3
NUMBERS = (
    "float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3}, float cubic = {0.044715}, "
    "float slope = {0.7978846}, float other = {0.6}"
)
CURVES = {
    "erf": "a = Div (x, root) b = Erf (a) curve = Add (b, one)",
    "erf, 1 first": "a = Div (x, root) b = Erf (a) curve = Add (one, b)",
    "tanh": "p = Pow (x, three) q = Mul (p, cubic) r = Add (x, q) a = Mul (r, slope) b = Tanh (a) curve = Add (b, one)",
    "tanh, factored": "p = Mul (x, cubic) q = Mul (p, x) r = Add (one, q) s = Mul (x, slope) a = Mul (s, r) "
    "b = Tanh (a) curve = Add (b, one)",
}
ORDERS = {
    "half and x": "m = Mul (x, half) g = Mul (m, curve)",
    "x and half": "m = Mul (half, x) g = Mul (curve, m)",
    "x and curve": "m = Mul (x, curve) g = Mul (m, half)",
    "curve and x": "m = Mul (curve, x) g = Mul (half, m)",
    "half and curve": "m = Mul (curve, half) g = Mul (x, m)",
    "curve and half": "m = Mul (half, curve) g = Mul (m, x)",
}


def model(body: str, *, opset: int = 17, outputs: str = "float[2,6,4] y") -> onnx.ModelProto:
    """A model between two products, so that the GELU is neither next to an input nor an output."""
    weights = f"<{NUMBERS}>"
    text = f"g (float[2,6,4] i) => ({outputs}) {weights} {{ x = MatMul (i, v) {body} y = MatMul (g, w) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    random = np.random.default_rng(5)
    for name in "vw":
        weight = random.standard_normal((4, 4)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return proto


def cleaned(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model cleaned, with what was said of it: valid, and in ONNX Runtime as before, bit for bit."""
    found = ir.from_proto(proto)
    done = clean(found).done
    new = ir.to_proto(found)
    onnx.checker.check_model(new, full_check=True)
    for want, got in zip(run(proto, "DISABLE_ALL"), run(new, "DISABLE_ALL"), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    return new, done


def session(proto: onnx.ModelProto, level: str, path: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.optimized_model_filepath = 4, 1, path
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, level: str) -> list[np.ndarray]:
    return [np.asarray(item) for item in session(proto, level).run(None, {"i": X})]


def runs(proto: onnx.ModelProto, tmp_path: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs for it."""
    path = tmp_path / "optimized.onnx"
    session(proto, "ENABLE_ALL", str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("curve", CURVES)
def test_every_order_becomes_one_operator(curve: str, order: str, tmp_path: Path) -> None:
    given = model(f"{CURVES[curve]} {ORDERS[order]}")
    new, done = cleaned(given)
    one = "Gelu" if "erf" in curve else "FastGelu"
    assert runs(new, tmp_path)[one] == 1
    moved = runs(given, tmp_path)[one] == 0
    assert moved is any("GELU" in said for said in done)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("curve", CURVES)
def test_a_fold_leaves_it_one_operator(curve: str, order: str, tmp_path: Path) -> None:
    """The factor ½ could go into the weights behind it, and would cost the operator."""
    given = model(f"{CURVES[curve]} {ORDERS[order]}")
    result = fold(given)
    new = ir.to_proto(result.model)
    assert runs(new, tmp_path)["Gelu" if "erf" in curve else "FastGelu"] == 1
    assert any("NF021" in entry.codes for entry in result.ledger.entries)
    want, got = run(given, "DISABLE_ALL")[0], run(new, "ENABLE_ALL")[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


NONE = {
    "another factor": "a = Div (x, root) b = Erf (a) curve = Add (b, one) m = Mul (curve, other) g = Mul (x, m)",
    "another root": "a = Div (x, other) b = Erf (a) curve = Add (b, one) m = Mul (curve, half) g = Mul (x, m)",
    "another sum": "a = Div (x, root) b = Erf (a) curve = Add (b, half) m = Mul (curve, half) g = Mul (x, m)",
    "of something else": "a = Div (i, root) b = Erf (a) curve = Add (b, one) m = Mul (curve, half) g = Mul (x, m)",
    "a root of x": "a = Div (root, x) b = Erf (a) curve = Add (b, one) m = Mul (curve, half) g = Mul (x, m)",
    "no third factor": "a = Div (x, root) b = Erf (a) curve = Add (b, one) g = Mul (x, curve)",
    "x twice": "a = Div (x, root) b = Erf (a) curve = Add (b, one) m = Mul (curve, x) g = Mul (x, m)",
    "read by others": "a = Div (x, root) b = Erf (a) curve = Add (b, one) m = Mul (curve, half) h = Mul (x, m) "
    "g = Add (h, m)",
    "its curve read by others": "a = Div (x, root) b = Erf (a) curve = Add (b, one) m = Mul (curve, half) "
    "h = Mul (x, m) g = Add (h, curve)",
    "x squared": "p = Mul (x, cubic) q = Mul (p, p) r = Add (one, q) s = Mul (x, slope) a = Mul (s, r) "
    "b = Tanh (a) curve = Add (b, one) m = Mul (curve, half) g = Mul (x, m)",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_none_stays_as_it_is_written(name: str) -> None:
    given = model(NONE[name])
    new, done = cleaned(given)
    assert not any("GELU" in said for said in done)
    assert list(new.graph.node) == list(ir.to_proto(ir.from_proto(given)).graph.node)


def test_an_output_in_the_middle_stays() -> None:
    body = f"{CURVES['erf']} {ORDERS['half and curve']}"
    _, done = cleaned(model(body, outputs="float[2,6,4] y, float[2,6,4] m"))
    assert not any("GELU" in said for said in done)


def test_a_number_that_a_caller_may_override_is_none() -> None:
    proto = model(f"{CURVES['erf']} {ORDERS['half and curve']}")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT, []))
    _, done = cleaned(proto)
    assert not any("GELU" in said for said in done)


def test_a_half_that_is_made_behind_what_reads_it_then(tmp_path: Path) -> None:
    """Legacy torch.onnx writes each Constant in front of its reader."""
    body = f"{CURVES['tanh']} m = Mul (x, curve) late = Constant <value = float {{0.5}}> () g = Mul (m, late)"
    new, done = cleaned(model(body))
    assert any("GELU" in said for said in done)
    assert runs(new, tmp_path)["FastGelu"] == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_float_types(dtype: str) -> None:
    """Their numbers are those of the formula, rounded to the type."""
    text = model(f"{CURVES['erf']} {ORDERS['half and curve']}")
    given = ir.from_proto(text)
    kind = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "double": ir.DataType.DOUBLE}[dtype]
    for value in given.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy().astype(kind.numpy()), name=value.name)
        value.type = ir.TensorType(kind)
    assert any("GELU" in said for said in clean(given).done)


# Legacy torch.onnx spells the cube of the tanh as two products, of which ONNX Runtime makes no FastGelu.
@pytest.mark.parametrize(
    ("approximate", "options"),
    [
        ("none", {"dynamo": False}),
        ("none", {"dynamo": True, "optimize": False}),
        ("none", {"dynamo": True, "optimize": True}),
        ("tanh", {"dynamo": True, "optimize": False}),
        ("tanh", {"dynamo": True, "optimize": True}),
    ],
)
def test_networks_as_torch_exports_them_before_opset_20(
    approximate: str, options: dict[str, bool], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(approximate), nn.Linear(16, 8)).eval()
    nn.init.normal_(module[0].weight)
    nn.init.normal_(module[0].bias)
    x = torch.randn(3, 5, 8)
    torch.onnx.export(module, (x,), tmp_path / "raw.onnx", opset_version=18, verbose=False, **options)
    result = fold(tmp_path / "raw.onnx")
    new = ir.to_proto(result.model)
    assert runs(new, tmp_path)["Gelu" if approximate == "none" else "FastGelu"] == 1
    assert [entry.outcome for entry in result.ledger.entries if entry.norm] == ["reduced"]
    (got,) = session(new, "ENABLE_ALL").run(None, {new.graph.input[0].name: x.numpy()})
    want = module.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_norm_behind_it_changes_none_of_its_numbers(tmp_path: Path) -> None:
    """Its scale could go into ½: a norm is left, and the GELU with it."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)).eval()
    torch.manual_seed(3)
    nn.init.normal_(module[2].weight)
    nn.init.normal_(module[2].bias)
    module[2].running_mean.normal_()  # type: ignore[operator]  # a buffer
    x = torch.randn(2, 3, 9, 9)
    torch.onnx.export(module, (x,), tmp_path / "raw.onnx", opset_version=17, dynamo=False)
    result = fold(tmp_path / "raw.onnx")
    new = ir.to_proto(result.model)
    assert runs(new, tmp_path)["Gelu"] == 1
    (got,) = session(new, "ENABLE_ALL").run(None, {new.graph.input[0].name: x.numpy()})
    want = module.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
