"""Maps that travel downward: into every operator with weights, through every operator that lets them pass."""

from __future__ import annotations

from cases import CONV, IMAGE, Case
from harness import OPSET, bn, norm

# fmt: off
# A table: a case a row, as wide as the page.

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
    Case("conv depthwise", "float[N,5,H,W] x", f"float[10,1,3,3] w, {bn(5)}", PRE + "y = Conv <group=5> (t, w)",
         "Conv"),
    Case("two convs", IMAGE, f"{CONV}, float[7,3,1,1] v, {bn(3)}", PRE + "y = Conv (t, w, b)\n y2 = Conv (t, v)",
         "Conv Conv", outputs="float[] y, float[] y2"),
    Case("padded conv: one Add stays", IMAGE, f"{CONV}, {bn(3)}", PRE + "y = Conv <pads=[1,1,1,1]> (t, w, b)",
         "Add Conv"),
    Case("padded conv by auto_pad: one Add stays", IMAGE, f"{CONV}, {bn(3)}",
         PRE + 'y = Conv <auto_pad="SAME_UPPER"> (t, w, b)', "Add Conv"),
    Case("conv of one cell with auto_pad, which pads nothing", IMAGE, f"float[5,3,1,1] w, {bn(3)}",
         PRE + 'y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (t, w)', "Conv"),
    Case("conv of one cell with pads: one Add stays", IMAGE, f"float[5,3,1,1] w, {bn(3)}",
         PRE + "y = Conv <pads=[1,0,0,0]> (t, w)", "Add Conv"),
    Case("Flatten, a norm over all its columns, Gemm", "float[N,3,4,2] x", f"float[24,5] w, float[5] b, {bn(24)}",
         "f = Flatten (x)\n" + norm("f", "t") + "y = Gemm (t, w, b)", "Flatten Gemm"),
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
        Case(f"gemm {name}", inputs, f"{weights}, {bn(3)}", "t0 = Identity (x)\n" + norm("t0", "t")
             + f"y = Gemm {attributes} ({args})", "Gemm")
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
    Case("matmul right without a bias: one Add stays", "float[N,T,3] x", "float[3,5] w, float[3] s, float[3] a",
         "u = Mul (x, s)\n t = Add (u, a)\n m = MatMul (t, w)\n y = Relu (m)", "Add MatMul Relu"),
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
]

# -- downward, through everything ------------------------------------------------------------------


def before_conv(name: str, body: str, becomes: str, *, weights: str = "", channels: int = 3, opset: int = OPSET,
                onnxruntime: bool = True, into: str = "y = Conv (u, w, b)") -> Case:
    """A norm on an image, ``body`` from ``t`` to ``u``, and a convolution behind it."""
    extra = f", {weights}" if weights else ""
    return Case(name, "float[2,3,8,11] x", f"float[5,{channels},1,1] w, float[5] b, {bn(3)}{extra}",
                PRE + body + f"\n{into}", becomes, opset=opset, onnxruntime=onnxruntime)


DOWNWARD_THROUGH = [
    before_conv("Identity", "u = Identity (t)", "Conv"),
    before_conv("Dropout", "u = Dropout (t)", "Conv"),
    before_conv("Reshape", "u = Reshape (t, s)", "Reshape Conv", weights="int64[4] s = {2,3,11,8}"),
    before_conv("Flatten, then Gemm", "p = GlobalAveragePool (t)\n u = Flatten (p)", "GlobalAveragePool Flatten Gemm",
                weights="float[3,4] v", into="y = Gemm (u, v)"),
    before_conv("Flatten of an image, then Gemm", "p = AveragePool <kernel_shape=[4,5], strides=[4,5]> (t)\n"
                "u = Flatten (p)", "AveragePool Flatten Gemm", weights="float[12,4] v, float[4] c",
                into="y = Gemm (u, v, c)"),
    before_conv("Squeeze and Unsqueeze", "p = Unsqueeze (t, a)\n q = Squeeze (p, a)\n u = Identity (q)",
                "Unsqueeze Squeeze Conv", weights="int64[1] a = {2}"),
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
    Case("DepthToSpace of any number of channels", "float[N,H,T,W] x", "float k = {2}, float l = {3}",
         "t = Mul (x, k)\n u = DepthToSpace <blocksize=2> (t)\n y = Mul (u, l)", "DepthToSpace Mul"),
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
    *[Case(f"{op} under a scale for each sample", "float[4,3,8,11] x",
           "float[4,1,1,1] pos, int64[2] s = {4,-1}, float[5,4] w",
           f"t = Mul (x, pos)\n u = {op} {window} (t)\n v = Reshape (u, s)\n y = MatMul (w, v)", f"{op} Reshape MatMul")
      for op, window in [("GlobalAveragePool", ""), ("GlobalMaxPool", ""), ("AveragePool", "<kernel_shape=[3,3]>"),
                         ("MaxPool", "<kernel_shape=[3,3]>")]],
    before_conv("ReduceMean without keepdims, then Gemm", "u = ReduceMean <keepdims=0> (t, a)", "ReduceMean Gemm",
                weights="int64[2] a = {2,3}, float[4,3] v, float[4] c", into="y = Gemm <transB=1> (u, v, c)"),
    before_conv("Resize", 'u = Resize <mode="linear"> (t, , s)', "Resize Conv", weights="float[4] s = {1,1,2,3}"),
    before_conv("Pad reflect", 'u = Pad <mode="reflect"> (t, p)', "Pad Conv", weights="int64[8] p = {0,0,1,2,0,0,3,1}"),
    before_conv("Pad negative", "u = Pad (t, p)", "Pad Conv", weights="int64[8] p = {0,0,-1,-2,0,0,-1,0}"),
    Case("Pad with zeros, a scale", IMAGE, f"{CONV}, float[3,1,1] s, int64[8] p = {{0,0,1,0,0,0,0,2}}",
         "t = Mul (x, s)\n u = Pad (t, p)\n y = Conv (u, w, b)", "Pad Conv"),
    Case("Pad with a constant that stays one scalar", IMAGE,
         f"{CONV}, float s = {{2.0}}, float a = {{0.5}}, int64[8] p = {{0,0,1,0,0,0,0,2}}, float k = {{1.5}}",
         "m = Mul (x, s)\n t = Add (m, a)\n u = Pad (t, p, k)\n y = Conv (u, w, b)", "Pad Conv"),
    Case("Pad with the value that the norm makes of zero", IMAGE,
         f"{CONV}, float s = {{2.0}}, float a = {{0.5}}, int64[8] p = {{0,0,1,1,0,0,1,1}}, float k = {{0.5}}",
         "m = Mul (x, s)\n t = Add (m, a)\n u = Pad (t, p, k)\n y = Conv (u, w, b)", "Pad Conv"),
    before_conv("Sum of one norm twice", "u = Add (t, t)", "Add Conv"),
    Case("MaxPool under a positive scale", IMAGE, f"{CONV}, float[3] posgamma, {bn(3)}",
         "t = BatchNormalization (x, posgamma, beta, mean, var)\n"
         "u = MaxPool <kernel_shape=[2,2], pads=[1,0,1,1]> (t)\n"
         "y = Conv (u, w, b)", "MaxPool Conv"),
    Case("Relu under a positive scale", IMAGE, f"{CONV}, float[3,1,1] pos", "t = Mul (x, pos)\n u = Relu (t)\n"
         "y = Conv <pads=[1,1,1,1]> (u, w, b)", "Relu Conv"),
    Case("LeakyRelu under a positive scale", IMAGE, f"{CONV}, float[3,1,1] pos",
         "t = Mul (x, pos)\n u = LeakyRelu (t)\n y = Conv (u, w, b)", "LeakyRelu Conv"),
    Case("PRelu under a positive scale", IMAGE, f"{CONV}, float[3,1,1] pos, float[3,1,1] p",
         "t = Mul (x, pos)\n u = PRelu (t, p)\n y = Conv <pads=[1,1,1,1]> (u, w, b)", "PRelu Conv"),
    Case("PRelu of tokens, with a slope that is an input", "float[N,T,3] x, float[3] p", "float[3,5] w, float[3] pos",
         "t = Mul (x, pos)\n u = PRelu (t, p)\n y = MatMul (u, w)", "PRelu MatMul"),
]
