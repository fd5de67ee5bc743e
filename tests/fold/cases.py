"""The table of fold cases: a graph, and what must be left of it, or the reason why nothing may change.

Sizes are odd and pairwise distinct wherever the operator allows, so that no axis passes for another by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from harness import OPSET, bn, model, norm


@dataclass(frozen=True)
class Case:
    """One graph. Weights are declared without values and drawn by :func:`harness.fill`.

    Attributes:
        name: what the case shows.
        inputs: graph inputs in ONNX text; ``N H W T L`` are dynamic dimensions.
        weights: declarations in ONNX text.
        body: nodes in ONNX text.
        becomes: all operators that are left, in any order.
        left: how many norms are left, of those that the ledger lists.
        reason: what the ledger says of a norm or map that is left or partly left.
        outputs: graph outputs in ONNX text.
        opset: the opset of the default domain.
        onnxruntime: whether onnxruntime has kernels for it.
    """

    name: str
    inputs: str
    weights: str
    body: str
    becomes: str = ""
    reason: str = ""
    outputs: str = "float[] y"
    opset: int = OPSET
    onnxruntime: bool = True
    ir_version: int = field(default=10)

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        return model(
            self.inputs, self.weights, self.body, outputs=self.outputs, opset=self.opset, ir_version=self.ir_version
        )


def ids(cases: list[Case]) -> list[str]:
    """The names of ``cases``, for pytest."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return names


IMAGE = "float[N,3,H,W] x"
CONV = "float[5,3,3,3] w, float[5] b"


def after_conv(name: str, body: str, becomes: str, *, channels: int = 5, weights: str = "", opset: int = OPSET,
               outputs: str = "float[] y", onnxruntime: bool = True) -> Case:  # fmt: skip
    """A convolution to 5 channels, then ``body`` from ``c`` to ``y``, with a norm over ``channels`` in it."""
    extra = f", {weights}" if weights else ""
    return Case(name, "float[2,3,8,11] x", f"{CONV}, {bn(channels)}{extra}", "c = Conv (x, w, b)\n" + body, becomes,
                outputs=outputs, opset=opset, onnxruntime=onnxruntime)  # fmt: skip


# -- upward, into the operators with weights -------------------------------------------------------

UPWARD_INTO = [
    Case("conv", IMAGE, f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"), "Conv"),
    Case("conv with bias", IMAGE, f"{CONV}, {bn(5)}", "c = Conv (x, w, b)\n" + norm("c", "y"), "Conv"),
    Case("conv 1d", "float[N,3,L] x", f"float[5,3,4] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"), "Conv"),
    Case("conv 3d", "float[N,3,T,H,W] x", f"float[5,3,3,2,4] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"), "Conv"),
    Case("conv padded, strided, dilated", IMAGE, f"{CONV}, {bn(5)}",
         "c = Conv <pads=[1,2,0,3], strides=[2,1], dilations=[1,2]> (x, w, b)\n" + norm("c", "y"), "Conv"),
    Case("conv auto_pad upper", IMAGE, f"{CONV}, {bn(5)}",
         'c = Conv <auto_pad="SAME_UPPER", strides=[2,3]> (x, w, b)\n' + norm("c", "y"), "Conv"),
    Case("conv auto_pad lower", IMAGE, f"{CONV}, {bn(5)}",
         'c = Conv <auto_pad="SAME_LOWER", strides=[2,3]> (x, w, b)\n' + norm("c", "y"), "Conv"),
    Case("conv grouped", "float[N,6,H,W] x", f"float[9,2,3,3] w, float[9] b, {bn(9)}",
         "c = Conv <group=3, pads=[1,1,1,1]> (x, w, b)\n" + norm("c", "y"), "Conv"),
    Case("conv depthwise", "float[N,5,H,W] x", f"float[5,1,3,3] w, {bn(5)}",
         "c = Conv <group=5> (x, w)\n" + norm("c", "y"), "Conv"),
    Case("conv depthwise with multiplier", "float[N,3,H,W] x", f"float[6,1,3,3] w, {bn(6)}",
         "c = Conv <group=3> (x, w)\n" + norm("c", "y"), "Conv"),
    Case("conv, then relu", IMAGE, f"{CONV}, {bn(5)}", "c = Conv (x, w, b)\n" + norm("c", "n") + "y = Relu (n)",
         "Conv Relu"),
    Case("convtranspose", IMAGE, f"float[3,5,3,3] w, {bn(5)}", "c = ConvTranspose (x, w)\n" + norm("c", "y"),
         "ConvTranspose"),
    Case("convtranspose 1d with bias", "float[N,3,L] x", f"float[3,5,4] w, float[5] b, {bn(5)}",
         "c = ConvTranspose <strides=[3], pads=[1,2]> (x, w, b)\n" + norm("c", "y"), "ConvTranspose"),
    Case("convtranspose 3d", "float[N,3,4,H,W] x", f"float[3,5,2,3,2] w, {bn(5)}",
         "c = ConvTranspose (x, w)\n" + norm("c", "y"), "ConvTranspose"),
    Case("convtranspose grouped", "float[N,6,H,W] x", f"float[6,5,3,2] w, float[15] b, {bn(15)}",
         "c = ConvTranspose <group=3, strides=[2,1], output_padding=[1,0], pads=[1,0,1,1]> (x, w, b)\n"
         + norm("c", "y"), "ConvTranspose"),
    Case("convtranspose depthwise", "float[N,5,H,W] x", f"float[5,1,3,3] w, {bn(5)}",
         "c = ConvTranspose <group=5> (x, w)\n" + norm("c", "y"), "ConvTranspose"),
    *[
        Case(f"gemm {name}", inputs, f"{weights}, {bn(5)}", f"c = Gemm {attributes} ({args})\n" + norm("c", "y"), "Gemm")
        for name, inputs, weights, attributes, args in [
            ("plain", "float[N,3] x", "float[3,5] w", "", "x, w"),
            ("transB", "float[N,3] x", "float[5,3] w, float[5] b", "<transB=1>", "x, w, b"),
            ("transA", "float[3,N] x", "float[3,5] w, float[5] b", "<transA=1>", "x, w, b"),
            ("transA transB", "float[3,N] x", "float[5,3] w", "<transA=1, transB=1>", "x, w"),
            ("alpha beta", "float[N,3] x", "float[3,5] w, float[5] b", "<alpha=0.75, beta=-1.5>", "x, w, b"),
            ("alpha beta without C", "float[N,3] x", "float[3,5] w", "<alpha=0.75, beta=-1.5>", "x, w"),
            ("beta 0", "float[N,3] x", "float[3,5] w, float[5] b", "<beta=0.0>", "x, w, b"),
            ("C scalar", "float[N,3] x", "float[3,5] w, float b", "<beta=0.5>", "x, w, b"),
            ("C [1]", "float[N,3] x", "float[3,5] w, float[1] b", "", "x, w, b"),
            ("C [1,1]", "float[N,3] x", "float[3,5] w, float[1,1] b", "", "x, w, b"),
            ("C [1,N]", "float[N,3] x", "float[3,5] w, float[1,5] b", "", "x, w, b"),
            ("C [M,1]", "float[2,3] x", "float[3,5] w, float[2,1] b", "<beta=2.0>", "x, w, b"),
            ("C [M,N]", "float[2,3] x", "float[3,5] w, float[2,5] b", "", "x, w, b"),
        ]
    ],
    Case("matmul right", "float[N,3] x", f"float[3,5] w, {bn(5)}", "c = MatMul (x, w)\n" + norm("c", "y"),
         "MatMul Add"),
    Case("matmul with bias", "float[N,3] x", f"float[3,5] w, float[5] b, {bn(5)}",
         "m = MatMul (x, w)\n c = Add (m, b)\n" + norm("c", "y"), "MatMul Add"),
    Case("matmul with bias in front", "float[N,3] x", f"float[3,5] w, float[5] b, {bn(5)}",
         "m = MatMul (x, w)\n c = Add (b, m)\n" + norm("c", "y"), "MatMul Add"),
    Case("matmul left", "float[N,3,T] x", f"float[5,3] w, {bn(5)}", "c = MatMul (w, x)\n" + norm("c", "y"),
         "MatMul Add"),
    Case("matmul left with bias", "float[N,3,T] x", f"float[5,3] w, float[5,1] b, {bn(5)}",
         "m = MatMul (w, x)\n c = Add (m, b)\n" + norm("c", "y"), "MatMul Add"),
    Case("matmul left, batched weight", "float[2,3,T] x", f"float[2,5,3] w, {bn(5)}",
         "c = MatMul (w, x)\n" + norm("c", "y"), "MatMul Add"),
    Case("matmul by a scale alone", "float[N,T,3] x", "float[3,5] w, float[5] s", "c = MatMul (x, w)\n y = Mul (c, s)",
         "MatMul"),
    Case("attention scaling into K", "float[N,T,3] x", "float[3,5] q, float[3,5] k, float s = {0.125}",
         "a = MatMul (x, q)\n b = MatMul (x, k)\n t = Transpose <perm=[0,2,1]> (b)\n u = Mul (t, s)\n y = MatMul (a, u)",
         "MatMul MatMul Transpose MatMul"),
    Case("linear on 3-D, transpose", "float[N,T,3] x", f"float[3,5] w, float[5] b, {bn(5)}",
         "m = MatMul (x, w)\n c = Add (m, b)\n t = Transpose <perm=[0,2,1]> (c)\n" + norm("t", "y"),
         "MatMul Add Transpose"),
    Case("linear on 3-D with T = N, transpose", "float[5,5,3] x", f"float[3,5] w, float[5] b, {bn(5)}",
         "m = MatMul (x, w)\n c = Add (m, b)\n t = Transpose <perm=[0,2,1]> (c)\n" + norm("t", "y"),
         "MatMul Add Transpose"),
    Case("linear on 3-D, flattened tokens (LeViT)", "float[2,7,3] x",
         f"float[3,5] w, float[5] b, {bn(5)}, int64[2] flat = {{14, 5}}, int64[3] back = {{2, 7, 5}}",
         "m = MatMul (x, w)\n c = Add (m, b)\n r = Reshape (c, flat)\n" + norm("r", "n") + "y = Reshape (n, back)",
         "MatMul Add Reshape Reshape"),
    Case("linear on 3-D, flattened tokens of unknown number", "float[N,T,3] x",
         f"float[3,5] w, {bn(5)}, int64[2] flat = {{-1, 5}}",
         "m = MatMul (x, w)\n r = Reshape (m, flat)\n" + norm("r", "y"), "MatMul Add Reshape"),
    Case("gather from a table", "int64[N] i", f"float[11,5] w, {bn(5)}", "c = Gather (w, i)\n" + norm("c", "y"),
         "Gather"),
    Case("gather from a table, tokens", "int64[N,T] i", f"float[11,5] w, {bn(5)}",
         "c = Gather (w, i)\n t = Transpose <perm=[0,2,1]> (c)\n" + norm("t", "y"), "Gather Transpose"),
    Case("embedding scale", "int64[N,T] i", "float[11,5] w, float s = {2.25}", "c = Gather (w, i)\n y = Mul (c, s)",
         "Gather"),
    Case("gemm, reshaped to an image", "float[2,3] x", f"float[3,60] w, float[60] b, {bn(5)}, int64[4] s = {{2,5,3,4}}",
         "c = Gemm (x, w, b)\n r = Reshape (c, s)\n" + norm("r", "y"), "Gemm Reshape"),
    Case("gemm, reshaped to an image, any batch", "float[N,3] x",
         f"float[3,60] w, float[60] b, {bn(5)}, int64[4] s = {{-1,5,3,4}}",
         "c = Gemm (x, w, b)\n r = Reshape (c, s)\n" + norm("r", "y"), "Gemm Reshape"),
    Case("layer scale on a residual branch", "float[N,T,3] x", "float[3,3] w, float[3] b, float[3] g",
         "m = MatMul (x, w)\n c = Add (m, b)\n s = Mul (c, g)\n y = Add (x, s)", "MatMul Add Add"),
    Case("layer scale and residual around a conv", IMAGE, "float[3,3,1,1] w, float[3] b, float[3,1,1] g",
         "c = Conv (x, w, b)\n s = Mul (c, g)\n y = Add (x, s)", "Conv"),
    Case("weight shared by two convs", IMAGE, f"float[3,3,1,1] w, {bn(3)}",
         "c = Conv (x, w)\n" + norm("c", "n") + "y = Conv (n, w)", "Conv Conv"),
    Case("conv reused with two norms", "float[N,3,H,W] x, float[N,3,H,W] z", f"{CONV}, {bn(5)}, {bn(5, '2')}",
         "c = Conv (x, w, b)\n d = Conv (z, w, b)\n" + norm("c", "y") + norm("d", "y2", "2"), "Conv Conv",
         outputs="float[] y, float[] y2"),
]  # fmt: skip

# -- upward, through everything --------------------------------------------------------------------

BN5 = norm("t", "y")

UPWARD_THROUGH = [
    after_conv("Identity", "t = Identity (c)\n" + BN5, "Conv Identity"),
    after_conv("Dropout", "t = Dropout (c)\n" + BN5, "Conv Dropout"),
    after_conv("Cast to the same dtype", "t = Cast <to=1> (c)\n" + BN5, "Conv Cast"),
    after_conv("Reshape keeping channels", "t = Reshape (c, s)\n" + BN5, "Conv Reshape", weights="int64[3] s = {2,5,54}"),
    after_conv("Reshape with 0 and -1", "t = Reshape (c, s)\n" + BN5, "Conv Reshape", weights="int64[3] s = {0,0,-1}"),
    after_conv("Reshape splitting channels", "t = Reshape (c, s)\n" + BN5, "Conv Reshape",
               weights="int64[5] s = {2,5,1,6,9}"),
    after_conv("Flatten of one cell", "p = GlobalAveragePool (c)\n t = Flatten (p)\n" + BN5,
               "Conv GlobalAveragePool Flatten"),
    after_conv("Squeeze", "p = GlobalAveragePool (c)\n t = Squeeze (p, a)\n" + BN5, "Conv GlobalAveragePool Squeeze",
               weights="int64[2] a = {2,3}"),
    after_conv("Squeeze without axes", "p = GlobalAveragePool (c)\n t = Squeeze (p)\n" + BN5,
               "Conv GlobalAveragePool Squeeze"),
    after_conv("Squeeze by a negative axis", "p = GlobalAveragePool (c)\n t = Squeeze (p, a)\n" + BN5,
               "Conv GlobalAveragePool Squeeze", weights="int64[2] a = {-1,-2}"),
    after_conv("Unsqueeze", "t = Unsqueeze (c, a)\n" + BN5, "Conv Unsqueeze", weights="int64[1] a = {3}"),
    after_conv("Unsqueeze by a negative axis", "t = Unsqueeze (c, a)\n" + BN5, "Conv Unsqueeze",
               weights="int64[1] a = {-1}"),
    after_conv("Transpose", "t = Transpose <perm=[3,1,0,2]> (c)\n" + BN5, "Conv Transpose"),
    after_conv("NHWC: Transpose, map over the last axis, Transpose",
               "n = Transpose <perm=[0,2,3,1]> (c)\n m = Mul (n, gamma)\n a = Add (m, beta)\n"
               "y = Transpose <perm=[0,3,1,2]> (a)", "Conv Transpose Transpose"),
    after_conv("Expand", "p = GlobalAveragePool (c)\n t = Expand (p, s)\n" + BN5, "Conv GlobalAveragePool Expand",
               weights="int64[4] s = {1,1,4,6}"),
    after_conv("Tile of cells", "t = Tile (c, r)\n" + BN5, "Conv Tile", weights="int64[4] r = {1,1,2,3}"),
    after_conv("Slice of cells", "t = Slice (c, s, e, a)\n" + BN5, "Conv Slice",
               weights="int64[2] s = {1,-4}, int64[2] e = {5,-1}, int64[2] a = {2,3}"),
    after_conv("Slice of channels", "t = Slice (c, s, e, a)\n" + norm("t", "y"), "Conv Slice", channels=3,
               weights="int64[1] s = {1}, int64[1] e = {4}, int64[1] a = {1}"),
    after_conv("Slice of channels, backwards", "t = Slice (c, s, e, a, st)\n" + norm("t", "y"), "Conv Slice",
               channels=3, weights="int64[1] s = {4}, int64[1] e = {-9}, int64[1] a = {1}, int64[1] st = {-2}"),
    after_conv("Split of channels, a norm on one part", "t, u = Split <axis=1> (c, s)\n" + norm("t", "y"),
               "Conv Split", channels=2, weights="int64[2] s = {2,3}", outputs="float[] y, float[] u"),
    after_conv("Split of channels, a norm on each part",
               "t, u = Split <axis=1> (c, s)\n" + norm("t", "y") + norm("u", "y2", "2"), "Conv Split", channels=2,
               weights=f"int64[2] s = {{2,3}}, {bn(3, '2')}", outputs="float[] y, float[] y2"),
    Case("Concat of channels", IMAGE, f"float[5,3,3,3] w, float[2,3,3,3] v, {bn(7)}",
         "c = Conv (x, w)\n d = Conv (x, v)\n t = Concat <axis=1> (c, d)\n" + BN5, "Conv Conv Concat"),
    Case("Concat of rows", IMAGE, f"float[5,3,3,3] w, float[5,3,1,3] v, {bn(5)}",
         "c = Conv (x, w)\n d = Conv (x, v)\n t = Concat <axis=2> (c, d)\n" + BN5, "Conv Conv Concat"),
    Case("Concat with a constant", "float[N,T,3] x", "float[3,5] w, float[2,1,5] k, float[5] s",
         "m = MatMul (x, w)\n t = Concat <axis=1> (k, m)\n y = Mul (t, s)", "MatMul Concat"),
    after_conv("Gather of rows", "t = Gather <axis=2> (c, i)\n" + BN5, "Conv Gather", weights="int64[3] i = {4,0,4}"),
    after_conv("Gather of one row", "t = Gather <axis=2> (c, i)\n" + BN5, "Conv Gather", weights="int64 i = {4}"),
    after_conv("Gather of channels", "t = Gather <axis=1> (c, i)\n" + BN5, "Conv Gather", channels=4,
               weights="int64[4] i = {3,-5,4,1}"),
    Case("DepthToSpace DCR (pixel shuffle)", IMAGE, f"float[20,3,3,3] w, float[20] b, {bn(5)}",
         "c = Conv (x, w, b)\n t = DepthToSpace <blocksize=2> (c)\n" + BN5, "Conv DepthToSpace"),
    Case("DepthToSpace CRD", IMAGE, f"float[20,3,3,3] w, float[20] b, {bn(5)}",
         'c = Conv (x, w, b)\n t = DepthToSpace <blocksize=2, mode="CRD"> (c)\n' + BN5, "Conv DepthToSpace"),
    Case("pixel shuffle by Reshape and Transpose", "float[2,3,8,10] x",
         f"float[20,3,3,3] w, float[20] b, {bn(5)}, int64[6] s = {{2,5,2,2,6,8}}, int64[4] r = {{2,5,12,16}}",
         "c = Conv (x, w, b)\n p = Reshape (c, s)\n q = Transpose <perm=[0,1,4,2,5,3]> (p)\n t = Reshape (q, r)\n" + BN5,
         "Conv Reshape Transpose Reshape"),
    Case("channel shuffle", "float[2,3,8,11] x",
         f"float[6,3,3,3] w, float[6] b, {bn(6)}, int64[5] s = {{2,2,3,6,9}}, int64[4] r = {{2,6,6,9}}",
         "c = Conv (x, w, b)\n p = Reshape (c, s)\n q = Transpose <perm=[0,2,1,3,4]> (p)\n t = Reshape (q, r)\n" + BN5,
         "Conv Reshape Transpose Reshape"),
    Case("channel shuffle of any batch", "float[N,3,8,11] x",
         f"float[6,3,3,3] w, float[6] b, {bn(6)}, int64[5] s = {{0,2,3,6,9}}, int64[4] r = {{0,6,6,9}}",
         "c = Conv (x, w, b)\n p = Reshape (c, s)\n q = Transpose <perm=[0,2,1,3,4]> (p)\n t = Reshape (q, r)\n" + BN5,
         "Conv Reshape Transpose Reshape"),
    Case("SpaceToDepth, equal over the phases", IMAGE,
         "float[5,3,3,4] w, float[20,1,1] s = {1,2,3,4,5, 1,2,3,4,5, 1,2,3,4,5, 1,2,3,4,5}",
         "c = Conv (x, w)\n t = SpaceToDepth <blocksize=2> (c)\n y = Mul (t, s)", "Conv SpaceToDepth"),
    after_conv("AveragePool", "t = AveragePool <kernel_shape=[2,3], strides=[2,1]> (c)\n" + BN5, "Conv AveragePool"),
    after_conv("AveragePool padded, pads not counted",
               "t = AveragePool <kernel_shape=[2,3], pads=[1,1,1,1]> (c)\n" + BN5, "Conv AveragePool"),
    after_conv("AveragePool with count_include_pad but no pads",
               "t = AveragePool <kernel_shape=[2,3], count_include_pad=1> (c)\n" + BN5, "Conv AveragePool"),
    after_conv("AveragePool with counted pads: one Add stays",
               "t = AveragePool <kernel_shape=[2,3], pads=[1,1,1,1], count_include_pad=1> (c)\n" + BN5,
               "Conv AveragePool Add"),
    after_conv("GlobalAveragePool", "t = GlobalAveragePool (c)\n" + BN5, "Conv GlobalAveragePool"),
    after_conv("ReduceMean", "t = ReduceMean (c, a)\n" + BN5, "Conv ReduceMean", weights="int64[2] a = {2,3}"),
    after_conv("ReduceMean without keepdims", "t = ReduceMean <keepdims=0> (c, a)\n" + BN5, "Conv ReduceMean",
               weights="int64[2] a = {-1,-2}"),
    after_conv("ReduceMean with axes as attribute", "t = ReduceMean <axes=[2,3], keepdims=0> (c)\n" + BN5,
               "Conv ReduceMean", opset=17),
    *[
        after_conv(f"Resize {name}", f"t = Resize <{attributes}> (c, , s)\n" + BN5, "Conv Resize",
                   weights="float[4] s = {1,1,2,3}")
        for name, attributes in [
            ("nearest", 'mode="nearest"'),
            ("nearest asymmetric", 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'),
            ("linear", 'mode="linear"'),
            ("linear aligned", 'mode="linear", coordinate_transformation_mode="align_corners"'),
            ("cubic", 'mode="cubic"'),
            ("cubic excluding outside", 'mode="cubic", exclude_outside=1'),
            ("antialias", 'mode="linear", antialias=1'),
        ]
    ],
    after_conv("Resize to sizes", 't = Resize <mode="linear"> (c, , , z)\n' + BN5, "Conv Resize",
               weights="int64[4] z = {2,5,13,10}"),
    *[
        after_conv(f"Pad {name}", f"t = Pad <mode=\"{mode}\"> ({args})\n" + BN5, "Conv Pad",
                   weights=f"int64[8] p = {{{pads}}}", onnxruntime=mode != "wrap")
        for name, mode, args, pads in [
            ("reflect", "reflect", "c, p", "0,0,1,2,0,0,3,1"),
            ("edge", "edge", "c, p", "0,0,1,2,0,0,3,1"),
            ("wrap", "wrap", "c, p", "0,0,1,2,0,0,3,1"),
            ("negative", "constant", "c, p", "0,0,-1,-2,0,0,0,-1"),
        ]
    ],
    Case("Pad with a constant that stays one scalar", IMAGE,
         "float[5,3,3,3] w, int64[8] p = {0,0,1,2,0,0,3,1}, float k = {1.5}, float m = {2.0}, float a = {0.75}",
         "c = Conv (x, w)\n t = Pad (c, p, k)\n u = Mul (t, m)\n y = Add (u, a)", "Conv Pad"),
    Case("Pad with zeros, a scale per channel", IMAGE,
         "float[5,3,3,3] w, int64[8] p = {0,0,1,2,0,0,3,1}, float[5,1,1] m",
         "c = Conv (x, w)\n t = Pad (c, p)\n y = Mul (t, m)", "Conv Pad"),
    Case("Add of two convs", IMAGE + ", float[N,3,H,W] z", f"{CONV}, float[5,3,3,3] v, {bn(5)}",
         "c = Conv (x, w, b)\n d = Conv (z, v)\n t = Add (c, d)\n" + BN5, "Conv Conv Add"),
    Case("Add of two convs without bias", IMAGE + ", float[N,3,H,W] z", f"float[5,3,3,3] w, float[5,3,3,3] v, {bn(5)}",
         "c = Conv (x, w)\n d = Conv (z, v)\n t = Add (c, d)\n" + BN5, "Conv Conv Add"),
    Case("Sub of two convs", IMAGE + ", float[N,3,H,W] z", f"{CONV}, float[5,3,3,3] v, {bn(5)}",
         "c = Conv (x, w, b)\n d = Conv (z, v)\n t = Sub (c, d)\n" + BN5, "Conv Conv Sub"),
    Case("Sum of three convs", "float[N,3,H,W] x, float[N,3,H,W] z, float[N,3,H,W] u",
         f"{CONV}, float[5,3,3,3] v, float[5,3,3,3] q, {bn(5)}",
         "c = Conv (x, w, b)\n d = Conv (z, v)\n e = Conv (u, q)\n t = Sum (c, d, e)\n" + BN5, "Conv Conv Conv Sum"),
    Case("Add of a conv and a bias-less MatMul branch", "float[N,3] x, float[N,7] z",
         f"float[3,5] w, float[7,5] v, float[5] b, {bn(5)}",
         "c = MatMul (z, v)\n d = Gemm (x, w, b)\n t = Add (c, d)\n" + BN5, "MatMul Gemm Add"),
    Case("Add of a branch that is broadcast over cells", IMAGE + ", float[N,3,1,1] z",
         f"{CONV}, float[5,3,1,1] v, {bn(5)}",
         "c = Conv (x, w, b)\n d = Conv (z, v)\n t = Add (c, d)\n" + BN5, "Conv Conv Add"),
    after_conv("MaxPool under a positive scale", "t = MaxPool <kernel_shape=[2,3], pads=[1,1,0,1]> (c)\n"
               + "y = BatchNormalization (t, posgamma, beta, mean, var)", "Conv MaxPool", weights="float[5] posgamma"),
    after_conv("MaxPool with its indices", "t, i = MaxPool <kernel_shape=[2,3]> (c)\n"
               + "y = BatchNormalization (t, posgamma, beta, mean, var)", "Conv MaxPool", weights="float[5] posgamma",
               outputs="float[] y, int64[] i"),
    after_conv("GlobalMaxPool under a positive scale",
               "t = GlobalMaxPool (c)\n y = BatchNormalization (t, posgamma, beta, mean, var)", "Conv GlobalMaxPool",
               weights="float[5] posgamma"),
    after_conv("Relu under a positive norm: one Add stays",
               "t = Relu (c)\n y = BatchNormalization (t, posgamma, beta, mean, var)", "Conv Relu Add",
               weights="float[5] posgamma"),
    after_conv("Relu under a positive scale", "t = Relu (c)\n y = Mul (t, pos)", "Conv Relu", weights="float[5,1,1] pos"),
    after_conv("LeakyRelu under a positive scale", "t = LeakyRelu <alpha=0.2> (c)\n y = Mul (t, pos)", "Conv LeakyRelu",
               weights="float[5,1,1] pos"),
    after_conv("a chain of many", "a = Relu (c)\n b1 = MaxPool <kernel_shape=[2,2]> (a)\n"
               "d = Transpose <perm=[0,2,3,1]> (b1)\n e = Reshape (d, s)\n y = Mul (e, pos)",
               "Conv Relu MaxPool Transpose Reshape", weights="float[5] pos, int64[3] s = {2,-1,5}"),
]  # fmt: skip

# -- downward, into the operators with weights -----------------------------------------------------

PRE = norm("x", "t")
"""A norm right on the input: there is nothing above it, so it must go down."""

DOWNWARD_INTO = [
    Case("conv", IMAGE, f"{CONV}, {bn(3)}", PRE + "y = Conv (t, w, b)", "Conv"),
    Case("conv without bias", IMAGE, f"float[5,3,3,3] w, {bn(3)}", PRE + "y = Conv (t, w)", "Conv"),
    Case("conv valid", IMAGE, f"{CONV}, {bn(3)}", PRE + 'y = Conv <auto_pad="VALID", strides=[2,1]> (t, w, b)', "Conv"),
    Case("conv 1d", "float[N,3,L] x", f"float[5,3,4] w, {bn(3)}", PRE + "y = Conv (t, w)", "Conv"),
    Case("conv 3d", "float[N,3,T,H,W] x", f"float[5,3,2,3,1] w, {bn(3)}", PRE + "y = Conv <dilations=[2,1,1]> (t, w)",
         "Conv"),
    Case("conv grouped", "float[N,6,H,W] x", f"float[9,2,3,3] w, float[9] b, {bn(6)}",
         PRE + "y = Conv <group=3, dilations=[2,1]> (t, w, b)", "Conv"),
    Case("conv depthwise", "float[N,5,H,W] x", f"float[10,1,3,3] w, {bn(5)}", PRE + "y = Conv <group=5> (t, w)", "Conv"),
    Case("two convs", IMAGE, f"{CONV}, float[7,3,1,1] v, {bn(3)}", PRE + "y = Conv (t, w, b)\n y2 = Conv (t, v)",
         "Conv Conv", outputs="float[] y, float[] y2"),
    Case("padded conv: one Add stays", IMAGE, f"{CONV}, {bn(3)}", PRE + "y = Conv <pads=[1,1,1,1]> (t, w, b)",
         "Add Conv"),
    Case("padded conv by auto_pad: one Add stays", IMAGE, f"{CONV}, {bn(3)}",
         PRE + 'y = Conv <auto_pad="SAME_UPPER"> (t, w, b)', "Add Conv"),
    Case("padded conv, a scale alone", IMAGE, f"{CONV}, float[3,1,1] s",
         "t = Mul (x, s)\n y = Conv <pads=[1,1,1,1]> (t, w, b)", "Conv"),
    Case("convtranspose: the scale, one Add stays", IMAGE, f"float[3,5,3,3] w, {bn(3)}",
         PRE + "y = ConvTranspose <strides=[2,2]> (t, w)", "Add ConvTranspose"),
    Case("convtranspose of one cell each", IMAGE, f"float[3,5,1,1] w, {bn(3)}", PRE + "y = ConvTranspose (t, w)",
         "ConvTranspose"),
    Case("convtranspose cropped to where the whole kernel is seen", IMAGE, f"float[3,5,3,2] w, float[5] b, {bn(3)}",
         PRE + "y = ConvTranspose <dilations=[2,1], pads=[4,1,4,2]> (t, w, b)", "ConvTranspose"),
    Case("convtranspose grouped, a scale alone", "float[N,6,H,W] x", "float[6,5,3,2] w, float[6,1,1] s",
         "t = Mul (x, s)\n y = ConvTranspose <group=3, strides=[2,1], output_padding=[1,0]> (t, w)", "ConvTranspose"),
    Case("convtranspose grouped, cropped", "float[N,6,H,W] x", f"float[6,5,3,2] w, float[15] b, {bn(6)}",
         PRE + "y = ConvTranspose <group=3, pads=[2,1,2,1]> (t, w, b)", "ConvTranspose"),
    *[
        Case(f"gemm {name}", inputs, f"{weights}, {bn(3)}", f"t0 = Identity (x)\n" + norm("t0", "t")
             + f"y = Gemm {attributes} ({args})", "Identity Gemm")
        for name, inputs, weights, attributes, args in [
            ("plain", "float[N,3] x", "float[3,5] w", "", "t, w"),
            ("transB", "float[N,3] x", "float[5,3] w, float[5] b", "<transB=1>", "t, w, b"),
            ("alpha beta", "float[N,3] x", "float[3,5] w, float[5] b", "<alpha=0.75, beta=-1.5>", "t, w, b"),
            ("beta 0", "float[N,3] x", "float[3,5] w, float[5] b", "<alpha=0.75, beta=0.0>", "t, w, b"),
            ("C scalar", "float[N,3] x", "float[3,5] w, float b", "<beta=0.5>", "t, w, b"),
            ("C [1,1]", "float[N,3] x", "float[3,5] w, float[1,1] b", "", "t, w, b"),
            ("C [1,N]", "float[N,3] x", "float[3,5] w, float[1,5] b", "", "t, w, b"),
            ("C [M,1]", "float[2,3] x", "float[3,5] w, float[2,1] b", "<beta=2.0>", "t, w, b"),
            ("C [M,N]", "float[2,3] x", "float[3,5] w, float[2,5] b", "", "t, w, b"),
        ]
    ],
    Case("gemm transA", "float[3,N] x", "float[3,5] w, float[5] b, float[3,1] s, float[3,1] a",
         "u = Mul (x, s)\n t = Add (u, a)\n y = Gemm <transA=1> (t, w, b)", "Gemm"),
    Case("matmul right", "float[N,T,3] x", "float[3,5] w, float[3] s, float[3] a",
         "u = Mul (x, s)\n t = Add (u, a)\n m = MatMul (t, w)\n y = Relu (m)", "MatMul Add Relu"),
    Case("matmul right, with a bias behind it", "float[N,T,3] x", "float[3,5] w, float[5] b, float[3] s, float[3] a",
         "u = Mul (x, s)\n t = Add (u, a)\n m = MatMul (t, w)\n n = Add (m, b)\n y = Relu (n)", "MatMul Add Relu"),
    Case("matmul left, with a bias behind it", "float[N,3,T] x", f"float[5,3] w, float[5,1] b, {bn(3)}",
         PRE + "m = MatMul (w, t)\n n = Add (m, b)\n y = Relu (n)", "MatMul Add Relu"),
    Case("matmul left, batched", "float[2,3,T] x", f"float[2,5,3] w, float[5,1] b, {bn(3)}",
         PRE + "m = MatMul (w, t)\n n = Add (m, b)\n y = Relu (n)", "MatMul Add Relu"),
    Case("Q, K and V", "float[N,T,3] x",
         "float[3] s, float[3] a, float[3,5] q, float[5] qb, float[3,5] k, float[5] kb, float[3,4] v, float[4] vb",
         "u = Mul (x, s)\n t = Add (u, a)\n q0 = MatMul (t, q)\n y = Add (q0, qb)\n k0 = MatMul (t, k)\n"
         "y2 = Add (k0, kb)\n v0 = MatMul (t, v)\n y3 = Add (v0, vb)", "MatMul Add MatMul Add MatMul Add",
         outputs="float[] y, float[] y2, float[] y3"),
    Case("a norm over features, then a linear layer", "float[N,3] x", f"float[3,5] w, float[5] b, {bn(3)}",
         PRE + "m = MatMul (t, w)\n y = Add (m, b)", "MatMul Add"),
    Case("a weight shared with an untouched reader", IMAGE, f"float[5,3,1,1] w, {bn(3)}",
         PRE + "y = Conv (t, w)\n y2 = Conv (x, w)", "Conv Conv", outputs="float[] y, float[] y2"),
]  # fmt: skip

# -- downward, through everything ------------------------------------------------------------------


def before_conv(name: str, body: str, becomes: str, *, weights: str = "", channels: int = 3, opset: int = OPSET,
                onnxruntime: bool = True, into: str = "y = Conv (u, w, b)") -> Case:  # fmt: skip
    """A norm on an image, ``body`` from ``t`` to ``u``, and a convolution behind it."""
    extra = f", {weights}" if weights else ""
    return Case(name, "float[2,3,8,11] x", f"float[5,{channels},1,1] w, float[5] b, {bn(3)}{extra}",
                PRE + body + f"\n{into}", becomes, opset=opset, onnxruntime=onnxruntime)  # fmt: skip


DOWNWARD_THROUGH = [
    before_conv("Identity", "u = Identity (t)", "Identity Conv"),
    before_conv("Dropout", "u = Dropout (t)", "Dropout Conv"),
    before_conv("Reshape", "u = Reshape (t, s)", "Reshape Conv", weights="int64[4] s = {2,3,11,8}"),
    before_conv("Flatten, then Gemm", "p = GlobalAveragePool (t)\n u = Flatten (p)", "GlobalAveragePool Flatten Gemm",
                weights="float[3,4] v", into="y = Gemm (u, v)"),
    before_conv("Flatten of an image, then Gemm", "p = AveragePool <kernel_shape=[4,5], strides=[4,5]> (t)\n"
                "u = Flatten (p)", "AveragePool Flatten Gemm", weights="float[12,4] v, float[4] c",
                into="y = Gemm (u, v, c)"),
    before_conv("Squeeze and Unsqueeze", "p = Unsqueeze (t, a)\n q = Squeeze (p, a)\n u = Identity (q)",
                "Unsqueeze Squeeze Identity Conv", weights="int64[1] a = {2}"),
    before_conv("Transpose, then MatMul", "u = Transpose <perm=[0,2,3,1]> (t)", "Transpose MatMul Add Relu",
                weights="float[3,4] v, float[4] c", into="m = MatMul (u, v)\n n = Add (m, c)\n y = Relu (n)"),
    before_conv("Tile of cells", "u = Tile (t, r)", "Tile Conv", weights="int64[4] r = {1,1,2,3}"),
    before_conv("Tile of channels", "u = Tile (t, r)", "Tile Conv", weights="int64[4] r = {1,2,1,1}", channels=6),
    before_conv("Expand", "p = GlobalAveragePool (t)\n u = Expand (p, s)", "GlobalAveragePool Expand Conv",
                weights="int64[4] s = {1,1,4,6}"),
    before_conv("Slice of cells", "u = Slice (t, s, e, a)", "Slice Conv",
                weights="int64[2] s = {1,-4}, int64[2] e = {5,-1}, int64[2] a = {2,3}"),
    before_conv("Slice of channels", "u = Slice (t, s, e, a)", "Slice Conv", channels=2,
                weights="int64[1] s = {1}, int64[1] e = {9}, int64[1] a = {1}"),
    before_conv("Split of channels", "p, q = Split <axis=1> (t, s)", "Split Conv Conv Concat",
                weights="int64[2] s = {1,2}, float[4,2,1,1] v", channels=1,
                into="f = Conv (p, w, b)\n g = Conv (q, v)\n y = Concat <axis=1> (f, g)"),
    before_conv("Concat with a raw branch, downward", "z2 = Relu (x)\n u = Concat <axis=1> (t, z2)",
                "Relu Concat Conv", channels=6),
    before_conv("Concat of the same norm twice", "u = Concat <axis=1> (t, t)", "Concat Conv", channels=6),
    before_conv("Gather of rows", "u = Gather <axis=2> (t, i)", "Gather Conv", weights="int64[3] i = {4,0,4}"),
    before_conv("Gather of channels", "u = Gather <axis=1> (t, i)", "Gather Conv", channels=4,
                weights="int64[4] i = {2,-3,1,1}"),
    Case("patches by SpaceToDepth", "float[N,3,8,12] x", f"float[5,12,1,1] w, float[5] b, {bn(3)}",
         PRE + "u = SpaceToDepth <blocksize=2> (t)\n y = Conv (u, w, b)", "SpaceToDepth Conv"),
    Case("patches by Reshape and Transpose", "float[2,3,8,12] x",
         f"float[12,5] w, float[5] b, {bn(3)}, int64[6] s = {{2,3,4,2,6,2}}, int64[3] r = {{2,24,12}}",
         PRE + "p = Reshape (t, s)\n q = Transpose <perm=[0,2,4,3,5,1]> (p)\n u = Reshape (q, r)\n m = MatMul (u, w)\n"
         "n = Add (m, b)\n y = Relu (n)", "Reshape Transpose Reshape MatMul Add Relu"),
    Case("DepthToSpace, equal over the phases", "float[N,8,H,W] x",
         "float[5,2,1,1] w, float[8,1,1] s = {1,2,1,2,1,2,1,2}",
         "t = Mul (x, s)\n u = DepthToSpace <blocksize=2> (t)\n y = Conv (u, w)", "DepthToSpace Conv"),
    Case("DepthToSpace CRD, equal over the phases", "float[N,8,H,W] x",
         "float[5,2,1,1] w, float[8,1,1] s = {1,1,1,1,2,2,2,2}",
         't = Mul (x, s)\n u = DepthToSpace <blocksize=2, mode="CRD"> (t)\n y = Conv (u, w)', "DepthToSpace Conv"),
    before_conv("AveragePool", "u = AveragePool <kernel_shape=[2,3], strides=[2,1]> (t)", "AveragePool Conv"),
    before_conv("AveragePool with ceil_mode", "u = AveragePool <kernel_shape=[2,3], strides=[2,2], ceil_mode=1> (t)",
                "AveragePool Conv"),
    before_conv("GlobalAveragePool", "u = GlobalAveragePool (t)", "GlobalAveragePool Conv"),
    before_conv("ReduceMean without keepdims, then Gemm", "u = ReduceMean <keepdims=0> (t, a)", "ReduceMean Gemm",
                weights="int64[2] a = {2,3}, float[4,3] v, float[4] c", into="y = Gemm <transB=1> (u, v, c)"),
    before_conv("Resize", 'u = Resize <mode="linear"> (t, , s)', "Resize Conv", weights="float[4] s = {1,1,2,3}"),
    before_conv("Pad reflect", 'u = Pad <mode="reflect"> (t, p)', "Pad Conv", weights="int64[8] p = {0,0,1,2,0,0,3,1}"),
    before_conv("Pad negative", "u = Pad (t, p)", "Pad Conv", weights="int64[8] p = {0,0,-1,-2,0,0,-1,0}"),
    before_conv("Sum of one norm twice", "u = Add (t, t)", "Add Conv"),
    Case("MaxPool under a positive scale", IMAGE, f"{CONV}, float[3] posgamma, {bn(3)}",
         "t = BatchNormalization (x, posgamma, beta, mean, var)\n u = MaxPool <kernel_shape=[2,2], pads=[1,0,1,1]> (t)\n"
         "y = Conv (u, w, b)", "MaxPool Conv"),
    Case("Relu under a positive scale", IMAGE, f"{CONV}, float[3,1,1] pos", "t = Mul (x, pos)\n u = Relu (t)\n"
         "y = Conv <pads=[1,1,1,1]> (u, w, b)", "Relu Conv"),
    Case("LeakyRelu under a positive scale", IMAGE, f"{CONV}, float[3,1,1] pos",
         "t = Mul (x, pos)\n u = LeakyRelu (t)\n y = Conv (u, w, b)", "LeakyRelu Conv"),
]  # fmt: skip

# -- sources of maps -------------------------------------------------------------------------------


def source(name: str, body: str, weights: str, becomes: str = "Conv", **more: object) -> Case:
    """A convolution to 5 channels, then a map from ``c`` to ``y``."""
    return Case(name, "float[2,3,8,11] x", f"{CONV}, {weights}", "c = Conv (x, w, b)\n" + body, becomes, **more)  # type: ignore[arg-type]


SOURCES = [
    source("BatchNormalization with an epsilon of its own",
           "y = BatchNormalization <epsilon=0.125> (c, gamma, beta, mean, var)", bn(5)),
    source("Mul by a scalar", "y = Mul (c, s)", "float s = {-2.5}"),
    source("Mul by [1]", "y = Mul (s, c)", "float[1] s"),
    source("Mul per channel", "y = Mul (c, s)", "float[5,1,1] s"),
    source("Mul per channel, full rank", "y = Mul (c, s)", "float[1,5,1,1] s"),
    source("Mul by zero in a channel", "y = Mul (c, s)", "float[5,1,1] s = {1.5, 0.0, -2.0, 0.5, 3.0}"),
    source("Add per channel", "y = Add (s, c)", "float[5,1,1] s"),
    source("Sub of a constant", "y = Sub (c, s)", "float[5,1,1] s"),
    source("Sub from a constant", "y = Sub (s, c)", "float[5,1,1] s"),
    source("Div by a constant", "y = Div (c, pos)", "float[5,1,1] pos"),
    source("Neg", "y = Neg (c)", "float s"),
    source("BatchNormalization decomposed",
           "e = Add (var, eps)\n d = Sqrt (e)\n m = Sub (c, mean)\n n = Div (m, d)\n g = Mul (n, gamma)\n"
           "y = Add (g, beta)", "float[1,5,1,1] gamma, float[1,5,1,1] beta, float[1,5,1,1] mean, float[1,5,1,1] var, "
           "float eps = {1e-5}"),
    source("BatchNormalization decomposed with Reciprocal, other order",
           "e = Add (eps, var)\n d = Sqrt (e)\n r = Reciprocal (d)\n s = Mul (r, gamma)\n m = Sub (c, mean)\n"
           "g = Mul (s, m)\n y = Add (beta, g)", "float[5,1,1] gamma, float[5,1,1] beta, float[5,1,1] mean, "
           "float[5,1,1] var, float eps = {1e-5}"),
    source("FrozenBatchNorm",
           "g = Reshape (gamma, to)\n v = Reshape (var, to)\n m = Reshape (mean, to)\n b2 = Reshape (beta, to)\n"
           "e = Add (v, eps)\n d = Sqrt (e)\n r = Reciprocal (d)\n s = Mul (g, r)\n ms = Mul (m, s)\n"
           "t = Sub (b2, ms)\n p = Mul (c, s)\n y = Add (p, t)",
           f"{bn(5)}, int64[4] to = {{1,5,1,1}}, float eps = {{1e-5}}"),
    source("FrozenBatchNorm with rsqrt as Pow",
           "e = Add (var, eps)\n r = Pow (e, h)\n s = Mul (gamma, r)\n ms = Mul (mean, s)\n t = Sub (beta, ms)\n"
           "p = Mul (c, s)\n y = Add (p, t)", "float[5,1,1] gamma, float[5,1,1] beta, float[5,1,1] mean, "
           "float[5,1,1] var, float h = {-0.5}, float eps = {1e-5}"),
    source("LayerScale", "y = Mul (c, s)", "float[5,1,1] s"),
    Case("input normalization into a conv", IMAGE, f"{CONV}, float[3,1,1] mean, float[3,1,1] pos",
         "m = Sub (x, mean)\n t = Div (m, pos)\n y = Conv (t, w, b)", "Conv"),
    Case("input normalization from pixels", "uint8[2,8,11,3] i", f"{CONV}, float s = {{255.0}}, float[3] mean, "
         "float[3] pos", "f = Cast <to=1> (i)\n u = Div (f, s)\n m = Sub (u, mean)\n d = Div (m, pos)\n"
         "t = Transpose <perm=[0,3,1,2]> (d)\n y = Conv (t, w, b)", "Cast Transpose Conv"),
    Case("input normalization into a padded conv: one Add stays", IMAGE, f"{CONV}, float[3,1,1] mean, float[3,1,1] pos",
         "m = Sub (x, mean)\n t = Div (m, pos)\n y = Conv <pads=[1,1,1,1]> (t, w, b)", "Add Conv"),
    Case("InstanceNorm with running statistics, as torch exports it", "float[2,3,8,11] x",
         f"{CONV}, {bn(5)}, int64[4] to = {{1,10,6,9}}, int64[4] back = {{2,5,6,9}}, int64[1] r = {{2}}",
         "c = Conv (x, w, b)\n q = Reshape (c, to)\n g = Tile (gamma, r)\n b2 = Tile (beta, r)\n m = Tile (mean, r)\n"
         "v = Tile (var, r)\n n = BatchNormalization (q, g, b2, m, v)\n y = Reshape (n, back)",
         "Conv Reshape Reshape"),
    Case("statistics in float64 under a float32 tensor", IMAGE, f"{CONV}, float[5] gamma, float[5] beta, "
         "double[5] mean, double[5] var", "c = Conv (x, w, b)\n" + norm("c", "y"), "Conv"),
]  # fmt: skip

# -- maps meeting maps -----------------------------------------------------------------------------

COMPOSED = [
    Case("three norms in a row, nothing to go to", IMAGE, f"{bn(3)}, {bn(3, '2')}, {bn(3, '3')}",
         "r = Relu (x)\n" + norm("r", "a") + norm("a", "c", "2") + norm("c", "d", "3") + "y = Relu (d)",
         "Relu BatchNormalization Relu"),
    Case("Mul and Add become one norm", IMAGE, "float[3,1,1] s, float[3,1,1] a",
         "r = Relu (x)\n m = Mul (r, s)\n n = Add (m, a)\n y = Relu (n)", "Relu BatchNormalization Relu"),
    Case("Sub, Div, Mul, Add become one norm", IMAGE,
         "float[3,1,1] mean, float[3,1,1] pos, float[3,1,1] s, float[3,1,1] a",
         "r = Relu (x)\n p = Sub (r, mean)\n q = Div (p, pos)\n m = Mul (q, s)\n n = Add (m, a)\n y = Relu (n)",
         "Relu BatchNormalization Relu"),
    Case("two scales become one", "float[N,T,3] x", "float[3] s, float k = {0.5}",
         "r = Relu (x)\n m = Mul (r, s)\n n = Mul (m, k)\n y = Relu (n)", "Relu Mul Relu"),
    Case("two shifts become one", "float[N,T,3] x", "float[3] s, float[3] k",
         "r = Relu (x)\n m = Add (r, s)\n n = Sub (m, k)\n y = Relu (n)", "Relu Add Relu"),
    Case("Neg twice is nothing", IMAGE, "float s", "r = Relu (x)\n m = Neg (r)\n n = Neg (m)\n y = Relu (n)", "Relu Relu"),
    Case("a norm through a Transpose joins a scale", IMAGE, f"{bn(3)}, float[3] k",
         "r = Relu (x)\n" + norm("r", "n") + "t = Transpose <perm=[0,2,3,1]> (n)\n m = Mul (t, k)\n"
         "u = Transpose <perm=[0,3,1,2]> (m)\n" + "v = BatchNormalization (u, gamma, gamma, mean, var)\n y = Relu (v)",
         "Relu Transpose Transpose BatchNormalization Relu"),
    Case("norm, conv, norm", IMAGE, f"{CONV}, {bn(3)}, {bn(5, '2')}",
         norm("x", "t") + "c = Conv (t, w, b)\n" + norm("c", "y", "2"), "Conv"),
    Case("norm with a negative scale, relu, conv, norm, relu", IMAGE,
         f"{CONV}, float[3] signs = {{0.5, -2.0, 1.5}}, float[3] beta, float[3] mean, float[3] var, {bn(5, '2')}",
         "t = BatchNormalization (x, signs, beta, mean, var)\n" + "r = Relu (t)\n c = Conv (r, w, b)\n" + norm("c", "d", "2") + "y = Relu (d)",
         "BatchNormalization Relu Conv Relu"),
    Case("conv, norm, conv, norm", IMAGE, f"{CONV}, float[7,5,3,3] v, {bn(5)}, {bn(7, '2')}",
         "c = Conv (x, w, b)\n" + norm("c", "n") + "d = Conv <pads=[1,1,1,1]> (n, v)\n" + norm("d", "y", "2"),
         "Conv Conv"),
    Case("a norm with identity parameters", IMAGE, "float[3] one = {1,1,1}, float[3] zero = {0,0,0}",
         "r = Relu (x)\n n = BatchNormalization <epsilon=0.0> (r, one, zero, zero, one)\n y = Relu (n)", "Relu Relu"),
]  # fmt: skip

# -- parallel branches -----------------------------------------------------------------------------

REPVGG = [
    Case("RepVGG: 3x3, 1x1 and identity", IMAGE,
         f"float[3,3,3,3] w, float[3,3,1,1] v, {bn(3)}, {bn(3, '1')}, {bn(3, '2')}",
         "c = Conv <pads=[1,1,1,1]> (x, w)\n d = Conv (x, v)\n" + norm("c", "p") + norm("d", "q", "1")
         + norm("x", "r", "2") + "s = Add (p, q)\n y = Add (s, r)", "Conv"),
    Case("RepVGG with biases, then Relu", IMAGE,
         f"float[3,3,3,3] w, float[3] b, float[3,3,1,1] v, float[3] b2, {bn(3)}, {bn(3, '1')}, {bn(3, '2')}",
         "c = Conv <pads=[1,1,1,1]> (x, w, b)\n d = Conv <pads=[0,0,0,0]> (x, v, b2)\n" + norm("c", "p")
         + norm("d", "q", "1") + norm("x", "r", "2") + "s = Add (r, q)\n t = Add (p, s)\n y = Relu (t)", "Conv Relu"),
    Case("RepVGG with groups", "float[N,6,H,W] x",
         f"float[6,2,3,3] w, float[6,2,1,1] v, {bn(6)}, {bn(6, '1')}, {bn(6, '2')}",
         "c = Conv <group=3, pads=[1,1,1,1]> (x, w)\n d = Conv <group=3> (x, v)\n" + norm("c", "p")
         + norm("d", "q", "1") + norm("x", "r", "2") + "y = Sum (p, q, r)", "Conv"),
    Case("RepVGG depthwise, 5x5 with dilation", "float[N,6,H,W] x",
         f"float[6,1,5,5] w, float[6,1,3,3] v, {bn(6)}, {bn(6, '1')}, {bn(6, '2')}",
         "c = Conv <group=6, pads=[4,4,4,4], dilations=[2,2]> (x, w)\n"
         "d = Conv <group=6, pads=[2,2,2,2], dilations=[2,2]> (x, v)\n" + norm("c", "p")
         + norm("d", "q", "1") + norm("x", "r", "2") + "s = Add (p, q)\n y = Add (s, r)", "Conv"),
    Case("RepVGG of a downsampling block: no identity", IMAGE,
         f"float[5,3,3,3] w, float[5,3,1,1] v, {bn(5)}, {bn(5, '1')}",
         "c = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w)\n d = Conv <strides=[2,2]> (x, v)\n" + norm("c", "p")
         + norm("d", "q", "1") + "s = Add (p, q)\n y = Relu (s)", "Conv Relu"),
    Case("RepVGG in one dimension", "float[N,3,L] x",
         f"float[3,3,3] w, float[3,3,1] v, {bn(3)}, {bn(3, '1')}, {bn(3, '2')}",
         "c = Conv <pads=[1,1]> (x, w)\n d = Conv (x, v)\n" + norm("c", "p") + norm("d", "q", "1")
         + norm("x", "r", "2") + "s = Add (p, q)\n y = Add (s, r)", "Conv"),
]  # fmt: skip

# -- refusals --------------------------------------------------------------------------------------


def refused(name: str, body: str, reason: str, *, weights: str = "", channels: int = 5, inputs: str = "",
            outputs: str = "float[] y", opset: int = OPSET, ir_version: int = 10) -> Case:  # fmt: skip
    """A convolution to 5 channels, then ``body`` from ``c`` to ``y``, which must stay as it is."""
    extra = f", {weights}" if weights else ""
    data = "float[2,3,8,11] x" + (f", {inputs}" if inputs else "")
    return Case(name, data, f"{CONV}, {bn(channels)}{extra}", "c = Conv (x, w, b)\n" + body, reason=reason,
                outputs=outputs, opset=opset, ir_version=ir_version)  # fmt: skip


def between(name: str, node: str, reason: str, **more: object) -> Case:
    """``node`` from ``c`` to ``t`` stands between a convolution and a norm."""
    return refused(name, f"{node}\n" + norm("t", "y"), reason, **more)  # type: ignore[arg-type]


def around(name: str, node: str, reason: str, *, weights: str = "", channels: int = 3, **more: object) -> Case:
    """``node`` from ``t`` to ``u`` stands between a norm on the input and a convolution."""
    extra = f", {weights}" if weights else ""
    return Case(name, "float[2,3,8,11] x", f"float[5,{channels},1,1] w, {bn(3)}{extra}",
                PRE + f"{node}\ny = Conv (u, w)", reason=reason, **more)  # type: ignore[arg-type]  # fmt: skip


NOT_LINEAR = [
    *[
        between(f"{op} in between", f"t = {op} (c)", f"no affine map passes this operator ({op}", opset=opset)
        for op, opset in [
            ("Sigmoid", 21), ("Tanh", 21), ("Softmax", 21), ("LogSoftmax", 21), ("Softplus", 21), ("Gelu", 21),
            ("Erf", 21), ("Exp", 21), ("HardSwish", 21), ("HardSigmoid", 21), ("Mish", 21), ("Elu", 21), ("Selu", 21),
            ("Celu", 21), ("Abs", 21), ("Floor", 21), ("Round", 21), ("Sign", 21), ("Softsign", 21), ("Swish", 24),
        ]
    ],
    between("Clip in between", "t = Clip (c, lo, hi)", "no affine map passes this operator (Clip",
            weights="float lo = {0.0}, float hi = {6.0}"),
    between("PRelu in between", "t = PRelu (c, p)", "no affine map passes this operator (PRelu", weights="float[5,1,1] p"),
    between("LpPool in between", "t = LpPool <kernel_shape=[2,2]> (c)", "no affine map passes this operator (LpPool"),
    between("ReduceMax in between", "t = ReduceMax (c, a)", "no affine map passes this operator (ReduceMax",
            weights="int64[2] a = {2,3}"),
    between("Pow in between", "t = Pow (c, p)", "no affine map passes this operator (Pow", weights="float p = {2.0}"),
    between("Mul by itself in between", "t = Mul (c, c)", "no affine map passes this operator (Mul"),
    between("gate in between", "s = Sigmoid (c)\n t = Mul (c, s)", "no affine map passes this operator (Mul"),
    between("GELU decomposed in between",
            "d = Div (c, k)\n e = Erf (d)\n f = Add (e, one)\n t = Mul (c, f)",
            "no affine map passes this operator (Mul", weights="float k = {1.41421}, float one = {1.0}"),
    refused("Relu in between, with a norm of mixed signs",
            "t = Relu (c)\n y = BatchNormalization (t, signs, beta, mean, var)",
            "a scale that is not positive would turn its sides (Relu", weights="float[5] signs = {1,2,-1,3,4}"),
    refused("Relu in between, with a negative scale", "t = Relu (c)\n y = Mul (t, s)",
            "a scale that is not positive would turn its sides (Relu", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("Relu in between, with a scale of zero", "t = Relu (c)\n y = Mul (t, s)",
            "a scale that is not positive would turn its sides (Relu", weights="float[5,1,1] s = {1,2,0,3,4}"),
    refused("Relu behind a norm, with a large shift", "t = Relu (c)\n u = Add (t, s)\n y = Relu (u)",
            "a shift would move its kink (Relu", weights="float[5,1,1] s = {1000,1000,1000,1000,1000}"),
    refused("LeakyRelu in between, with a negative scale", "t = LeakyRelu (c)\n y = Mul (t, s)",
            "a scale that is not positive would turn its sides (LeakyRelu", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("MaxPool in between, with a negative scale", "t = MaxPool <kernel_shape=[2,2]> (c)\n y = Mul (t, s)",
            "a negative scale turns the largest into the smallest (MaxPool", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("MaxPool with Indices, with a scale of zero",
            "t, i = MaxPool <kernel_shape=[2,2]> (c)\n y = Mul (t, s)", "a scale of 0 makes all indices tie (MaxPool",
            weights="float[5,1,1] s = {1,2,0,3,4}", outputs="float[] y, int64[] i"),
    refused("GlobalMaxPool in between, with a negative scale", "t = GlobalMaxPool (c)\n y = Mul (t, s)",
            "a negative scale turns the largest into the smallest (GlobalMaxPool",
            weights="float[5,1,1] s = {1,2,-1,3,4}"),
    between("Q and DQ in between", "q = QuantizeLinear (c, k, z)\n t = DequantizeLinear (q, k, z)",
            "no affine map passes this operator (DequantizeLinear", weights="float k = {0.5}, int8 z = {3}"),
    refused("Concat with a raw branch", "r = Sigmoid (c)\n t = Concat <axis=1> (c, r)\n" + norm("t", "n")
            + "y = Relu (n)",
            "no affine map passes this operator (Sigmoid", channels=10),
    refused("DenseNet: Concat, norm, Relu", "r = Relu (c)\n t = Concat <axis=1> (x2, r)\n" + norm("t", "n")
            + "y = Relu (n)", "is an input of the model", channels=7, inputs="float[2,2,6,9] x2"),
    refused("InstanceNormalization on batch data", "y = InstanceNormalization (c, gamma, beta)",
            "divides by statistics of its own input"),
    refused("GroupNormalization on batch data", "y = GroupNormalization <num_groups=5> (c, gamma, beta)",
            "divides by statistics of its own input", outputs="float[2,5,6,9] y"),
]  # fmt: skip

NOT_CONSTANT = [
    refused("training_mode=1", "y, m2, v2 = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var)",
            "training mode (training_mode=1)", outputs="float[] y, float[] m2, float[] v2"),
    refused("three outputs at opset 9",
            "y, m2, v2, sm, sv = BatchNormalization (c, gamma, beta, mean, var)", "training mode", opset=9),
    refused("statistics of every cell, spatial=0", "y = BatchNormalization <spatial=0> (c, gamma, beta, mean, var)",
            "normalizes every cell", opset=7),
    refused("a gamma that is an input", "y = BatchNormalization (c, g, beta, mean, var)", "its scale is not constant",
            inputs="float[5] g"),
    refused("a mean that is computed", "p = ReduceMean <keepdims=0> (c, a)\n"
            " y = BatchNormalization (c, gamma, beta, p, var)", "its mean is not constant",
            weights="int64[3] a = {0,2,3}"),
    refused("Mul by an input", "y = Mul (c, s)", "", inputs="float[5,1,1] s"),
    Case("a weight that is an input", "float[2,3,8,11] x, float[5,3,3,3] w", bn(5),
         "c = Conv (x, w)\n" + norm("c", "y"), reason="its weight is not constant (Conv"),
    Case("a bias that is an input", "float[2,3,8,11] x, float[5] b", f"float[5,3,3,3] w, {bn(5)}",
         "c = Conv (x, w, b)\n" + norm("c", "y"), reason="its bias is not constant (Conv"),
    Case("a Gemm with C from an input", "float[N,3] x, float[5] b", f"float[3,5] w, {bn(5)}",
         "c = Gemm (x, w, b)\n" + norm("c", "y"), reason="its C is not constant (Gemm"),
    Case("a MatMul of two inputs", "float[N,T,3] x, float[N,3,5] z", "float[5] s", "c = MatMul (x, z)\n y = Mul (c, s)",
         reason="neither operand is constant (MatMul"),
    refused("a value with another reader", norm("c", "y") + "y2 = Relu (c)", "c has other readers",
            outputs="float[] y, float[] y2"),
    refused("a value that is an output", norm("c", "y"), "c is an output of the model",
            outputs="float[] y, float[2,5,6,9] c"),
    refused("a norm of an output, downward", norm("c", "y") + "z = Conv (y, v)", "y is an output of the model",
            weights="float[4,5,1,1] v", outputs="float[] y, float[] z, float[2,5,6,9] c"),
    Case("a norm with one reader that cannot", IMAGE, f"float[5,3,3,3] w, {bn(3)}",
         PRE + "y = Conv (t, w)\n y2 = Sigmoid (t)", reason="no affine map passes this operator (Sigmoid",
         outputs="float[] y, float[] y2"),
    refused("a division of a constant", "y = Div (s, c)", "", weights="float[5,1,1] s"),
    refused("a division by zero", "y = Div (c, s)", "not finite", weights="float[5,1,1] s = {1,2,0,3,4}"),
    refused("a negative variance", "y = BatchNormalization (c, gamma, beta, mean, v)",
            "its running variance plus epsilon is not positive", weights="float[5] v = {1,2,-1,3,4}"),
]  # fmt: skip

NOT_PER_CHANNEL = [
    refused("a constant per column", "y = Mul (c, s)", "varies over other axes than the channels (Conv",
            weights="float[9] s"),
    Case("a constant [1,1,1,W] with W == C", "float[2,3,7,7] x", "float[5,3,3,3] w, float[1,1,1,5] s",
         "c = Conv (x, w)\n y = Mul (c, s)", reason="varies over other axes than the channels (Conv"),
    Case("a constant per token", "float[2,7,3] x", "float[3,7] w, float[1,7,1] s", "c = MatMul (x, w)\n y = Mul (c, s)",
         reason="varies over an axis that the weight does not have (MatMul"),
    Case("a norm over tokens, T == C", "float[2,5,3] x", f"float[3,5] w, {bn(5)}", "c = MatMul (x, w)\n" + norm("c", "y"),
         reason="varies over an axis that the weight does not have (MatMul"),
    Case("a constant per row of a Gemm", "float[7,3] x", "float[3,5] w, float[7,1] s", "c = Gemm (x, w)\n y = Mul (c, s)",
         reason="varies over other axes than the channels (Gemm"),
    refused("a constant per sample", "y = Add (c, s)", "varies over other axes than the channels (Conv",
            weights="float[2,1,1,1] s"),
    Case("a constant that enlarges the batch", "float[1,3,8,11] x", f"{CONV}, float[4,1,1,1] s",
         "c = Conv (x, w, b)\n y = Add (c, s)", reason="may enlarge"),
    Case("a constant that may enlarge an unknown batch", "float[N,3,8,11] x", f"{CONV}, float[2,1,1,1] s",
         "c = Conv (x, w, b)\n y = Add (c, s)", reason="may enlarge"),
    Case("a constant that enlarges the channels", "float[2,3,8,11] x", "float[1,3,3,3] w, float[5,1,1] s",
         "c = Conv (x, w)\n y = Mul (c, s)", reason="may enlarge"),
    refused("a constant that adds an axis", "y = Mul (c, s)", "may enlarge", weights="float[1,2,5,1,1] s"),
    Case("a whole position embedding", "float[2,7,3] x", "float[3,5] w, float[1,7,5] p",
         "c = MatMul (x, w)\n d = Add (c, p)\n y = Relu (d)", reason=""),
    between("ReduceMean over the channels",
            "p = ReduceMean (c, a)\n t = Expand (p, s)", "repeated here (Expand",
            weights="int64[1] a = {1}, int64[4] s = {2,5,6,9}"),
    refused("ReduceMean over the axis of the map", "m = Mul (x2, s)\n t = ReduceMean (m, a)\n q = Relu (t)\n y = Add (c, q)",
            "mixed here (ReduceMean", weights="int64[1] a = {1}, float[5,1,1] s", inputs="float[2,5,1,1] x2"),
    between("Expand of one channel to many", "p = ReduceMean (c, a)\n t = Expand (p, s)", "repeated here (Expand",
            weights="int64[1] a = {1}, int64[4] s = {1,5,1,1}"),
    between("Tile of channels that do not repeat", "t = Tile (c, r)", "the map does not repeat as the tiles do (Tile",
            weights="int64[4] r = {1,2,1,1}", channels=10),
    between("Reshape that mixes the channels", "t = Reshape (c, s)", "varies over other axes than the channels (Conv",
            weights="int64[3] s = {2,27,10}", channels=27),
    Case("Reshape with unknown sizes", IMAGE, f"{CONV}, {bn(9)}, int64[3] s = {{0,9,-1}}",
         "c = Conv (x, w, b)\n t = Reshape (c, s)\n" + norm("t", "y"),
         reason="it mixes the axis of the map with one of unknown size (Reshape"),
    between("SpaceToDepth, different over the phases", "t = SpaceToDepth <blocksize=3> (c)",
            "the map differs between the phases that become one channel (SpaceToDepth", channels=45),
    Case("DepthToSpace downward, different over the phases", "float[2,8,5,7] x", f"float[3,2,1,1] w, {bn(8)}",
         PRE + "u = DepthToSpace <blocksize=2> (t)\n y = Conv (u, w)",
         reason="the map differs between the phases that become one channel (DepthToSpace"),
    refused("Pad with zeros under a shift", "t = Pad (c, p)\n u = Add (t, s)\n y = Relu (u)",
            "the padded constant would have to differ from channel to channel (Pad",
            weights="int64[8] p = {0,0,1,1,0,0,1,1}, float[5,1,1] s"),
    refused("Pad with an unknown constant", "t = Pad (c, p, k)\n u = Mul (t, s)\n y = Relu (u)",
            "its constant is not known (Pad", weights="int64[8] p = {0,0,1,1,0,0,1,1}, float[5,1,1] s",
            inputs="float k"),
    refused("Pad of the channels", "t = Pad (c, p)\n u = Mul (t, s)\n y = Relu (u)",
            "mixed here (Pad", weights="int64[8] p = {0,1,0,0,0,1,0,0}, float[7,1,1] s"),
    refused("Resize of a crop with an extrapolation value",
            't = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (c, roi, , z)\n'
            + norm("t", "y"), "cells outside the crop hold the extrapolation value (Resize",
            weights="float[8] roi = {0,0,0,0,1,1,1,1}, int64[4] z = {2,5,13,10}"),
    between("Resize of the channels", 't = Resize <mode="nearest"> (c, , s)', "varies over a resized axis (Resize",
            weights="float[4] s = {1,2,1,1}", channels=10),
    between("Gather of channels to places with different norms", "t = Gather <axis=1> (c, i)",
            "one element is gathered to places with different maps (Gather", weights="int64[3] i = {1,1,2}", channels=3),
    between("Gather of channels by an input", "t = Gather <axis=1> (c, i)", "the indices are not a constant vector (Gather",
            inputs="int64[3] i", channels=3),
    Case("Gather from a table, a norm over the indices", "int64[7] i", "float[11,5] w, float[7,1] s",
         "c = Gather (w, i)\n y = Mul (c, s)", reason="(Gather"),
    between("Slice of channels from an unknown start", "t = Slice (c, s, e, a)", "(Slice", channels=3,
            weights="int64[1] e = {9}, int64[1] a = {1}", inputs="int64[1] s"),
    between("Dropout in training mode", "t = Dropout (c, r, tr)", "it is in training mode (Dropout",
            weights="float r = {0.5}, bool tr = {1}"),
    between("Dropout with its mask used", "t, k = Dropout (c)", "its mask is used (Dropout",
            outputs="float[] y, bool[] k"),
    between("Add of a raw branch", "t = Add (c, z)", "z is an input of the model", inputs="float[2,5,6,9] z"),
    between("Add of a branch without channels", "t = Add (c, z)", "a branch is broadcast along the axis of the map (Add",
            inputs="float[2,1,6,9] z"),
    around("a norm, Sigmoid, conv", "u = Sigmoid (t)", "no affine map passes this operator (Sigmoid"),
    around("Concat downward, Add of a raw branch", "z = Relu (x)\n u = Add (t, z)",
           "the branches of the sum do not have the same scale (Add"),
    Case("ConvTranspose strided: no shift to move", IMAGE, "float[3,5,2,2] w, float[3,1,1] a",
         "t = Add (x, a)\n y = ConvTranspose <strides=[2,2]> (t, w)",
         reason="not every output cell sees the whole kernel"),
    Case("padded conv: no shift to move", IMAGE, f"{CONV}, float[3,1,1] a",
         "t = Add (x, a)\n y = Conv <pads=[1,1,1,1]> (t, w, b)", reason="padded cells hold 0"),
    Case("padded conv by auto_pad: no shift to move", IMAGE, f"{CONV}, float[3,1,1] a",
         't = Add (x, a)\n y = Conv <auto_pad="SAME_LOWER"> (t, w, b)', reason="padded cells hold 0"),
    refused("averaged pads that count: no shift to move",
            "t = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\n y = Add (t, s)",
            "padded cells count as 0 in the average", weights="float[5,1,1] s"),
]  # fmt: skip
