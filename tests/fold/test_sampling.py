"""GridSample lets scales pass, and shifts where no zeros are read; DeformConv absorbs as Conv does, but for shifts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from cases import Case, ids
from harness import bn, check_fold, check_refusal, norm
from onnx import TensorProto, helper
from sampling64 import DeformConv

from normdeploy.fold.float64 import places

# fmt: off
# A table: a case a row, as wide as the page.

GRID = "float[2,3,8,11] x, float[2,5,4,2] g"
CONV = "float[5,3,3,3] w, float[5] b"
PLACED = "float[2,3,8,11] x, float[2,18,6,9] o"
DEFORMED = "c = DeformConv <kernel_shape=[3,3]> (x, w, o)\n"
GRIDDED = "float[2,3,8,11] x, float[2,4,5,2] g"

PASSED = [
    *[Case(f"a norm behind {mode} with {padding}", GRIDDED, f"{CONV}, {bn(5)}",
           f'c = Conv (x, w, b)\n t = GridSample <mode="{mode}", padding_mode="{padding}"> (c, g)\n' + norm("t", "y"),
           "Conv GridSample", opset=20)
      for mode in ("linear", "nearest", "cubic") for padding in ("border", "reflection")],
    Case("a norm behind zeros: one Add stays", GRIDDED, f"{CONV}, {bn(5)}",
         "c = Conv (x, w, b)\n t = GridSample (c, g)\n" + norm("t", "y"), "Conv GridSample Add", opset=20),
    Case("at opset 16", GRIDDED, f"{CONV}, {bn(5)}",
         'c = Conv (x, w, b)\n t = GridSample <mode="bicubic", padding_mode="border", align_corners=1> (c, g)\n'
         + norm("t", "y"), "Conv GridSample", opset=16),
    Case("a norm in front", GRIDDED, f"float[5,3,1,1] w, float[5] b, {bn(3)}",
         norm("x", "t") + 'u = GridSample <padding_mode="border"> (t, g)\n y = Conv (u, w, b)', "GridSample Conv",
         opset=20),
    Case("of volumes", "float[2,3,4,5,6] x, float[2,3,4,5,3] g", f"float[5,3,1,1,1] w, {bn(5)}",
         'c = Conv (x, w)\n t = GridSample <padding_mode="reflection"> (c, g)\n' + norm("t", "y"), "Conv GridSample",
         opset=20, onnxruntime=False),
    Case("a stored grid", "float[1,3,8,11] x", f"{CONV}, {bn(5)}, float[1,4,5,2] g",
         'c = Conv (x, w, b)\n t = GridSample <padding_mode="border"> (c, g)\n' + norm("t", "y"), "Conv GridSample",
         opset=20),
    Case("of any batch and size", "float[N,3,H,W] x, float[N,T,L,2] g", f"{CONV}, {bn(5)}",
         'c = Conv (x, w, b)\n t = GridSample <padding_mode="border"> (c, g)\n' + norm("t", "y"), "Conv GridSample",
         opset=20),
    Case("deformed, a norm behind", PLACED, f"float[5,3,3,3] w, {bn(5)}", DEFORMED + norm("c", "y"), "DeformConv",
         opset=19),
    Case("deformed with a bias and a mask, a norm behind", PLACED + ", float[2,9,6,9] m", f"{CONV}, {bn(5)}",
         "c = DeformConv (x, w, o, b, m)\n" + norm("c", "y"), "DeformConv", opset=19),
    Case("deformed, a scale in front", PLACED, "float[5,3,3,3] w, float[3,1,1] k",
         "t = Mul (x, k)\n y = DeformConv (t, w, o)", "DeformConv", opset=19),
    Case("deformed by groups, strided and padded, both", "float[2,4,8,9] x, float[2,16,5,5] o, float[2,8,5,5] m",
         f"float[6,2,2,2] w, float[4,1,1] k, {bn(6)}",
         "t = Mul (x, k)\n c = DeformConv <group=2, offset_group=2, strides=[2,2], pads=[1,1,1,0]> (t, w, o, , m)\n"
         + norm("c", "y"), "DeformConv", opset=22, onnxruntime=False),
    Case("deformed by stored offsets", "float[2,3,8,11] x", f"float[5,3,3,3] w, float[2,18,6,9] o, {bn(5)}",
         DEFORMED + norm("c", "y"), "DeformConv", opset=19),
    Case("deformed, of any batch and size", "float[N,3,H,W] x, float[N,18,H,W] o", f"float[5,3,3,3] w, {bn(5)}",
         "c = DeformConv <pads=[1,1,1,1]> (x, w, o)\n" + norm("c", "y"), "DeformConv", opset=19),
]

REFUSED = [
    Case("a map over cells", "float[2,3,5,5] x, float[2,5,5,2] g", "float[4,3,1,1] w, float[5] k",
         "c = Conv (x, w)\n t = GridSample (c, g)\n y = Mul (t, k)", reason="NF015 (GridSample", opset=20),
    Case("a shift behind zeros", GRIDDED, f"{CONV}, float[5,1,1] a",
         "c = Conv (x, w, b)\n t = GridSample (c, g)\n u = Add (t, a)\n y = Relu (u)",
         reason="NF201", opset=20),
    Case("a map on the grid", GRIDDED, "float[2] k", "t = Mul (g, k)\n y = GridSample (x, t)",
         reason="NF011 (GridSample", opset=20),
    Case("a shift in front of a deformed convolution", PLACED, "float[5,3,3,3] w, float[3,1,1] a",
         "t = Add (x, a)\n y = DeformConv (t, w, o)", reason="NF201", opset=19),
    Case("a map on the offsets", PLACED, "float[5,3,3,3] w, float k", "t = Mul (o, k)\n y = DeformConv (x, w, t)",
         reason="NF011 (DeformConv", opset=19),
    Case("a map on the mask", PLACED + ", float[2,9,6,9] m", "float[5,3,3,3] w, float k",
         "t = Mul (m, k)\n y = DeformConv (x, w, o, , t)",
         reason="NF011 (DeformConv", opset=19),
    Case("a bias that is an input", PLACED + ", float[5] b", "float[5,3,3,3] w, float[5,1,1] k",
         "c = DeformConv (x, w, o, b)\n y = Mul (c, k)", reason="NF101 (DeformConv", opset=19),
]
# fmt: on


@pytest.mark.parametrize("case", PASSED, ids=ids(PASSED))
def test_a_map_passes(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_the_executor_of_grids_is_pytorchs(mode: str, padding: str, aligned: int) -> None:
    rng = np.random.default_rng(0)
    x, grid = rng.standard_normal((2, 3, 5, 7)), rng.uniform(-1.8, 1.8, (2, 9, 8, 2))
    sizes = [(2, 3, 5, 7)] if mode == "bicubic" else [(2, 3, 5, 7), (2, 3, 5, 7, 4)]
    for shape in sizes:
        x, grid = rng.standard_normal(shape), rng.uniform(-1.8, 1.8, (2, *range(4, 2 + len(shape)), len(shape) - 2))
        expected = torch.nn.functional.grid_sample(
            torch.from_numpy(x), torch.from_numpy(grid), mode, padding, align_corners=bool(aligned)
        )
        attributes = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
        np.testing.assert_allclose(places.grid_sample(attributes, x, grid), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}, {"group": 2, "offset_group": 2}, {"group": 2}],
)
def test_the_executor_of_deformed_convolutions_is_onnxruntimes(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    groups = attributes.get("group", 1)
    x, w = rng.standard_normal((2, 4, 9, 8)), rng.standard_normal((6, 4 // groups, 3, 2))
    strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0] * 4)
    spans = [d * (k - 1) for d, k in zip(attributes.get("dilations", [1, 1]), (3, 2), strict=True)]
    cells = [(n + pads[i] + pads[i + 2] - spans[i] - 1) // strides[i] + 1 for i, n in enumerate((9, 8))]
    sets = attributes.get("offset_group", 1)
    offset, mask = (rng.standard_normal((2, sets * 6 * n, *cells)) for n in (2, 1))
    b = rng.standard_normal(6)
    arrays = {"x": x, "w": w, "o": offset, "b": b, "m": mask}
    node = helper.make_node("DeformConv", list(arrays), ["y"], **attributes)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in arrays.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {name: a.astype(np.float32) for name, a in arrays.items()})
    actual = places.deform_conv(attributes, x, w, offset, b, mask)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    if sets == 1:
        (exact,) = DeformConv._run(DeformConv.__new__(DeformConv), x, w, offset, b, mask, **attributes)
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-12)
