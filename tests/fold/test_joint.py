"""Maps that go together: the same one behind all parts of a Split, and two that meet in a sum."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import IMAGE, Case, ids
from harness import bn, check_fold, check_refusal, folded, initializers, model, norm, op_types

# fmt: off
# A table: a case a row, as wide as the page.

TWO = "float[] y, float[] y2"
CONV = "float[5,3,3,3] w, float[5] b"
BOTH = IMAGE + ", float[N,3,H,W] z"
ADDED = "s = Add (t, u)\n y = Conv (s, w, b)"

BEHIND_A_SPLIT = [
    Case("rows, the same norm on both parts", "float[2,3,8,11] x", f"{CONV}, {bn(5)}, int64[2] s = {{2,4}}",
         "c = Conv (x, w, b)\n t, u = Split <axis=2> (c, s)\n" + norm("t", "y") + norm("u", "y2"), "Conv Split",
         outputs=TWO),
    Case("rows of unknown number, three parts", "float[N,3,H,W] x", f"{CONV}, {bn(5)}",
         "c = Conv (x, w, b)\n t, u, v = Split <axis=2, num_outputs=3> (c)\n" + norm("t", "y") + norm("u", "y2")
         + norm("v", "y3"), "Conv Split", outputs=TWO + ", float[] y3"),
    Case("tokens, the same scale on both parts", "float[2,6,3] x", "float[3,5] w, float[5] k",
         "c = MatMul (x, w)\n t, u = Split <axis=1, num_outputs=2> (c)\n y = Mul (t, k)\n y2 = Mul (u, k)",
         "MatMul Split", outputs=TWO),
    Case("the scale goes up, both shifts stay", "float[2,6,3] x", "float[3,5] w, float[5] k, float[5] a",
         "c = MatMul (x, w)\n t, u = Split <axis=1, num_outputs=2> (c)\n m = Mul (t, k)\n n = Mul (u, k)\n"
         "o = Add (m, a)\n p = Add (n, a)\n y = Relu (o)\n y2 = Sigmoid (p)", "MatMul Split Add Add Relu Sigmoid",
         outputs=TWO),
    Case("norms with the same numbers under other names", "float[2,3,8,11] x",
         "float[5,3,3,3] w, float[5,1,1] k = {1,2,3,4,5}, float[5,1,1] k2 = {1,2,3,4,5}",
         "c = Conv (x, w)\n t, u = Split <axis=3, num_outputs=2> (c)\n y = Mul (t, k)\n y2 = Mul (k2, u)", "Conv Split",
         outputs=TWO),
    Case("two norms of one value", "float[2,3,8,11] x", f"{CONV}, {bn(5)}",
         "c = Conv (x, w, b)\n" + norm("c", "p") + norm("c", "q") + "y = Relu (p)\n y2 = Sigmoid (q)",
         "Conv Relu Sigmoid", outputs=TWO),
]

IN_A_SUM = [
    Case("norms of two values, added before a conv: one scale stays", BOTH, f"{CONV}, {bn(3)}, {bn(3, '2')}",
         norm("x", "t") + norm("z", "u", "2") + ADDED, "Mul Add Conv"),
    Case("the same scale, and other shifts: nothing stays", BOTH,
         f"{CONV}, float[3] gamma, float[3] beta, float[3] beta2, float[3] mean, float[3] var",
         norm("x", "t") + "u = BatchNormalization (z, gamma, beta2, mean, var)\n" + ADDED, "Add Conv"),
    Case("a scale and a shift", BOTH, f"{CONV}, float[3,1,1] k, float[3,1,1] a",
         "t = Mul (x, k)\n u = Add (z, a)\n" + ADDED, "Mul Add Conv"),
    Case("two scales before a padded conv", BOTH, f"{CONV}, float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n u = Mul (z, h)\n s = Add (t, u)\n y = Conv <pads=[1,1,1,1]> (s, w, b)", "Mul Add Conv"),
    Case("a difference", BOTH, f"{CONV}, {bn(3)}, {bn(3, '2')}",
         norm("x", "t") + norm("z", "u", "2") + "s = Sub (t, u)\n y = Conv (s, w, b)", "Mul Sub Conv"),
    Case("a sum of three", BOTH + ", float[N,3,H,W] q", f"{CONV}, {bn(3)}, {bn(3, '2')}, {bn(3, '3')}",
         norm("x", "t") + norm("z", "u", "2") + norm("q", "v", "3") + "s = Sum (t, u, v)\n y = Conv (s, w, b)",
         "Mul Mul Sum Conv"),
    Case("the same norm before both parts of a Concat", BOTH, f"{CONV}, {bn(3)}",
         norm("x", "t") + norm("z", "u") + "s = Concat <axis=2> (t, u)\n y = Conv (s, w, b)", "Concat Conv"),
]

REFUSED = [
    Case("different norms on the parts", "float[2,3,8,11] x", f"{CONV}, {bn(5)}, {bn(5, '2')}, int64[2] s = {{2,4}}",
         "c = Conv (x, w, b)\n t, u = Split <axis=2> (c, s)\n" + norm("t", "y") + norm("u", "y2", "2"),
         reason="NF015 (Conv", outputs=TWO),
    Case("a part without a norm", "float[2,3,8,11] x", f"{CONV}, {bn(5)}, int64[3] s = {{2,2,2}}",
         "c = Conv (x, w, b)\n t, u, v = Split <axis=2> (c, s)\n" + norm("t", "y") + norm("u", "y2") + "y3 = Relu (v)",
         reason="NF015 (Conv", outputs=TWO + ", float[] y3"),
    Case("a part that is read by others too", "float[2,3,8,11] x", f"{CONV}, {bn(5)}, int64[2] s = {{2,4}}",
         "c = Conv (x, w, b)\n t, u = Split <axis=2> (c, s)\n" + norm("t", "y") + norm("u", "y2") + "y3 = Relu (u)",
         reason="NF005", outputs=TWO + ", float[] y3"),
    Case("a scale of 0 in a sum", BOTH, f"{CONV}, float[3,1,1] k = {{1,0,2}}, float[3,1,1] h = {{0,2,3}}",
         "t = Mul (x, k)\n u = Mul (z, h)\n" + ADDED, reason="NF205"),
    Case("maps of different rank", IMAGE + ", float[3,8,11] z", f"{CONV}, float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n u = Mul (z, h)\n" + ADDED, reason="NF215"),
    Case("maps of other numbers of channels, laid side by side", IMAGE + ", float[N,4,H,W] z",
         "float[3,1,1] k, float[4,1,1] h", "t = Mul (x, k)\n u = Mul (z, h)\n s = Concat <axis=1> (t, u)\n"
         "y = Sigmoid (s)",
         reason="NF215"),
    Case("maps that meet, of which one lies behind the other", IMAGE, f"{CONV}, float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n u = Mul (t, h)\n" + ADDED, reason="NF011"),
    Case("a sum that nothing behind can scale", BOTH, "float[3,1,1] k, float[3,1,1] h",
         "t = Mul (x, k)\n u = Mul (z, h)\n s = Add (t, u)\n y = Sigmoid (s)",
         reason="NF001 (Sigmoid"),
]
# fmt: on


@pytest.mark.parametrize("case", BEHIND_A_SPLIT, ids=ids(BEHIND_A_SPLIT))
def test_the_same_map_behind_all_parts(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", IN_A_SUM, ids=ids(IN_A_SUM))
def test_maps_that_meet(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("front", [False, True])
def test_sizes_of_parts_that_a_caller_may_override_are_not_known(front: bool) -> None:
    up = "c = Conv (x, w, b)\n t, u = Split <axis=1> (c, s)\n y = Mul (t, k)\n y2 = Relu (u)"
    down = "c = Mul (x, h)\n t, u = Split <axis=1> (c, s2)\n y = Conv (t, v)\n y2 = Conv (u, v2)"
    weights = f"{CONV}, float[2,1,1] k, float[3,1,1] h, int64[2] s = {{2,3}}, int64[2] s2 = {{1,2}}"
    weights += ", float[4,1,1,1] v, float[4,2,1,1] v2"
    proto = model("float[2,3,8,11] x", weights, down if front else up, outputs=TWO)
    name = "s2" if front else "s"
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [2]))
    check_refusal(proto, "NF014 (Split")


def test_a_kept_twin_keeps_the_other() -> None:
    body = "c = Conv (x, w, b)\n t, u = Split <axis=2> (c, s)\n" + norm("t", "y") + norm("u", "y2")
    proto = model("float[2,3,8,11] x", f"{CONV}, {bn(5)}, int64[2] s = {{2,4}}", body, outputs=TWO)
    proto.graph.node[3].name = "kept"
    new, _ = folded(proto, keep=("kept",))
    assert op_types(new) == {"Conv": 1, "Split": 1, "BatchNormalization": 2}
    onnx.checker.check_model(new)


TWO_IMAGES = "float[N,3,8,11] x, float[2,3,7,9] z"
TWICE = "c = Conv (x, w, b)\n d = Conv (z, w, b)\n"


@pytest.mark.parametrize("ir_version", [3, 10])
def test_a_weight_that_both_branches_read_stays_one(ir_version: int) -> None:
    opset = 21 if ir_version > 3 else 8
    proto = model(
        TWO_IMAGES, f"{CONV}, {bn(5)}", TWICE + norm("c", "y") + norm("d", "y2"),
        outputs=TWO, opset=opset, ir_version=ir_version,
    )  # fmt: skip
    if ir_version < 4:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    check_fold(proto, "Conv Conv", onnxruntime=ir_version > 3)
    new, _ = folded(proto)
    assert set(initializers(new)) == {"w", "b"}
    assert {value.name for value in new.graph.input} == {"x", "z"} | ({"w", "b"} if ir_version < 4 else set())


def test_of_three_branches_those_that_are_alike_share() -> None:
    body = TWICE + "e = Conv (z, w, b)\n" + norm("c", "y") + norm("d", "y2") + norm("e", "y3", "2")
    proto = model(TWO_IMAGES, f"{CONV}, {bn(5)}, {bn(5, '2')}", body, outputs=TWO + ", float[] y3")
    check_fold(proto, "Conv Conv Conv")
    new, _ = folded(proto)
    first, second, third = (list(node.input[1:]) for node in new.graph.node)
    assert first == second
    assert not {*first} & {*third}


def test_a_weight_with_a_reader_of_its_own_stays_for_that_one() -> None:
    proto = model(TWO_IMAGES, f"{CONV}, {bn(5)}", TWICE + "y3 = Conv (x, w, b)\n" + norm("c", "y") + norm("d", "y2"),
                  outputs=TWO + ", float[] y3")  # fmt: skip
    check_fold(proto, "Conv Conv Conv")
    new, _ = folded(proto)
    np.testing.assert_array_equal(initializers(new)["w"], initializers(proto)["w"])
    assert len(initializers(new)) == 4
