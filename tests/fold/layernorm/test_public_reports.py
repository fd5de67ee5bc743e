"""Faults that users reported of other folders, rebuilt small: each folds, and gives what float64 gives.

Rebuilt from the descriptions, not from the files: the comment in front of each is its report.
"""

from __future__ import annotations

from typing import get_args

import onnx
import pytest
from harness import assert_same, bn, model, norm, op_types
from norm_harness import assert_exact, reduced

from normdeploy.fold.levels import Level, Target


def spelled(data: str, axes: str, tail: str, *, keep: int = 1) -> str:
    """A LayerNorm in elementary operators, and what follows its quotient ``q``."""
    where = f"axes = [{axes}], " if axes else ""
    mean = f"<{where}keepdims = {keep}>"
    return (
        "eps = Constant <value_float = 1e-5> ()\n two = Constant <value_float = 2.0> ()\n"
        f"mean = ReduceMean {mean} ({data})\n d = Sub ({data}, mean)\n s = Pow (d, two)\n"
        f"v = ReduceMean {mean} (s)\n ve = Add (v, eps)\n r = Sqrt (ve)\n q = Div (d, r)\n{tail}"
    )


def rms(data: str, tail: str) -> str:
    """A root-mean-square norm in elementary operators, and what follows its quotient ``q``."""
    return (
        "eps = Constant <value_float = 1e-5> ()\n two = Constant <value_float = 2.0> ()\n"
        f"s = Pow ({data}, two)\n v = ReduceMean <axes = [-1], keepdims = 1> (s)\n ve = Add (v, eps)\n r = Sqrt (ve)\n"
        f"q = Div ({data}, r)\n{tail}"
    )


AFFINE = "m = Mul (q, g)\n y = Add (m, b)"
SHARED = "c1 = Conv (x, w)\n" + norm("c1", "n1", "1") + "c2 = Conv (z, w)\n" + norm("c2", "n2", "2")
MXNET = "float[3] gamma = {1, 1, 1}, float[3] beta, float[3] mean, float[3] var, float[3,3,1,1] w, float[3] b"

REPORTS = {
    # microsoft/onnxruntime#31147: with one axis the quotient itself was taken for the scale
    "a norm of a vector": model("float[7] x", "float[7] g, float[7] b", spelled("x", "-1", AFFINE), opset=12),
    # microsoft/onnxruntime#30513, #31144: keepdims was not looked at
    "means that drop their axis": model(
        "float[5,5] x", "float[5] g, float[5] b", spelled("x", "-1", AFFINE, keep=0), opset=17
    ),
    # microsoft/onnxruntime#25855: a scale that broadcasts, or that is larger than the axes that are normalized
    "a scale of one number": model("float[2,3,8] x", "float[1] g, float[1] b", spelled("x", "-1", AFFINE), opset=17),
    "a scale over an axis in front": model(
        "float[2,3,8] x", "float[3,1] g, float[3,8] b", spelled("x", "-1", AFFINE), opset=17
    ),
    "a scale that enlarges what it scales": model(
        "float[2,1,8] x", "float[3,8] g, float[8] b", spelled("x", "-1", AFFINE), opset=17
    ),
    # onnx/onnx#8203: the same for root-mean-square norms, of one number each
    "a scale of two for rows of one": model("float[1,1] x", "float[2] g", rms("x", "y = Mul (q, g)"), opset=17),
    # microsoft/onnxruntime#27455: a sum in front, and a scale of three axes
    "a sum and a scale of three axes": model(
        "float[2,3,8] x, float[2,3,8] z", "float[1,1,8] g, float[1,1,8] b",
        "t = Add (x, z)\n" + spelled("t", "-1", AFFINE), opset=17,
    ),
    # microsoft/onnxruntime#15844: axes that are not the last, or all of them where none is named
    "means over the axis in the middle": model(
        "float[2,6,5] x", "float[6,1] g, float[6,1] b", spelled("x", "1", AFFINE), opset=17
    ),
    "means over all axes": model("float[2,6,5] x", "float[5] g, float[5] b", spelled("x", "", AFFINE), opset=17),
    # microsoft/onnxruntime#17060: three axes are normalized
    "three axes": model(
        "float[2,3,4,5] x", "float[3,4,5] g, float[3,4,5] b, float[5,6] o",
        "n = LayerNormalization <axis = 1> (x, g, b)\n y = MatMul (n, o)", opset=17,
    ),
    # pytorch/pytorch#180995, ultralytics/ultralytics#25364: the scale along the wrong axis, or not along groups
    "a transposed convolution of groups": model(
        "float[2,4,6,7] x", f"float[4,2,3,3] w, {bn(4)}",
        "c = ConvTranspose <group = 2, pads = [1,1,1,1]> (x, w)\n" + norm("c", "y"),
    ),
    # google-ai-edge/litert-torch#28: cells that no kernel reaches have the bias alone
    "a transposed convolution with gaps": model(
        "float[1,2,2,2] x", f"float[2,2,1,1] w, {bn(2)}",
        "c = ConvTranspose <strides = [2,2]> (x, w)\n" + norm("c", "y"),
    ),
    # onnx/optimizer#174: one weight for two convolutions with norms of their own
    "a weight that two convolutions share": model(
        "float[2,3,6,7] x, float[2,3,5,4] z", f"float[4,3,1,1] w, {bn(4, '1')}, {bn(4, '2')}",
        SHARED + "y = Relu (n1)\n u = Relu (n2)", outputs="float[] y, float[] u",
    ),
    # onnx/optimizer#178, inisis/OnnxSlim#321: norm after norm around a convolution with a bias, as MXNet writes them
    "norms on both sides of a convolution": model(
        "float[2,3,6,7] x", MXNET,
        norm("x", "n") + "c = Conv (n, w, b)\n" + norm("c", "t") + "y = LeakyRelu <alpha = 0.25> (t)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize("proto", REPORTS.values(), ids=REPORTS.keys())
def test_a_reported_model_folds_right(proto: onnx.ModelProto, level: Level, target: Target) -> None:
    new, ledger = reduced(proto, layernorm=level, target=target)
    assert_same(proto, new)
    assert_exact(proto, new)
    assert not ledger.dropped


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("a transposed convolution of groups", {"ConvTranspose": 1}),
        ("a transposed convolution with gaps", {"ConvTranspose": 1}),
        ("a weight that two convolutions share", {"Conv": 2, "Relu": 2}),
        ("norms on both sides of a convolution", {"Conv": 1, "LeakyRelu": 1}),
        ("a sum and a scale of three axes", {"Add": 1, "LayerNormalization": 1}),
    ],
)
def test_what_can_go_of_it_is_gone(name: str, becomes: dict[str, int]) -> None:
    assert op_types(reduced(REPORTS[name])[0]) == becomes
