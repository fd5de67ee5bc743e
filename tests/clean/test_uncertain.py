"""Sizes of which inference knows too little: none becomes a constant, and a model computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from normdeploy.clean.inference import inferred
from normdeploy.fold import fold

X = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
NUMBERS = """int64 nil = {0}, int64 two = {2}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {2},
    int64[1] far = {99}"""
SIZE = """h = Shape(r) i = Gather(h, nil) k = Gather(h, two) j = Mul(i, k) f = Cast<to = 1>(j)
    m = ReduceMax<keepdims = 0>(r) y = Mul(m, f)"""


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it infers as ONNX does
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def parsed(text: str) -> onnx.ModelProto:
    """The model of ``text``; of inputs that are declared of rank R, nothing is declared."""
    proto = onnx.parser.parse_model(text)
    for info in proto.graph.input:
        if [dim.dim_param for dim in info.type.tensor_type.shape.dim] == ["R"]:
            info.type.tensor_type.ClearField("shape")
    return proto


def assert_same(proto: onnx.ModelProto, **feeds: np.ndarray) -> onnx.ModelProto:
    folded = ir.to_proto(fold(proto).model)
    np.testing.assert_allclose(run(folded, feeds), run(proto, feeds), rtol=1e-5)
    return folded


# -- a Squeeze of an empty list of axes ------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_an_empty_list_of_axes_is_whatever_the_runtime_takes_it_for(opset: int) -> None:
    """Inference took it for none, so a size became another constant; ONNX Runtime takes it for all of size 1."""
    proto = parsed(f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[3,1,5] x) => (float y)
        <int64 one = {{1}}> {{
            r = Squeeze(x) h = Shape(r) i = Gather(h, one) f = Cast<to = 1>(i) m = ReduceMax<keepdims = 0>(r)
            y = Mul(m, f) }}""")
    squeeze = proto.graph.node[0]
    if opset < 13:
        squeeze.attribute.append(helper.make_attribute("axes", [], attr_type=onnx.AttributeProto.INTS))
    else:
        squeeze.input.append("none")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.int64), "none"))
    x = X[:, :1]
    assert run(proto, {"x": x}) == x.max() * 5
    assert_same(proto, x=x)


def test_a_number_in_place_of_a_list_of_axes_takes_no_sizes_away() -> None:
    """ONNX Runtime takes none for a Squeeze; other runtimes and shape inference do."""
    proto = parsed("""<ir_version: 8, opset_import: ["" : 17]> g (float[3,1,5] x) => (float y)
        <int64 one = {1}> { a = Relu(x) r = Squeeze(a, one) y = ReduceMax<keepdims = 0>(r) }""")
    found, _ = inferred(proto)
    told = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in found.graph.value_info}
    assert told == {"a": [3, 1, 5], "r": [3, 5]}


# -- axes from the back before they were allowed ---------------------------------------------------


BACK = [
    "r = Unsqueeze<axes = [-2]>(x)",
    "r = Unsqueeze<axes = [-1, 0]>(x)",
    "e = Unsqueeze<axes = [0, 4]>(x) r = Squeeze<axes = [-1, 0]>(e)",
    "e = Unsqueeze<axes = [0, 1]>(x) r = Squeeze<axes = [-4]>(e)",
]


@pytest.mark.parametrize("opset", [7, 9, 10, 11])
@pytest.mark.parametrize("body", BACK)
def test_axes_that_are_counted_from_the_back_are_axes_before_opset_11_too(body: str, opset: int) -> None:
    """Inference passes over them, so a size became another constant; runtimes take them."""
    size = """h = Shape(r) i = Gather(h, one) k = Gather(h, last) j = Mul(i, k) f = Cast<to = 1>(j)
        m = ReduceMax<keepdims = 0>(r) y = Mul(m, f)"""
    proto = parsed(f"""<ir_version: 6, opset_import: ["": {opset}]>
        g (float[3,4,5] x) => (float[k] y) <{NUMBERS}> {{ {body} {size} }}""")
    assert_same(proto, x=X)


# -- a Slice by what may be anything ---------------------------------------------------------------

SLICES = {
    "axes that come in": "r = Slice(x, zero, one, a)",
    "axes that are made": "b = Abs(a) r = Slice(x, zero, one, b)",
    "steps that come in": "r = Slice(x, zero, far, last, a)",
    "steps of a branch": """b = If(c) <then_branch = t () => (int64[K] p) { p = Abs(a) },
        else_branch = e () => (int64[K] q) { q = Identity(one) }> r = Slice(x, zero, far, last, b)""",
    "in front of another": """s = Slice(x, zero, one, a)
        r = MaxPool<auto_pad = "VALID", ceil_mode = 1, kernel_shape = [1], strides = [2]>(s)""",
}


@pytest.mark.parametrize("kind", SLICES)
def test_a_slice_by_unknown_axes_or_steps_is_of_any_size(kind: str) -> None:
    proto = parsed(f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[3,4,5] x, int64[R] a, bool c) => (float[] y) <{NUMBERS}> {{ {SLICES[kind]} {SIZE} }}""")
    folded = assert_same(proto, x=X, a=np.array([2]), c=np.array(True))
    assert "Shape" in {node.op_type for node in folded.graph.node}


def test_a_slice_by_known_axes_is_of_the_size_that_it_is() -> None:
    proto = parsed(f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[3,4,5] x) => (float[] y) <{NUMBERS}> {{ r = Slice(x, zero, one, last) {SIZE} }}""")
    folded = assert_same(proto, x=X)
    assert "Shape" not in {node.op_type for node in folded.graph.node}


def test_a_slice_by_the_state_of_a_loop_is_of_any_size() -> None:
    assert_same(
        parsed(f"""<ir_version: 9, opset_import: ["": 19]> g (float[3,4,5] x, int64 n) => (float[] y)
        <{NUMBERS}, bool go = {{1}}, float start = {{0}}> {{
            moved, y = Loop(n, go, zero, start) <body = b (int64 i, bool c, int64[1] a, float sum)
                    => (bool d, int64[1] b, float total) <int64[1] low = {{0}}, int64[1] high = {{1}}> {{
                r = Slice(x, low, high, a) h = Shape(r) k = Gather(h, two) f = Cast<to = 1>(k)
                total = Add(sum, f) b = Add(a, one) d = Identity(c)
            }}>
        }}"""),
        x=X,
        n=np.array(3),
    )


# -- attention of names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        ("B,S,D", "r = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)"),
        ("B,2,S,2", "z, , , p = Attention(x, x, x) r = Squeeze(p, one)"),
    ],
)
def test_sizes_of_an_attention_without_numbers_are_not_zero(shape: str, nodes: str) -> None:
    proto = parsed(f"""<ir_version: 11, opset_import: ["": 23]> g (float[{shape}] x) => (float[] y) <{NUMBERS}> {{
        {nodes.replace("Squeeze(p, one)", "ReduceSum<keepdims = 0>(p, one)")} {SIZE} }}""")
    x = X[:, :, :4].reshape((3, 4, 4) if shape == "B,S,D" else (3, 2, 4, 2))
    assert_same(proto, x=x)


def test_what_attention_knows_of_its_sizes_stays() -> None:
    proto = parsed("""<ir_version: 11, opset_import: ["": 23]> g (float[B,S,8] x, float[B,S,D] v) => (float[K,L,M] y) {
        y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, v) }""")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found, _ = inferred(proto)
    assert found is not None
    first, second, third = found.graph.output[0].type.tensor_type.shape.dim
    assert (first.dim_param, second.dim_param) == ("B", "S")
    assert not third.HasField("dim_value")


# -- what is followed of the elements of vectors ---------------------------------------------------

ELEMENTS = {
    "a start that is a name": ("2,M", "t = Shape<start = 1>(x) v = Slice(s, t, far)", (2, 1)),
    "a bool": ("3,M", "b = Cast<to = 9>(s) v = Cast<to = 7>(b)", (3, 2)),
    "a byte": ("259,M", "b = Cast<to = 2>(s) v = Cast<to = 7>(b)", (259, 2)),
    "a row": ("3,M", "u = Unsqueeze(s, zero) v = Gather<axis = 0>(u, nil)", (3, 2)),
    "a row of some": ("3,M", "u = Unsqueeze(s, zero) w = Slice(u, zero, one) v = Squeeze(w, zero)", (3, 2)),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_sizes_that_are_computed_are_followed_as_they_are_computed(kind: str) -> None:
    declared, nodes, shape = ELEMENTS[kind]
    proto = parsed(f"""<ir_version: 9, opset_import: ["": 19]> g (float[{declared}] x) => (float[] y) <{NUMBERS},
        int64 minus = {{-1}}> {{ s = Shape(x) {nodes} r = ConstantOfShape<value = float[1] {{1.0}}>(v)
        h = Shape(r) i = Gather(h, nil) k = Gather(h, minus) j = Sub(i, k) y = Cast<to = 1>(j) }}""")
    assert_same(proto, x=np.ones(shape, np.float32))


# -- bodies and functions --------------------------------------------------------------------------


def branches(first: str, second: str, tensors: tuple[str, str] = ("", "")) -> onnx.ModelProto:
    made = "h = Shape(r) k = Gather(h, two) f = Cast<to = 1>(k)"
    return parsed(f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[3,4,5] x, int64[3] d, bool c) => (float[] y) <{NUMBERS}, float[1,1,1] o = {{2}}> {{
            y = If(c) <then_branch = t () => (float[] p) {tensors[0]} {{ {first} {made} p = Identity(f) }},
                       else_branch = e () => (float[] q) {tensors[1]} {{ {second} {made} q = Identity(f) }}>
        }}""")


@pytest.mark.parametrize("go", [True, False])
def test_one_branch_tells_nothing_of_what_the_other_calls_by_its_names(go: bool) -> None:
    proto = branches("s = Shape(x) r = Expand(o, s)", "s = Abs(d) r = Expand(o, s)")
    assert_same(proto, x=X, d=np.array([6, 7, 8]), c=np.array(go))


@pytest.mark.parametrize("go", [True, False])
def test_branches_have_constants_of_their_own(go: bool) -> None:
    node = 'r = Resize<mode = "linear">(x, , s)'
    proto = branches(node, node, ("<float[3] s = {1, 1, 0.9}>", "<float[3] s = {1, 1, 2}>"))
    assert_same(proto, x=X, d=np.array([6, 7, 8]), c=np.array(go))


FUNCTIONS = {
    "Resize": 's = Constant<value_floats = [1.0, 1.0, 0.9]>() r = Resize<mode = "linear">(x, , s)',
    "MaxPool": 'r = MaxPool<auto_pad = "VALID", ceil_mode = 1, kernel_shape = [1], strides = [2]>(x)',
    "Slice": "z = Constant<value_ints = [0]>() o = Constant<value_ints = [1]>() b = Abs(a) r = Slice(x, z, o, b)",
}


@pytest.mark.parametrize("opset", [19, 18])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_is_uncertain_in_a_function_is_so_where_it_is_called(kind: str, opset: int) -> None:
    proto = parsed(f"""<ir_version: 9, opset_import: ["": 19, "my": 1]>
        g (float[3,4,10] x, int64[R] a) => (float[] y) <{NUMBERS}> {{ r = my.F(x, a) {SIZE} }}
        <domain: "my", opset_import: ["": {opset}]> F (x, a) => (r) {{ {FUNCTIONS[kind]} }}""")
    x = np.random.default_rng(1).random((3, 4, 10)).astype(np.float32)
    folded = assert_same(proto, x=x, a=np.array([2]))
    assert folded.graph.node[0].op_type == "F", "the function stays"


def test_what_a_function_makes_has_the_sizes_that_follow() -> None:
    proto = parsed(f"""<ir_version: 9, opset_import: ["": 19, "my": 1]>
        g (float[3,4,10] x) => (float[] y) <{NUMBERS}> {{ r = my.F(x) {SIZE} }}
        <domain: "my", opset_import: ["": 19]> F (x) => (r) {{ r = Relu(x) }}""")
    folded = assert_same(proto, x=np.ones((3, 4, 10), np.float32))
    assert "Shape" not in {node.op_type for node in folded.graph.node}


def test_functions_that_would_fill_the_memory_stay_calls() -> None:
    proto = parsed("""<ir_version: 9, opset_import: ["": 19, "my": 1]> g (float[3] x) => (float y) { y = my.F17(x) }
        <domain: "my", opset_import: ["": 19]> F0 (x) => (y) { y = Relu(x) }""")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("my", 1)]
    for level in range(17):
        calls = [helper.make_node(f"F{level}", [a], [b], domain="my") for a, b in ("xt", "ty")]
        proto.functions.append(helper.make_function("my", f"F{level + 1}", ["x"], ["y"], calls, imports))
    found, _ = inferred(proto)
    assert found is not None
    assert found.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not found.graph.output[0].type.tensor_type.HasField("shape")
