"""What must stay as it is, and the reason that the ledger gives."""

from __future__ import annotations

from cases import CONV, IMAGE, Case
from cases_downward import PRE
from harness import OPSET, bn, norm

# fmt: off
# A table: a case a row, as wide as the page.

# -- refusals --------------------------------------------------------------------------------------


def refused(name: str, body: str, reason: str, *, weights: str = "", channels: int = 5, inputs: str = "",
            outputs: str = "float[] y", opset: int = OPSET, ir_version: int = 10) -> Case:
    """A convolution to 5 channels, then ``body`` from ``c`` to ``y``, which must stay as it is."""
    extra = f", {weights}" if weights else ""
    data = "float[2,3,8,11] x" + (f", {inputs}" if inputs else "")
    return Case(name, data, f"{CONV}, {bn(channels)}{extra}", "c = Conv (x, w, b)\n" + body, reason=reason,
                outputs=outputs, opset=opset, ir_version=ir_version)


def between(name: str, node: str, reason: str, **more: object) -> Case:
    """``node`` from ``c`` to ``t`` stands between a convolution and a norm."""
    return refused(name, f"{node}\n" + norm("t", "y"), reason, **more)  # type: ignore[arg-type]


def around(name: str, node: str, reason: str, *, weights: str = "", channels: int = 3, **more: object) -> Case:
    """``node`` from ``t`` to ``u`` stands between a norm on the input and a convolution."""
    extra = f", {weights}" if weights else ""
    return Case(name, "float[2,3,8,11] x", f"float[5,{channels},1,1] w, {bn(3)}{extra}",
                PRE + f"{node}\ny = Conv (u, w)", reason=reason, **more)  # type: ignore[arg-type]


NOT_LINEAR = [
    *[
        between(f"{op} in between", f"t = {op} (c)", "NF001", opset=opset)
        for op, opset in [
            ("Sigmoid", 21), ("Tanh", 21), ("Softmax", 21), ("LogSoftmax", 21), ("Softplus", 21), ("Gelu", 21),
            ("Erf", 21), ("Exp", 21), ("HardSwish", 21), ("HardSigmoid", 21), ("Mish", 21), ("Elu", 21), ("Selu", 21),
            ("Celu", 21), ("Abs", 21), ("Floor", 21), ("Round", 21), ("Sign", 21), ("Softsign", 21), ("Swish", 24),
        ]
    ],
    between("Clip in between", "t = Clip (c, lo, hi)", "NF001 (Clip",
            weights="float lo = {0.0}, float hi = {6.0}"),
    refused("PRelu behind a shift", "t = PRelu (c, p)\n u = Add (t, s)\n y = PRelu (u, p)",
            "NF203 (PRelu", weights="float[5,1,1] p, float[5,1,1] s"),
    refused("PRelu in between, with a negative scale", "t = PRelu (c, p)\n y = Mul (t, s)",
            "NF204 (PRelu",
            weights="float[5,1,1] p, float[5,1,1] s = {1,2,-1,3,4}"),
    refused("PRelu in between, with a scale of zero", "t = PRelu (c, p)\n y = Mul (t, s)",
            "NF204 (PRelu",
            weights="float[5,1,1] p, float[5,1,1] s = {1,2,0,3,4}"),
    refused("PRelu that reads one value twice", "t = PRelu (c, c)\n y = Mul (t, s)", "NF005",
            weights="float[5,1,1] s = {1,2,1,3,4}"),
    refused("a map on the slope of a PRelu", "m = Mul (x2, s)\n y = PRelu (c, m)",
            "NF011 (PRelu", weights="float[5,1,1] s",
            inputs="float[2,5,1,1] x2"),
    between("LpPool in between", "t = LpPool <kernel_shape=[2,2]> (c)", "NF001 (LpPool"),
    between("ReduceMax in between", "t = ReduceMax (c, a)", "NF001 (ReduceMax",
            weights="int64[2] a = {2,3}"),
    between("Pow in between", "t = Pow (c, p)", "NF001 (Pow", weights="float p = {2.0}"),
    between("Mul by itself in between", "t = Mul (c, c)", "NF207 (Mul"),
    refused("Mul by itself in between, a scale", "t = Mul (c, c)\n y = Mul (t, s)", "NF005 (Conv",
            weights="float[5,1,1] s"),
    between("gate in between", "s = Sigmoid (c)\n t = Mul (c, s)", "NF005 (Conv"),
    between("GELU decomposed in between",
            "d = Div (c, k)\n e = Erf (d)\n f = Add (e, one)\n t = Mul (c, f)",
            "NF207 (Mul",
            weights="float k = {1.41421}, float one = {1.0}"),
    refused("Relu in between, with a norm of mixed signs",
            "t = Relu (c)\n y = BatchNormalization (t, signs, beta, mean, var)",
            "NF204 (Relu", weights="float[5] signs = {1,2,-1,3,4}"),
    refused("Relu in between, with a negative scale", "t = Relu (c)\n y = Mul (t, s)",
            "NF204 (Relu", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("Relu in between, with a scale of zero", "t = Relu (c)\n y = Mul (t, s)",
            "NF204 (Relu", weights="float[5,1,1] s = {1,2,0,3,4}"),
    refused("Relu behind a norm, with a large shift", "t = Relu (c)\n u = Add (t, s)\n y = Relu (u)",
            "NF203 (Relu", weights="float[5,1,1] s = {1000,1000,1000,1000,1000}"),
    refused("LeakyRelu in between, with a negative scale", "t = LeakyRelu (c)\n y = Mul (t, s)",
            "NF204 (LeakyRelu", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("MaxPool in between, with a negative scale", "t = MaxPool <kernel_shape=[2,2]> (c)\n y = Mul (t, s)",
            "NF204 (MaxPool", weights="float[5,1,1] s = {1,2,-1,3,4}"),
    refused("MaxPool with Indices, with a scale of zero",
            "t, i = MaxPool <kernel_shape=[2,2]> (c)\n y = Mul (t, s)", "NF204 (MaxPool",
            weights="float[5,1,1] s = {1,2,0,3,4}", outputs="float[] y, int64[] i"),
    refused("GlobalMaxPool in between, with a negative scale", "t = GlobalMaxPool (c)\n y = Mul (t, s)",
            "NF204 (GlobalMaxPool",
            weights="float[5,1,1] s = {1,2,-1,3,4}"),
    between("Q and DQ in between", "q = QuantizeLinear (c, k, z)\n t = DequantizeLinear (q, k, z)",
            "NF122 (DequantizeLinear",
            weights="float k = {0.5}, int8 z = {3}"),
    refused("Concat with a raw branch", "r = Sigmoid (c)\n t = Concat <axis=1> (c, r)\n" + norm("t", "n")
            + "y = Relu (n)",
            "NF001 (Sigmoid", channels=10),
    refused("DenseNet: Concat, norm, Relu", "r = Relu (c)\n t = Concat <axis=1> (x2, r)\n" + norm("t", "n")
            + "y = Relu (n)", "NF003", channels=7, inputs="float[2,2,6,9] x2"),
    refused("InstanceNormalization on batch data", "y = InstanceNormalization (c, gamma, beta)",
            "NF302"),
    Case("InstanceNormalization behind a map", IMAGE, "float[3,1,1] k, float[3] s, float[3] q",
         "t = Mul (x, k)\n y = InstanceNormalization (t, s, q)",
         reason="NF302 (InstanceNormalization"),
    refused("InstanceNormalization with a scale that is an input",
            "t = InstanceNormalization (c, g, beta)\n y = Mul (t, s)",
            "NF101",
            weights="float[5,1,1] s", inputs="float[5] g"),
    refused("InstanceNormalization, then a map over cells",
            "t = InstanceNormalization (c, gamma, beta)\n y = Mul (t, s)",
            "NF015 (InstanceNormalization", weights="float[9] s"),
    refused("GroupNormalization on batch data", "y = GroupNormalization <num_groups=5> (c, gamma, beta)",
            "NF302", outputs="float[2,5,6,9] y"),
]

NOT_CONSTANT = [
    refused("training_mode=1", "y, m2, v2 = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var)",
            "NF301", outputs="float[] y, float[] m2, float[] v2"),
    refused("three outputs at opset 9",
            "y, m2, v2, sm, sv = BatchNormalization (c, gamma, beta, mean, var)", "NF301", opset=9),
    refused("statistics of every cell, spatial=0", "y = BatchNormalization <spatial=0> (c, gamma, beta, mean, var)",
            "NF303", opset=7),
    refused("a gamma that is an input", "y = BatchNormalization (c, g, beta, mean, var)", "NF101",
            inputs="float[5] g"),
    refused("a mean that is computed", "p = ReduceMean <keepdims=0> (c, a)\n"
            " y = BatchNormalization (c, gamma, beta, p, var)", "NF101",
            weights="int64[3] a = {0,2,3}"),
    refused("Mul by an input", "y = Mul (c, s)", "", inputs="float[5,1,1] s"),
    Case("a weight that is an input", "float[2,3,8,11] x, float[5,3,3,3] w", bn(5),
         "c = Conv (x, w)\n" + norm("c", "y"), reason="NF101 (Conv"),
    Case("a bias that is an input", "float[2,3,8,11] x, float[5] b", f"float[5,3,3,3] w, {bn(5)}",
         "c = Conv (x, w, b)\n" + norm("c", "y"), reason="NF101 (Conv"),
    Case("a Gemm with C from an input", "float[N,3] x, float[5] b", f"float[3,5] w, {bn(5)}",
         "c = Gemm (x, w, b)\n" + norm("c", "y"), reason="NF101 (Gemm"),
    Case("a MatMul of two inputs", "float[N,T,3] x, float[N,3,5] z", "float[5] s", "c = MatMul (x, z)\n y = Mul (c, s)",
         reason="NF003 (MatMul"),
    refused("a value with another reader", norm("c", "y") + "y2 = Relu (c)", "NF005",
            outputs="float[] y, float[] y2"),
    refused("a value that is an output", norm("c", "y"), "NF002",
            outputs="float[] y, float[2,5,6,9] c"),
    refused("a norm of an output, downward", norm("c", "y") + "z = Conv (y, v)", "NF002",
            weights="float[4,5,1,1] v", outputs="float[] y, float[] z, float[2,5,6,9] c"),
    Case("a norm with one reader that cannot", IMAGE, f"float[5,3,3,3] w, {bn(3)}",
         PRE + "y = Conv (t, w)\n y2 = Sigmoid (t)", reason="NF001 (Sigmoid",
         outputs="float[] y, float[] y2"),
    refused("a division of a constant", "y = Div (s, c)", "", weights="float[5,1,1] s"),
    refused("a division by zero", "y = Div (c, s)", "NF105", weights="float[5,1,1] s = {1,2,0,3,4}"),
    refused("a negative variance", "y = BatchNormalization (c, gamma, beta, mean, v)",
            "NF106", weights="float[5] v = {1,2,-1,3,4}"),
]

NOT_PER_CHANNEL = [
    refused("a constant per column", "y = Mul (c, s)", "NF015 (Conv",
            weights="float[9] s"),
    Case("a constant [1,1,1,W] with W == C", "float[2,3,7,7] x", "float[5,3,3,3] w, float[1,1,1,5] s",
         "c = Conv (x, w)\n y = Mul (c, s)", reason="NF015 (Conv"),
    Case("a constant per token", "float[2,7,3] x", "float[3,7] w, float[1,7,1] s", "c = MatMul (x, w)\n y = Mul (c, s)",
         reason="NF016 (MatMul"),
    Case("a norm over tokens, T == C", "float[2,5,3] x", f"float[3,5] w, {bn(5)}", "c = MatMul (x, w)\n" + norm("c",
         "y"),
         reason="NF016 (MatMul"),
    Case("a constant per row of a Gemm", "float[7,3] x", "float[3,5] w, float[7,1] s",
         "c = Gemm (x, w)\n y = Mul (c, s)",
         reason="NF015 (Gemm"),
    refused("a constant per sample", "y = Add (c, s)", "NF015 (Conv",
            weights="float[2,1,1,1] s"),
    Case("a constant that enlarges the batch", "float[1,3,8,11] x", f"{CONV}, float[4,1,1,1] s",
         "c = Conv (x, w, b)\n y = Add (c, s)", reason="NF104"),
    Case("a constant that may enlarge an unknown batch", "float[N,3,8,11] x", f"{CONV}, float[2,1,1,1] s",
         "c = Conv (x, w, b)\n y = Add (c, s)", reason="NF104"),
    Case("a constant that enlarges the channels", "float[2,3,8,11] x", "float[1,3,3,3] w, float[5,1,1] s",
         "c = Conv (x, w)\n y = Mul (c, s)", reason="NF104"),
    refused("a constant that adds an axis", "y = Mul (c, s)", "NF104", weights="float[1,2,5,1,1] s"),
    Case("a whole position embedding", "float[2,7,3] x", "float[3,5] w, float[1,7,5] p",
         "c = MatMul (x, w)\n d = Add (c, p)\n y = Relu (d)", reason=""),
    between("ReduceMean over the channels",
            "p = ReduceMean (c, a)\n t = Expand (p, s)", "NF015 (Expand",
            weights="int64[1] a = {1}, int64[4] s = {2,5,6,9}"),
    refused("ReduceMean over the axis of the map",
         "m = Mul (x2, s)\n t = ReduceMean (m, a)\n q = Relu (t)\n y = Add (c, q)",
            "NF015 (ReduceMean", weights="int64[1] a = {1}, float[5,1,1] s", inputs="float[2,5,1,1] x2"),
    between("Expand of one channel to many", "p = ReduceMean (c, a)\n t = Expand (p, s)", "NF015 (Expand",
            weights="int64[1] a = {1}, int64[4] s = {1,5,1,1}"),
    between("Tile of channels that do not repeat", "t = Tile (c, r)", "NF018 (Tile",
            weights="int64[4] r = {1,2,1,1}", channels=10),
    between("Flatten with a norm over channels and cells", "t = Flatten (c)",
            "NF015 (Conv", channels=270),
    between("Reshape that mixes the channels", "t = Reshape (c, s)", "NF015 (Conv",
            weights="int64[3] s = {2,27,10}", channels=27),
    Case("Reshape with unknown sizes", IMAGE, f"{CONV}, {bn(9)}, int64[3] s = {{0,9,-1}}",
         "c = Conv (x, w, b)\n t = Reshape (c, s)\n" + norm("t", "y"),
         reason="NF017 (Reshape"),
    between("SpaceToDepth, different over the phases", "t = SpaceToDepth <blocksize=3> (c)",
            "NF018 (SpaceToDepth", channels=45),
    Case("DepthToSpace downward, different over the phases", "float[2,8,5,7] x", f"float[3,2,1,1] w, {bn(8)}",
         PRE + "u = DepthToSpace <blocksize=2> (t)\n y = Conv (u, w)",
         reason="NF018 (DepthToSpace"),
    refused("Pad with zeros under a shift", "t = Pad (c, p)\n u = Add (t, s)\n y = Relu (u)",
            "NF202 (Pad",
            weights="int64[8] p = {0,0,1,1,0,0,1,1}, float[5,1,1] s"),
    refused("Pad with an unknown constant", "t = Pad (c, p, k)\n u = Mul (t, s)\n y = Relu (u)",
            "NF202 (Pad", weights="int64[8] p = {0,0,1,1,0,0,1,1}, float[5,1,1] s",
            inputs="float k"),
    refused("Pad of the channels", "t = Pad (c, p)\n u = Mul (t, s)\n y = Relu (u)",
            "NF015 (Pad", weights="int64[8] p = {0,1,0,0,0,1,0,0}, float[7,1,1] s"),
    refused("Resize of a crop with an extrapolation value",
            't = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (c, roi, , z)\n'
            + norm("t", "y"), "NF201 (Resize",
            weights="float[8] roi = {0,0,0,0,1,1,1,1}, int64[4] z = {2,5,13,10}"),
    between("Resize of the channels", 't = Resize <mode="nearest"> (c, , s)', "NF015 (Resize",
            weights="float[4] s = {1,2,1,1}", channels=10),
    between("Gather of channels to places with different norms", "t = Gather <axis=1> (c, i)",
            "NF018 (Gather", weights="int64[3] i = {1,1,2}",
            channels=3),
    between("Gather of channels by an input", "t = Gather <axis=1> (c, i)",
         "NF019 (Gather",
            inputs="int64[3] i", channels=3),
    Case("Gather from a table, a norm over the indices", "int64[7] i", "float[11,5] w, float[7,1] s",
         "c = Gather (w, i)\n y = Mul (c, s)", reason="NF019 (Gather"),
    between("Slice of channels from an unknown start", "t = Slice (c, s, e, a)", "NF101 (Slice", channels=3,
            weights="int64[1] e = {9}, int64[1] a = {1}", inputs="int64[1] s"),
    between("Dropout in training mode", "t = Dropout (c, r, tr)", "NF301 (Dropout",
            weights="float r = {0.5}, bool tr = {1}"),
    between("Dropout with its mask used", "t, k = Dropout (c)", "NF211 (Dropout",
            outputs="float[] y, bool[] k"),
    between("Add of a raw branch", "t = Add (c, z)", "NF003", inputs="float[2,5,6,9] z"),
    between("Add of a branch without channels", "t = Add (c, z)",
         "NF020 (Add",
            inputs="float[2,1,6,9] z"),
    around("a norm, Sigmoid, conv", "u = Sigmoid (t)", "NF001 (Sigmoid"),
    around("Concat downward, Add of a raw branch", "z = Relu (x)\n u = Add (t, z)",
           "NF206 (Add"),
    Case("ConvTranspose strided: no shift to move", IMAGE, "float[3,5,2,2] w, float[3,1,1] a",
         "t = Add (x, a)\n y = ConvTranspose <strides=[2,2]> (t, w)",
         reason="NF201"),
    Case("padded conv: no shift to move", IMAGE, f"{CONV}, float[3,1,1] a",
         "t = Add (x, a)\n y = Conv <pads=[1,1,1,1]> (t, w, b)", reason="NF201"),
    Case("padded conv by auto_pad: no shift to move", IMAGE, f"{CONV}, float[3,1,1] a",
         't = Add (x, a)\n y = Conv <auto_pad="SAME_LOWER"> (t, w, b)', reason="NF201"),
    refused("averaged pads that count: no shift to move",
            "t = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\n y = Add (t, s)",
            "NF201", weights="float[5,1,1] s"),
]


def apart(name: str, first: str, second: str, *, kernels: tuple[int, int] = (3, 3), image: str = IMAGE) -> Case:
    """Two convolutions of one value whose sum has one shape, and is yet no single convolution."""
    k, q = kernels
    return Case(name, image, f"float[6,3,{k},{k}] w, float[6,3,{q},{q}] v",
                f"c = Conv {first} (x, w)\n d = Conv {second} (x, v)\n y = Add (c, d)")


NOT_ONE_CONVOLUTION = [
    apart("different strides", "<strides=[2,2], pads=[1,1,1,1]>", "", kernels=(3, 5), image="float[2,3,8,8] x"),
    apart("strides that leave one cell, which is broadcast", "", "<strides=[7,7]>", image="float[2,3,8,8] x"),
    apart("a dilation that leaves one cell, which is broadcast", "<pads=[2,2,2,2]>",
          "<pads=[1,1,1,1], dilations=[2,2]>", kernels=(5, 3), image="float[2,3,3,3] x"),
    apart("the same pads on other sides", "<pads=[1,1,1,1]>", "<pads=[0,0,2,2]>"),
    apart("different dilations", "<pads=[1,1,1,1]>", "<pads=[2,2,2,2], dilations=[2,2]>"),
    apart("pads that depend on the input", "<pads=[1,1,1,1]>", '<auto_pad="SAME_UPPER">'),
    Case("different groups", "float[2,6,8,11] x", "float[6,6,3,3] w, float[6,3,3,3] v",
         "c = Conv (x, w)\n d = Conv <group=2> (x, v)\n y = Add (c, d)"),
    Case("another value", IMAGE + ", float[N,3,H,W] z", "float[6,3,3,3] w, float[6,3,3,3] v",
         "c = Conv (x, w)\n d = Conv (z, v)\n y = Add (c, d)"),
    Case("a branch with another reader, and a value that is no convolution", IMAGE, "float[3,3,3,3] w",
         "c = Conv <pads=[1,1,1,1]> (x, w)\n s = Sigmoid (x)\n d = Add (c, s)\n y = Add (d, c)"),
    Case("an identity that is broadcast", "float[2,1,8,11] x", "float[6,1,1,1] w", "c = Conv (x, w)\n y = Add (c, x)"),
    Case("a weight that is an input", IMAGE + ", float[6,3,3,3] w", "float[6,3,3,3] v",
         "c = Conv (x, w)\n d = Conv (x, v)\n y = Add (c, d)"),
]
