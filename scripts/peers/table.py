"""The graphs that all folders get: the tables of tests/fold, and traps that a folder of good faith can fall into.

Each graph says how much may be left of it at most; see :mod:`counting`. As it stands, each answers right in its own
precision: a folder answers for its own mistakes alone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from peers import counting, norms
from peers.borrowed import GROUPS, Case, bn, model, norm, parsed
from peers.graph import Graph


def graphs() -> list[Graph]:
    """All graphs of the table."""
    listed = [_of_case(group, case) for group, cases in GROUPS.items() for case in cases]
    listed += [*TRAPS, *norms.graphs()]
    for graph in listed:
        _spell_out(graph.model)
    return listed


def _spell_out(proto: onnx.ModelProto) -> None:
    """Write, as exporters do, what means nothing but what some folders want to see."""
    (opset,) = (item.version for item in proto.opset_import if item.domain == "")
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # AIMET
        if node.op_type.startswith("Reduce"):  # onnxscript
            defaults = {"keepdims": 1} | ({"noop_with_empty_axes": 0} if opset >= 18 else {})
            missing = defaults.keys() - {attr.name for attr in node.attribute}
            node.attribute.extend(helper.make_attribute(name, defaults[name]) for name in sorted(missing))


def _of_case(group: str, case: Case) -> Graph:
    proto = case.model()
    left = counting.passes_named(case.becomes.split(), counting.sums_in_onnx(proto)) if case.becomes else None
    if left is not None and left >= counting.passes_in_onnx(proto):
        left = None  # a norm becomes an Add, say, which is lighter, but as much of a pass
    return Graph(f"{group}: {case.name}", group, proto, left)


# -- traps -----------------------------------------------------------------------------------------

CONV_NORM = f"float[5,3,3,3] w, {bn(5)}"
X = "float[2,3,8,11] x"


def _trap(name: str, proto: onnx.ModelProto, left: int | None) -> Graph:
    return Graph(f"traps: {name}", "traps", proto, left)


def _filled(proto: onnx.ModelProto, **values: float) -> onnx.ModelProto:
    """With initializers of one number each."""
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            array = np.full_like(numpy_helper.to_array(tensor), values[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def _in_half(body: str, weights: str, *, x: str = "float16[2,3,8,64] x", **values: float) -> onnx.ModelProto:
    return _filled(model(x, weights, body, outputs="float16[] y"), **values)


def _renamed(proto: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return proto


def _overridable(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    (tensor,) = (item for item in proto.graph.initializer if item.name == name)
    proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return proto


def _all_listed_as_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return proto


READ_IN_A_BODY = """
<ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y, float[2,5,6,9] z)
<float[5,3,3,3] w, float[5] gamma, float[5] beta, float[5] mean, float[5] var> {
    c = Conv (x, w)
    y = BatchNormalization (c, gamma, beta, mean, var)
    z = If (k) <then_branch = yes () => (float[2,5,6,9] a) { a = Relu (c) },
                else_branch = no () => (float[2,5,6,9] b) { b = Identity (c) }>
}
"""

INSIDE_A_BODY = """
<ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y)
<float[5,3,3,3] w, float[5] gamma, float[5] beta, float[5] mean, float[5] var> {
    y = If (k) <
        then_branch = yes () => (float[2,5,6,9] a) {
            c = Conv (x, w)
            a = BatchNormalization (c, gamma, beta, mean, var)
        },
        else_branch = no () => (float[2,5,6,9] b) { b = Conv (x, w) }
    >
}
"""

INSIDE_A_FUNCTION = """
<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2,3,8,11] x) => (float[2,5,6,9] y)
<float[5,3,3,3] w, float[5] gamma, float[5] beta, float[5] mean, float[5] var> {
    c = Conv (x, w)
    y = local.norm (c, gamma, beta, mean, var)
}
<domain: "local", opset_import: ["": 21]> norm (c, gamma, beta, mean, var) => (y) {
    n = BatchNormalization (c, gamma, beta, mean, var)
    y = Identity (n)
}
"""

SMALL = "p = Softmax (x)\n c = Conv (p, w)\n "
"""Values so small that what they are multiplied by would overflow in a weight, but not here."""

TRAPS = [
    _trap("new names that are taken", _renamed(
        model(X, f"{CONV_NORM}, float[5,1,1] k, float[5,1,1] l, float[5] o",
              "c = Conv (x, w)\n" + norm("c", "n") + "r = Relu (n)\n p = Mul (r, k)\n q = Sub (p, l)\n"
              "s = Conv (x, w, o)\n y = Mul (s, q)"),
        k="w_bias", l="c_bias", o="y_bias"), 3),
    _trap("products that overflow float16 only in between", _in_half(
        SMALL + "m = Mul (c, s)\n y = Mul (m, k)", "float16[5,3,1,1] w, float16[5,1,1] s, float16 k", w=2.0, s=4e4,
        k=1e-4), 0),
    _trap("a weight that overflows float16 in the end", _in_half(
        SMALL + "y = Mul (c, s)", "float16[5,3,1,1] w, float16 s", w=2.0, s=4e4), None),
    _trap("a weight that underflows float16 in the end", _in_half(
        "a = Abs (x)\n c = Conv (a, w)\n y = Mul (c, s)", "float16[5,64,3,3] w, float16 s",
        x="float16[2,64,8,11] x", w=6.1e-5, s=1.4e-3), None),
    _trap("float32 statistics on a float16 convolution", model(
        "float16[2,3,8,11] x", "float16[5,3,3,3] w, float16[5] gamma, float16[5] beta, float[5] mean, float[5] var",
        "c = Conv (x, w)\n" + norm("c", "y"), outputs="float16[] y"), 0),
    _trap("auto_pad SAME with dilation", model(
        X, CONV_NORM, 'c = Conv <auto_pad="SAME_UPPER", dilations=[2,2]> (x, w)\n' + norm("c", "y")), 0),
    _trap("auto_pad SAME behind a Pad", model(
        X, f"{CONV_NORM}, int64[8] p = {{0,0,1,0,0,0,0,1}}",
        't = Pad (x, p)\n c = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (t, w)\n' + norm("c", "y")), 0),
    _trap("a gamma that the user may override", _overridable(
        model(X, CONV_NORM, "c = Conv (x, w)\n" + norm("c", "y")), "gamma"), None),
    _trap("a weight that the user may override", _overridable(
        model(X, CONV_NORM, "c = Conv (x, w)\n" + norm("c", "y")), "w"), None),
    _trap("initializers listed as inputs, as IR version 3 wants it", _all_listed_as_inputs(
        model(X, CONV_NORM, "c = Conv (x, w)\n" + norm("c", "y"), outputs="float[2,5,6,9] y", opset=8,
              ir_version=3)), 0),
    _trap("a weight that is an output too", model(
        X, CONV_NORM, "c = Conv (x, w)\n" + norm("c", "y") + "z = Identity (w)",
        outputs="float[] y, float[5,3,3,3] z"), 0),
    _trap("a beta that something else adds", model(
        f"{X}, float[2,5,6,9] x2", f"{CONV_NORM}, int64[3] s = {{5,1,1}}",
        "c = Conv (x, w)\n" + norm("c", "n") + "r = Relu (n)\n b = Reshape (beta, s)\n q = Relu (x2)\n y = Mul (r, q)\n"
        "z = Add (q, b)", outputs="float[] y, float[] z"), 2),
    _trap("one set of statistics for two convolutions", model(
        f"{X}, float[2,3,8,11] z", f"{CONV_NORM}, float[5,3,1,1] v",
        "c = Conv (x, w)\n d = Conv (z, v)\n" + norm("c", "y") + norm("d", "y2"),
        outputs="float[] y, float[] y2"), 0),
    _trap("one bias for two convolutions, one of them with a norm", model(
        f"{X}, float[2,3,8,11] z", f"{CONV_NORM}, float[5,3,1,1] v, float[5] b",
        "c = Conv (x, w, b)\n y2 = Conv (z, v, b)\n" + norm("c", "y"), outputs="float[] y, float[] y2"), 0),
    _trap("a value that a body reads", parsed(READ_IN_A_BODY), None),
    _trap("a convolution and its norm inside a body", parsed(INSIDE_A_BODY), 0),
    _trap("a norm inside a function", parsed(INSIDE_A_FUNCTION), 0),
    _trap("a weight behind Identity", model(
        X, CONV_NORM, "i = Identity (w)\n c = Conv (x, i)\n" + norm("c", "y")), 0),
    _trap("a weight behind Transpose", model(
        X, f"float[3,5,3,3] w, {bn(5)}", "i = Transpose <perm=[1,0,2,3]> (w)\n c = Conv (x, i)\n" + norm("c", "y")), 0),
    _trap("a weight behind Cast from float16", model(
        X, f"float16[5,3,3,3] w, {bn(5)}", "i = Cast <to=1> (w)\n c = Conv (x, i)\n" + norm("c", "y")), 0),
    _trap("a weight quantized per channel", model(
        X, f"int8[5,3,3,3] w, float[5] pos, float[5] posgamma, {bn(5)}",
        "i = DequantizeLinear <axis=0> (w, pos)\n c = Conv (x, i)\n"
        "y = BatchNormalization (c, posgamma, beta, mean, var)"), 0),
    _trap("a weight in float64", model(
        "double[2,3,8,11] x", f"double[5,3,3,3] w, {bn(5, dtype='double')}", "c = Conv (x, w)\n" + norm("c", "y"),
        outputs="double[] y"), 0),
    _trap("an epsilon of its own, and a variance of nearly nothing", _filled(model(
        X, CONV_NORM, "c = Conv (x, w)\n y = BatchNormalization <epsilon=0.001> (c, gamma, beta, mean, var)"),
        var=1e-12), 0),
]  # fmt: skip
