"""Any ONNX model: every opset, old IR versions, any order, weights wherever they are kept, bodies and functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import (
    assert_same,
    bn,
    check_fold,
    check_refusal,
    fill,
    folded,
    initializers,
    model,
    norm,
    op_types,
    parsed,
    skeleton,
)
from onnx import helper, numpy_helper

from normdeploy.errors import InputError
from normdeploy.fold import fold

WEIGHTS = f"float[5,3,3,3] w, {bn(5)}"
BODY = "c = Conv <pads=[1,1,1,1]> (x, w)\n" + norm("c", "n") + "y = Relu (n)"


def conv_norm(*, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    return model("float[2,3,8,11] x", WEIGHTS, BODY, opset=opset, ir_version=ir_version)


# -- opsets and IR versions ------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_from_7_folds_and_stays_as_it_is(opset: int) -> None:
    proto = conv_norm(opset=opset)
    check_fold(proto, "Conv Relu", onnxruntime=opset <= 21)
    assert folded(proto)[0].opset_import == proto.opset_import


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_parameters_that_moved_from_attributes_to_inputs(opset: int) -> None:
    """Squeeze, ReduceMean, Pad, Slice and Upsample or Resize, as each opset spells them."""
    axes = "int64[2] a = {2,3}"
    cut = "s = Slice <starts=[1], ends=[5], axes=[2]> (c)" if opset < 10 else "s = Slice (c, st, en, ax)"
    pad = 'p = Pad <pads=[0,0,1,0,0,0,0,1], mode="edge"> (s)' if opset < 11 else 'p = Pad <mode="edge"> (s, pd)'
    size = {7: "u = Upsample <scales=[1.0,1.0,2.0,2.0]> (p)", 9: "u = Upsample (p, sc)"}.get(
        opset, 'u = Resize <mode="nearest"> (p, roi, sc)'
    )
    mean = "m = ReduceMean <axes=[2,3]> (u)" if opset < 18 else "m = ReduceMean (u, a)"
    squeeze = "q = Squeeze <axes=[2,3]> (m)" if opset < 13 else "q = Squeeze (m, a)"
    proto = model(
        "float[2,3,8,11] x",
        f"{WEIGHTS}, {axes}, int64[1] st = {{1}}, int64[1] en = {{5}}, int64[1] ax = {{2}}, "
        "int64[8] pd = {0,0,1,0,0,0,0,1}, float[4] sc = {1,1,2,2}, float[8] roi = {0,0,0,0,1,1,1,1}",
        f"c = Conv (x, w)\n{cut}\n{pad}\n{size}\n{mean}\n{squeeze}\n" + norm("q", "y"),
        opset=opset,
    )
    upsample = "Upsample" if opset < 10 else "Resize"
    check_fold(proto, f"Conv Slice Pad {upsample} ReduceMean Squeeze", onnxruntime=opset >= 9)


def test_below_ir_version_4_initializers_are_inputs_and_yet_constants() -> None:
    proto = conv_norm(opset=9, ir_version=3)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1, "Relu": 1}
    assert {tensor.name for tensor in new.graph.initializer} == {info.name for info in new.graph.input} - {"x"}
    assert_same(proto, new)


def test_an_input_with_a_default_stays_though_nothing_of_use_reads_it() -> None:
    proto = model("float[2,3,8,11] x, float[2] k", WEIGHTS, "dead = Identity (k)\n" + BODY)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "k"))
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1, "Relu": 1}
    assert [info.name for info in new.graph.input] == ["x", "k"]
    assert "k" in {tensor.name for tensor in new.graph.initializer}


def test_below_ir_version_4_what_nothing_read_before_stays() -> None:
    proto = conv_norm(opset=9, ir_version=3)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "unread"))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    new, _ = folded(proto)
    listed = {info.name for info in new.graph.input}
    assert {tensor.name for tensor in new.graph.initializer} == listed - {"x"}
    assert "unread" in listed
    assert not listed & {"gamma", "beta", "mean", "var"}


def test_nodes_in_any_order() -> None:
    proto = conv_norm()
    ordered = conv_norm()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1, "Relu": 1}
    assert_same(ordered, new)


# -- where weights are kept ------------------------------------------------------------------------


def test_weights_in_constant_nodes() -> None:
    proto = conv_norm()
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes = [*constants, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1, "Relu": 1}
    assert_same(proto, new)


@pytest.mark.parametrize(
    ("name", "weights", "chain"),
    [
        ("Identity", "float[5,3,3,3] v", "w = Identity (v)"),
        ("Identity twice", "float[5,3,3,3] v", "u = Identity (v)\n w = Identity (u)"),
        ("Cast from float16", "float16[5,3,3,3] v", "w = Cast <to=1> (v)"),
        ("Transpose", "float[3,3,3,5] v", "w = Transpose <perm=[3,0,1,2]> (v)"),
        ("Reshape", "float[15,9] v, int64[4] s = {5,3,3,3}", "w = Reshape (v, s)"),
        ("a sum", "float[5,3,3,3] v, float[5,1,1,1] u", "w = Add (v, u)"),
        ("Expand of a CastLike zero", "float[5,3,3,3] u, float z = {0.0}, int64[4] s = {5,3,3,3}",
         "e = Expand (z, s)\n f = CastLike (e, u)\n w = Add (f, u)"),
    ],
)  # fmt: skip
def test_weights_behind_constant_subgraphs(name: str, weights: str, chain: str) -> None:
    proto = model(
        "float[2,3,8,11] x", f"{weights}, {bn(5)}", f"{chain}\nc = Conv (x, w)\n" + norm("c", "n") + "y = Relu (n)"
    )
    check_fold(proto, "Conv Relu")


def test_a_weight_chain_with_another_reader_keeps_that_reader() -> None:
    proto = model(
        "float[2,3,8,11] x",
        f"float[5,3,3,3] v, {bn(5)}",
        "w = Identity (v)\n c = Conv (x, w)\n" + norm("c", "y") + "y2 = Conv (x, w)",
        outputs="float[] y, float[] y2",
    )
    check_fold(proto, "Conv Conv")


# -- quantized weights -----------------------------------------------------------------------------


def given_zero_point() -> onnx.ModelProto:
    """The zero point is an input with a default, so nobody knows it."""
    proto = quantized("[5]")
    proto.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.INT8, [5]))
    return proto


def quantized(scale: str, gamma: str = "posgamma", axis: int = 0) -> onnx.ModelProto:
    """A convolution whose int8 weight stands behind a DequantizeLinear with a scale of shape ``scale``."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x) => (float[2,5,6,9] y)
        <int8[5,3,3,3] q, float{scale} pos, int8{scale} z, float[5] {gamma}, {bn(5)}> {{
            w = DequantizeLinear <axis={axis}> (q, pos, z)
            c = Conv (x, w)
            n = BatchNormalization (c, {gamma}, beta, mean, var)
            y = Relu (n)
        }}""")
    draw = np.random.default_rng(5)
    for name in ("q", "z"):
        (info,) = (info for info in proto.graph.value_info if info.name == name)
        proto.graph.value_info.remove(info)
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        proto.graph.initializer.append(numpy_helper.from_array(draw.integers(-90, 90, shape, np.int8), name))
    fill(proto.graph)
    return proto


def test_a_quantized_weight_is_folded_into_its_scale() -> None:
    proto = quantized("[5]")
    check_fold(proto, "DequantizeLinear Conv Relu")
    new = initializers(folded(proto)[0])
    old = initializers(proto)
    assert new["q"].tobytes() == old["q"].tobytes()
    assert new["q"].dtype == np.int8


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (quantized(""), "NF120"),
        (quantized("[3]", axis=1), "NF120"),
        (quantized("[5]", gamma="gamma2"), "NF121"),
        (given_zero_point(), "NF101"),
    ],
    ids=["NF120", "over the input channels", "NF204", "zero point as an input"],
)
def test_a_quantized_weight_is_never_silently_unquantized(proto: onnx.ModelProto, reason: str) -> None:
    check_refusal(proto, reason)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("product", ["Gemm", "MatMul", "Gemm <transB = 1>"])
def test_a_square_quantized_matrix_is_folded_over_the_axis_of_its_columns_only(product: str, axis: int) -> None:
    proto = parsed(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[6,4] x) => (float[6,4] y)
        <int8[4,4] q = {{-5,-3,3,-4,6,-2,1,8,3,-8,7,-2,5,-3,2,9}}, float[4] pos, float[4] posgamma, {bn(4)}> {{
            w = DequantizeLinear <axis={axis}> (q, pos)
            c = {product} (x, w)
            n = BatchNormalization (c, posgamma, beta, mean, var)
            y = Relu (n)
        }}""")
    if axis == int("transB" not in product):
        left = "Gemm" if "Gemm" in product else "MatMul Add"
        check_fold(proto, f"DequantizeLinear {left} Relu", onnxruntime=False)  # its MatMulNBits is not exact
    else:
        check_refusal(proto, "NF120")


def test_a_quantized_weight_takes_no_map_from_its_input_side() -> None:
    proto = parsed("""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x) => (float[2,5,8,11] y)
        <int8[5,3,1,1] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[5] pos, float[3,1,1] s> {
            w = DequantizeLinear <axis=0> (q, pos)
            t = Mul (x, s)
            y = Conv (t, w)
        }""")
    check_refusal(proto, "NF120")


# -- files -----------------------------------------------------------------------------------------


def test_every_way_to_give_a_model(tmp_path: Path) -> None:
    proto = conv_norm()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    before = path.read_bytes()
    given = ir.from_proto(proto)
    results = [fold(item) for item in (proto, given, path, str(path))]
    expected = skeleton(ir.to_proto(results[0].model))
    assert all(skeleton(ir.to_proto(result.model)) == expected for result in results)
    assert path.read_bytes() == before
    assert skeleton(ir.to_proto(given)) == skeleton(proto)


def test_external_data_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    proto = conv_norm()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    before = (tmp_path / "model.onnx.data").read_bytes()
    result = fold(path)
    ir.save(result.model, tmp_path / "folded.onnx", external_data="folded.onnx.data", size_threshold_bytes=0)
    new = onnx.load(tmp_path / "folded.onnx")
    onnx.checker.check_model(str(tmp_path / "folded.onnx"), full_check=True)
    assert op_types(new) == {"Conv": 1, "Relu": 1}
    assert_same(conv_norm(), new)
    assert (tmp_path / "model.onnx.data").read_bytes() == before


@pytest.mark.parametrize(
    "content", [None, b"", b"not a model", b"\x08\x0a\x12"], ids=["missing", "empty", "text", "cut"]
)
def test_what_is_no_model_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx"):
        fold(path)


def test_a_truncated_model_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_norm().SerializeToString()[:-100])
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        fold(path)


# -- names -----------------------------------------------------------------------------------------


def test_new_names_do_not_collide() -> None:
    """The bias that appears would be called like a value that the model has already."""
    proto = parsed(
        f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x) => (float[2,5,6,9] y, float[2,3,8,11] z)
        <{WEIGHTS}> {{
            c = Conv (x, w)
            y = BatchNormalization (c, gamma, beta, mean, var)
            "c.bias" = Relu (x)
            z = Neg ("c.bias")
        }}""".replace('"c.bias"', "taken")
    )
    proto.graph.node[2].output[0] = proto.graph.node[3].input[0] = "c.bias"
    check_fold(proto, "Conv Relu Neg")


# -- bodies and functions --------------------------------------------------------------------------


def test_inside_a_branch_as_anywhere() -> None:
    proto = parsed(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y)
        <{WEIGHTS}, float[5,3,3,3] v, {bn(5, "2")}> {{
            y = If (k) <
                then_branch = yes () => (float[2,5,6,9] a) {{
                    c = Conv (x, w)
                    a = BatchNormalization (c, gamma, beta, mean, var)
                }},
                else_branch = no () => (float[2,5,6,9] b) {{
                    d = Conv (x, v)
                    b = BatchNormalization (d, gamma2, beta2, mean2, var2)
                }}
            >
        }}""")
    check_fold(proto, "If Conv Conv")


def test_inside_a_branch_of_an_old_model() -> None:
    """Below IR version 4 the bias that appears would have to be an input, which a branch cannot have."""
    proto = parsed(f"""
        <ir_version: 3, opset_import: ["": 9]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y) <{WEIGHTS}> {{
            y = If (k) <
                then_branch = yes () => (float[2,5,6,9] a) {{
                    c = Conv (x, w)
                    a = BatchNormalization (c, gamma, beta, mean, var)
                }},
                else_branch = no () => (float[2,5,6,9] b) {{ b = Conv (x, w) }}
            >
        }}""")
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    check_fold(proto, "If Conv Conv")


def test_a_weight_from_outside_that_both_branches_read_is_copied() -> None:
    proto = parsed(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y)
        <{WEIGHTS}> {{
            y = If (k) <
                then_branch = yes () => (float[2,5,6,9] a) {{
                    c = Conv (x, w)
                    a = BatchNormalization (c, gamma, beta, mean, var)
                }},
                else_branch = no () => (float[2,5,6,9] b) {{ b = Conv (x, w) }}
            >
        }}""")
    check_fold(proto, "If Conv Conv")


def test_inside_a_loop() -> None:
    proto = parsed(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x) => (float[2,3,8,11] y)
        <float[3,3,1,1] w, {bn(3)}, int64 trips = {{3}}, bool on = {{1}}> {{
            y = Loop (trips, on, x) <
                body = step (int64 i, bool go, float[2,3,8,11] s) => (bool more, float[2,3,8,11] t) {{
                    more = Identity (go)
                    c = Conv (s, w)
                    t = BatchNormalization (c, gamma, beta, mean, var)
                }}
            >
        }}""")
    check_fold(proto, "Loop Identity Conv")


def test_inside_a_scan() -> None:
    proto = parsed(f"""
        <ir_version: 10, opset_import: ["": 21]> g (float[7,2,3] x) => (float[7,2,5] y)
        <float[3,5] w, float[5] b, {bn(5)}> {{
            y = Scan <num_scan_inputs = 1, body = step (float[2,3] row) => (float[2,5] out) {{
                c = Gemm (row, w, b)
                out = BatchNormalization (c, gamma, beta, mean, var)
            }}> (x)
        }}""")
    check_fold(proto, "Scan Gemm")


FUNCTION = """
<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2,3,8,11] x) => (float[2,3,8,11] y) <float[3,3,1,1] w> {
    p = local.block (x, w)
    y = local.block (p, w)
}
<domain: "local", opset_import: ["": 21]> block (a, v) => (b) {
    k = Constant <value = float[3,3,1,1] {0.5, -1.0, 2.0, 1.5, 0.25, -0.75, 1.0, 3.0, -2.0}> ()
    gamma = Constant <value = float[3] {0.5, 2.0, 1.5}> ()
    beta = Constant <value = float[3] {0.1, 0.2, 0.3}> ()
    mean = Constant <value = float[3] {1.0, -1.0, 0.5}> ()
    var = Constant <value = float[3] {4.0, 0.5, 2.0}> ()
    c = Conv (a, k)
    d = Relu (c)
    e = Conv (d, WEIGHT)
    b = BatchNormalization (e, gamma, beta, mean, var)
}
"""


def test_inside_a_function_with_weights_of_its_own() -> None:
    proto = parsed(FUNCTION.replace("WEIGHT", "k").replace("c = Conv (a, k)", "c = Conv (a, v)"))
    new, ledger = folded(proto)
    assert op_types(new) == {"block": 2, "Conv": 2, "Relu": 1}
    assert [entry.outcome for entry in ledger.norms()] == ["folded"]
    assert_same(proto, new)


def test_a_parameter_of_a_function_is_no_constant_until_it_is_inlined() -> None:
    proto = parsed(FUNCTION.replace("WEIGHT", "v"))
    new, ledger = folded(proto, keep=["b"])
    assert op_types(new) == op_types(proto)
    assert [entry.outcome for entry in ledger] == ["left"]
    assert_same(proto, new)
    new, ledger = folded(proto)
    assert op_types(new) == {"Conv": 4, "Relu": 2}
    assert {entry.outcome for entry in ledger} == {"folded"}
    assert any(note.code == "NF415" and "block" in note.text for note in ledger.notes)
    assert_same(proto, new)


MERGED = """
<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2,3,8,11] x) => (float[2,3,8,11] y) {
    y = local.block <shape = [1, 1]> (x)
}
<domain: "local", opset_import: ["": 21]> block <shape> (a) => (b) {
    k = Constant <value = float[3,3,1,1] {0.5, -1.0, 2.0, 1.5, 0.25, -0.75, 1.0, 3.0, -2.0}> ()
    c = Conv <kernel_shape: ints = SHAPE> (a, k)
    d = Conv (a, k)
    b = Add (c, d)
}
"""


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(("shape", "left"), [("@shape", 2), ("[1, 1]", 1)])
def test_a_convolution_whose_kernel_each_call_shapes_is_not_merged(shape: str, left: int, validate: bool) -> None:
    """Neither with the proof, which cannot run it, nor without."""
    proto = parsed(MERGED.replace("SHAPE", shape))
    new, _ = folded(proto, validate=validate)
    assert op_types(new)["Conv"] == left
    assert_same(proto, new)
