"""Each plugin is proven to be what it stands for; a graph with a mistake in it is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from normdeploy.engine.plugin_graph import to_plugins
from normdeploy.errors import VerdictError
from normdeploy.parity.plugins import require_same, with_plugins
from normdeploy.runtime.float64 import Float64Runner

RANDOM = np.random.default_rng(0)
GAMMA, BETA = (RANDOM.uniform(-2, 2, 8).astype(np.float32) for _ in range(2))
X, R = (RANDOM.standard_normal((2, 3, 8)).astype(np.float32) for _ in range(2))
TEXT = """g (float[n,3,8] x, float[n,3,8] r) => (float[n,3,8] z, float[n,3,8] s, int8[n,3,8] q, float[n,3,8] m)
    { s = Add (x, r) y = LayerNormalization <epsilon = 0.001> (s, g, b) z = Relu (y)
      a = LayerNormalization (z, g) q = QuantizeLinear (a, scale, zero)
      m = RMSNormalization <axis = 1> (z, w) }"""
WEIGHTS = {
    "g": GAMMA, "b": BETA, "scale": np.float32(0.02), "zero": np.int8(0),
    "w": RANDOM.uniform(0.5, 2, (3, 8)).astype(np.float32),
}  # fmt: skip


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {TEXT}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in WEIGHTS.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def reference() -> dict[str, np.ndarray]:
    """Return the outputs of ``TEXT`` in float64, by PyTorch."""
    x, r, g, b, w = (torch.from_numpy(a).double() for a in (X, R, GAMMA, BETA, WEIGHTS["w"]))
    s = x + r
    z = torch.nn.functional.layer_norm(s, (8,), g, b, float(np.float32(0.001))).relu()
    a = torch.nn.functional.layer_norm(z, (8,), g, None, float(np.float32(1e-5)))
    q = torch.clamp(torch.round(a / float(WEIGHTS["scale"])), -128, 127).to(torch.int8)
    m = torch.nn.functional.rms_norm(z, (3, 8), w, float(np.float32(1e-5)))
    return {name: tensor.numpy() for name, tensor in (("z", z), ("s", s), ("q", q), ("m", m))}


def plugin(graph: ir.Model, kind: str) -> ir.Node:
    return next(node for node in graph.graph if node.op_type == kind)


def test_a_graph_of_plugins_runs_in_float64_by_the_pytorch_operators(model: ir.Model) -> None:
    graph, left = with_plugins(model)
    assert [note.code for note in left] == ["NF418", "NF419"]
    assert left[0].text == "run by plugins: AddLayerNorm 1, LayerNormQuantize 1, RMSNorm 1"
    assert "leak" in left[1], "its shapes change"
    assert [node.op_type for node in graph.graph] == ["AddLayerNorm", "Relu", "LayerNormQuantize", "RMSNorm"]
    got = Float64Runner(graph)({"x": X, "r": R})
    for name, array in reference().items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-12, atol=1e-13)


def scaled(value: ir.Value, factor: float) -> None:
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)


def other_weight(kind: str, index: int, factor: float) -> Callable[[ir.Model], None]:
    """Return a mistake: the plugin's input ``index`` is another constant than the norm's."""

    def plant(graph: ir.Model) -> None:
        node = plugin(graph, kind)
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array.reshape(-1)[-1] *= np.float32(factor)
        wrong = ir.Value(name="wrong", const_value=ir.tensor(array, name="wrong"))
        graph.graph.register_initializer(wrong)
        node.replace_input_with(index, wrong)

    return plant


def attribute(kind: str, name: str, value: float | int) -> Callable[[ir.Model], None]:
    def plant(graph: ir.Model) -> None:
        node = plugin(graph, kind)
        node.attributes[name] = ir.Attr(name, node.attributes[name].type, value)

    return plant


def swapped_outputs(graph: ir.Model) -> None:
    node = plugin(graph, "AddLayerNorm")
    y, total = node.outputs
    y.name, total.name = total.name, y.name


def other_input(graph: ir.Model) -> None:
    plugin(graph, "AddLayerNorm").replace_input_with(1, graph.graph.inputs[0])


def other_reader(graph: ir.Model) -> None:
    plugin(graph, "Relu").replace_input_with(0, plugin(graph, "AddLayerNorm").outputs[1])


def shared_weight(graph: ir.Model) -> None:
    value = plugin(graph, "AddLayerNorm").inputs[2]
    assert value is not None
    scaled(value, 1 + 1e-6)


MISTAKES: dict[str, Callable[[ir.Model], None]] = {
    "gamma": other_weight("AddLayerNorm", 2, 1 + 1e-6),
    "beta": other_weight("AddLayerNorm", 3, 1 + 1e-6),
    "a weight itself": shared_weight,
    "scale": other_weight("LayerNormQuantize", 3, 1.01),
    "epsilon": attribute("AddLayerNorm", "epsilon", 0.00100001),
    "epsilon of a quantized one": attribute("LayerNormQuantize", "epsilon", 1e-3),
    "axis": attribute("RMSNorm", "axis", -1),
    "type": attribute("LayerNormQuantize", "to", 17),
    "outputs": swapped_outputs,
    "input": other_input,
    "reader": other_reader,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused(model: ir.Model, mistake: str) -> None:
    graph = model.clone()
    to_plugins(graph)
    require_same(model, graph)
    MISTAKES[mistake](graph)
    with pytest.raises(VerdictError):
        require_same(model, graph)
