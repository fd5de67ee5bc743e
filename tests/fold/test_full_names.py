"""An operator is what its full name says: a custom one that bears a name of ONNX's is touched by nothing.

Every ONNX name that stands anywhere in the package gets a twin that computes something else, put wherever the real one
would be a map, a weight, a mover, a sum, a reader of the shape, a norm, a writer or a reader of a stream.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from harness import fill, folded
from onnx import helper

import normdeploy

PACKAGE = Path(str(normdeploy.__file__)).parent
RUNTIMES_OWN = {"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}


def mentioned() -> list[str]:
    """Every text in the package's source that is the name of an operator."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    texts = {str(node.value) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return sorted(text for text in texts if text in RUNTIMES_OWN or (text.isidentifier() and onnx.defs.has(text)))


NAMES = mentioned()


def test_the_names_are_collected() -> None:
    assert len(NAMES) > 60
    assert {"Conv", "LayerNormalization", "Size", "Add", "DequantizeLinear", "Constant", "ReduceMean"} <= set(NAMES)


ROOMS = ("clean", "fold", "precision", "export", "engine", "pipeline")
"""Those that look for operators of ONNX by name; the float64 runner has its own table, by domain and name."""


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_but_one_function_reads_the_type_of_a_node(room: str) -> None:
    reading = set()
    for path in (PACKAGE / room).rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(n, ast.Attribute) and n.attr == "op_type" and isinstance(n.ctx, ast.Load) for n in nodes):
            reading.add(str(path.relative_to(PACKAGE)))
    assert not reading, "ask normdeploy.graph.operator"


IMAGE = """g (float[2,4,6,6] x) => (float[2,4,6,6] y, float[2,4,6,6] z, float[2,4,6,6] o) <float[4,4,1,1] w0,
 float[4,4,1,1] w1, float[4,4,1,1] w2, float[4] g, float[4] b, float[4] m, float[4] var, float[4] p, float[4,4,1,1] w3,
 float[4,1,1] k> {
   c = Conv (x, w0)
   t = TWIN (c REST)
   n = BatchNormalization (t, g, b, m, var)
   r = TWIN (n REST)
   d = Conv (r, w1)
   e = Conv (r, w2)
   s = TWIN (d SUM)
   u = Mul (s, k)
   v = TWIN (u REST)
   y = BatchNormalization (v, g, b, m, var)
   a = Conv (x, w3)
   z = BatchNormalization (a, g, b, m, var)
   o = TWIN (a REST)
}"""
SEQUENCE = """g (float[2,5,8] x) => (float[2,5,8] y, float[2,5,8] z, float[2,5,8] o) <float[8,8] w0, float[8,8] w1,
 float[8,8] w2, float[8] g, float[8] b, float[8] p, float[8] k, float[8,8] w3, float[8] s = {1,1,1,1,1,1,1,1}> {
   h = MatMul (x, w0)
   t = TWIN (h REST)
   n = LayerNormalization (t, g, b)
   r = TWIN (n REST)
   d = MatMul (r, w1)
   q = TWIN (x REST)
   e = Add (d, q)
   f = LayerNormalization (e, s)
   y = MatMul (f, w2)
   a = MatMul (x, w3)
   i = LayerNormalization (a, s)
   z = Mul (i, k)
   o = TWIN (a REST)
}"""


def twin_model(text: str, name: str, parameters: list[str], *, domain: str = "custom") -> onnx.ModelProto:
    """``text`` with the twin of ``name``, which reads ``parameters`` behind its data, and its value types declared."""
    rest = "".join(f", {item}" for item in parameters)
    summed = ", e" if len(parameters) == 1 else rest
    body = text.replace("REST", rest).replace("SUM", summed).replace("TWIN", "custom.Twin")
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23, "custom" : 1]> {body}')
    fill(proto.graph)
    outputs = {info.name for info in proto.graph.output}
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    for node in proto.graph.node:
        if node.op_type == "Twin":
            node.op_type, node.domain = name, domain
            if node.output[0] not in outputs:
                proto.graph.value_info.append(helper.make_tensor_value_info(node.output[0], 1, shape))
    return proto


def function(name: str, arity: int, domain: str = "custom") -> onnx.FunctionProto:
    """What the twin computes: nothing that a map passes."""
    inputs = [f"i{index}" for index in range(arity)]
    text = f"""<ir_version: 10, opset_import: ["" : 23]> g (float[1] a) => (float[1] a1) {{ a1 = Identity (a) }}
    <domain: "custom", opset_import: ["" : 23]> Twin ({", ".join(inputs)}) => (out)
    {{ bent = Sin (i0)  moved = Exp (bent)  out = Add (moved, bent) }}"""
    made = onnx.parser.parse_model(text).functions[0]
    made.name, made.domain = name, domain
    return made


def run(proto: onnx.ModelProto, feed: np.ndarray) -> list[np.ndarray]:
    """The outputs as ONNX Runtime computes them, unoptimized; it would not live through every function's name."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        onnx.inliner.inline_local_functions(proto).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(item) for item in session.run(None, {"x": feed})]


def twins(proto: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The twins as they stand in the graph."""
    return [node for node in proto.graph.node if node.op_type == name and node.domain == "custom"]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_is_touched_by_nothing(name: str) -> None:
    rng = np.random.default_rng(3)
    cases = ((IMAGE, [[], ["p"], ["g", "b", "m", "var"]]), (SEQUENCE, [[], ["p"], ["g", "b"]]))
    for text, parameter_lists in cases:
        for parameters in parameter_lists:
            proto = twin_model(text, name, parameters)
            feed = rng.standard_normal([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])
            new, _ = folded(proto, layernorm="centre")
            assert [list(node.output) for node in twins(new, name)] == [
                list(node.output) for node in twins(proto, name)
            ]
            for model in (proto, new):
                model.functions.append(function(name, 1 + len(parameters)))
            for right, got in zip(run(proto, feed.astype(np.float32)), run(new, feed.astype(np.float32)), strict=True):
                assert np.abs(got - right).max() <= 3e-5 * max(1.0, np.abs(right).max())
