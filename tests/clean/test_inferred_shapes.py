"""What shape inference says of each operator, against what onnx's own node cases are known to give."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from normdeploy.clean import clean
from normdeploy.clean.inference import inferred
from normdeploy.fold import fold


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases divide by zero when they are made
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if all(map(is_plain, case.data_sets[0]))]


def is_plain(arrays: list[Any]) -> bool:
    return all(isinstance(array, np.ndarray) and array.dtype.kind in "biufU" for array in arrays)


def with_small_constants(case: Any) -> onnx.ModelProto:
    """The case with inputs of the sizes that they have, small ones as constants, and outputs of any shape."""
    proto = copy.deepcopy(case.model)
    for info, array in zip(list(proto.graph.input), case.data_sets[0][0], strict=True):
        if array.size < 10 and array.dtype.kind in "iu":
            proto.graph.input.remove(info)
            proto.graph.initializer.append(numpy_helper.from_array(array, info.name))
        else:
            shape = helper.make_tensor_type_proto(info.type.tensor_type.elem_type, array.shape)
            info.type.CopyFrom(shape)
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    return proto


def spelled(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    clean(model)
    return ir.to_proto(model)


def contradicts(proto: onnx.ModelProto, outputs: list[np.ndarray]) -> bool:
    """Return True if an inferred size is another than that of the output."""
    found, _ = inferred(proto)
    for info, array in zip(proto.graph.output if found is None else found.graph.output, outputs, strict=True):
        tensor = info.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        known = zip(sizes, array.shape, strict=False)
        if tensor.HasField("shape") and (len(sizes) != array.ndim or any(a not in (None, b) for a, b in known)):
            return True
    return False


def test_no_inferred_shape_is_another_than_what_comes_out() -> None:
    known = cases()
    wrong = {case.name: case for case in known if contradicts(with_small_constants(case), case.data_sets[0][1])}
    assert len(known) > 1000
    assert set(wrong) == {"test_stft", "test_stft_with_window"}, "what ONNX's inference is wrong about has changed"
    for case in wrong.values():
        assert not contradicts(spelled(with_small_constants(case)), case.data_sets[0][1])


STFT = """<ir_version: 8, opset_import: ["": 17]> g (float[1,128,1] x) => (float[] y)
<int64 step = {8}, int64 length = {16}, int64 two = {2}, float s = {2}, float t = {3}, float[1,1,9,2] w> {
    a = Mul(x, s) b = Add(a, t) f = STFT%s(b, step, , length)
    shape = Shape(f) bins = Gather(shape, two) many = Cast<to = 1>(bins) g = %s total = ReduceSum<keepdims = 0>(g)
    y = Div(total, many)
}"""


@pytest.mark.parametrize(("attribute", "made"), [("", "Mul(f, w)"), ("<onesided = 1>", "Mul(f, w)"),
                                                 ("<onesided = 0>", "Identity(f)")])  # fmt: skip
def test_frequencies_are_counted_as_the_standard_says(attribute: str, made: str) -> None:
    proto = onnx.parser.parse_model(STFT % (attribute, made))
    random = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(random.random((1, 1, 9, 2)).astype(np.float32), "w"))
    folded = ir.to_proto(fold(proto).model)
    x = random.standard_normal((1, 128, 1)).astype(np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    for each in (proto, folded):
        session = onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4)
    assert "Shape" not in {node.op_type for node in folded.graph.node}, "the number is known, and right"


# What ONNX's inference and ONNX Runtime size otherwise; for each a neighbour that both know.
SIZED = {
    "backward": ("r = Slice(x, zero, last, two, minus)", "r = Slice(x, minus, first, two, minus)"),
    "behind": (
        'r = MaxPool<auto_pad = "VALID", ceil_mode = 1, kernel_shape = [1], strides = [2]>(x)',
        "r = MaxPool<ceil_mode = 1, kernel_shape = [3], strides = [2], pads = [1, 1]>(x)",
    ),
    "behind a pad": (
        "r = LpPool<ceil_mode = 1, kernel_shape = [2], strides = [2], pads = [0, 1]>(x)",
        "r = AveragePool<ceil_mode = 1, kernel_shape = [2], strides = [2]>(x)",
    ),
    "dilated": (
        'r = AveragePool<auto_pad = "SAME_UPPER", kernel_shape = [3], dilations = [2]>(x)',
        'r = MaxPool<auto_pad = "SAME_LOWER", kernel_shape = [3], strides = [2]>(x)',
    ),
    "given": (
        "r = ConvTranspose<strides = [2], output_shape = [17]>(x, w)",
        'r = ConvTranspose<strides = [2], auto_pad = "SAME_UPPER">(x, w)',
    ),
    "padded": (
        'r = ConvTranspose<strides = [3], auto_pad = "SAME_LOWER", output_padding = [2]>(x, w)',
        "r = ConvTranspose<strides = [3], output_padding = [2]>(x, w)",
    ),
    "scaled": ('r = Resize<mode = "linear">(x, , scales)', 'r = Resize<mode = "linear">(x, , halves)'),
}


def sized(node: str) -> onnx.ModelProto:
    """A model that multiplies by the size of what ``node`` makes, as the graph itself computes it."""
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 19]> g (float[1,2,10] x) => (float[] y)
        <float[2,2,3] w = {{1,1,1,1,1,1,1,1,1,1,1,1}}, int64[1] zero = {{0}}, int64[1] minus = {{-1}},
        int64[1] last = {{9223372036854775807}}, int64[1] first = {{-9223372036854775807}}, int64[1] two = {{2}},
        float[3] scales = {{1, 1, 0.9}}, float[3] halves = {{1, 1, 1.5}}> {{
            {node} s = Shape(r) k = Gather(s, two) f = Cast<to = 1>(k) m = ReduceMax<keepdims = 0>(r) y = Mul(m, f)
        }}"""
    )


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it infers as ONNX does
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.ones((1, 2, 10), np.float32)} | feeds)[0])


@pytest.mark.parametrize("kind", SIZED)
def test_no_size_is_taken_from_inference_that_runtimes_compute_otherwise(kind: str) -> None:
    uncertain, certain = map(sized, SIZED[kind])
    for proto in (uncertain, certain):
        folded = ir.to_proto(fold(proto).model)
        np.testing.assert_allclose(run(folded), run(proto), rtol=1e-6)
        assert ("Shape" in {node.op_type for node in folded.graph.node}) is (proto is uncertain)


@pytest.mark.parametrize(("size", "known"), [(4, False), (5, True)])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool", "LpPool"])
def test_a_window_that_is_larger_than_the_input_may_be_none(pool: str, size: int, known: bool) -> None:
    """Rounded up there is one to inference, and none to ONNX Runtime."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 22]> g (float[1,2,{size}] x) => (int64[3] y) {{
            r = {pool}<ceil_mode = 1, kernel_shape = [3], dilations = [2], strides = [3]>(x) s = Shape(r) y = Neg(s)
        }}"""
    )
    folded = ir.to_proto(fold(proto).model)
    x = np.ones((1, 2, size), np.float32)
    np.testing.assert_array_equal(run(folded, x=x), run(proto, x=x))
    assert ("Shape" not in {node.op_type for node in folded.graph.node}) is known


def test_channels_stay_known_where_a_size_is_uncertain() -> None:
    for uncertain, _ in SIZED.values():
        found, _ = inferred(sized(uncertain))
        (info,) = (info for info in found.graph.value_info if info.name == "r")
        assert [dim.dim_value for dim in info.type.tensor_type.shape.dim] == [1, 2, 0]


def test_a_size_in_a_body_is_uncertain_too() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        g (float[1,2,10] x, bool go) => (float[] y) <float[3] scales = {1, 1, 0.9}, int64 two = {2}> {
            y = If(go) <then_branch = a () => (float[] p) {
                r = Resize<mode = "linear">(x, , scales) s = Shape(r) k = Gather(s, two) p = Cast<to = 1>(k) },
            else_branch = b () => (float[] q) { q = ReduceMax<keepdims = 0>(x) }>
        }""")
    folded = ir.to_proto(fold(proto).model)
    assert run(folded, go=np.array(True)) == run(proto, go=np.array(True)) == 9


def stale(batch: str) -> onnx.ModelProto:
    """A model that multiplies by its own batch, which was 1 when the shapes in between were written."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 19]> g (float[{batch},2,10] x) => (float[{batch},2,3] y)
        <float[10] s = {{1,2,3,4,5,6,7,8,9,10}}, float[10,3] w = {{{",".join(["0.5"] * 30)}}}, int64 zero = {{0}}> {{
            a = Mul(x, s) b = MatMul(a, w) h = Shape(b) k = Gather(h, zero) f = Cast<to = 1>(k) y = Mul(b, f)
        }}"""
    )
    for name, sizes in {"a": [1, 2, 10], "b": [1, 2, 3]}.items():
        proto.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
    return proto


@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_in_a_file_are_not_believed_where_its_inputs_are_dynamic(batch: int) -> None:
    folded = ir.to_proto(fold(stale("N")).model)
    x = np.random.default_rng(0).standard_normal((batch, 2, 10)).astype(np.float32)
    exact = (x.astype(np.float64) * np.arange(1, 11)) @ np.full((10, 3), 0.5) * batch
    np.testing.assert_allclose(run(folded, x=x), exact, rtol=1e-4, atol=1e-4)


def test_sizes_that_follow_from_the_inputs_are_constants() -> None:
    folded = ir.to_proto(fold(stale("1")).model)
    assert [node.op_type for node in folded.graph.node] == ["MatMul"]
