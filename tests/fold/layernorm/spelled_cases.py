"""The spellings of norms: every one that is recognised, and everything that only looks like one.

Data is ``x``, of 7 tokens with 6 features unless a case says otherwise; the result is ``y``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from norm_harness import model, with_values

CONSTANTS = (
    "float two = {2.0}, int64 itwo = {2}, float half = {0.5}, float mhalf = {-0.5}, float one = {1.0}, "
    "float eps = {1e-5}, float zero = {0.0}, int64[1] last = {-1}, int64[1] third = {2}, int64[1] second = {1}"
)


@dataclass(frozen=True)
class Spelling:
    """A norm in elementary operators; ``becomes`` lists the operators that are left."""

    name: str
    body: str
    becomes: str = "LayerNormalization"
    inputs: str = "float[N,7,6] x"
    weights: str = ""
    outputs: str = "float[] y"
    opset: int = 23
    epsilon: float = 1e-5
    target: str = "onnx"
    values: Mapping[str, object] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        weights = ", ".join(text for text in (CONSTANTS, self.weights) if text)
        proto = model(self.inputs, weights, self.body, outputs=self.outputs, opset=self.opset)
        return with_values(proto, **self.values)


MEAN = "m = ReduceMean (x, last)\n d = Sub (x, m)\n"
VARIANCE = MEAN + "s = Mul (d, d)\n v = ReduceMean (s, last)\n"
SHIFTED = VARIANCE + "e = Add (v, eps)\n"
ROOT = SHIFTED + "r = Sqrt (e)\n"
MEAN_OLD = "m = ReduceMean <axes=[-1]> (x)\n d = Sub (x, m)\n"

LAYER_NORMS = [
    # squares
    Spelling("mul square", ROOT + "y = Div (d, r)"),
    Spelling("pow square", MEAN + "s = Pow (d, two)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n"
             "y = Div (d, r)"),
    Spelling("integer exponent", MEAN + "s = Pow (d, itwo)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n y = Div (d, r)"),
    # roots
    Spelling("reciprocal of the root", ROOT + "i = Reciprocal (r)\n y = Mul (d, i)"),
    Spelling("inverse first", ROOT + "i = Reciprocal (r)\n y = Mul (i, d)"),
    Spelling("root of the reciprocal", SHIFTED + "q = Reciprocal (e)\n i = Sqrt (q)\n y = Mul (d, i)"),
    Spelling("one divided by the root", ROOT + "i = Div (one, r)\n y = Mul (d, i)"),
    Spelling("power of a half", SHIFTED + "r = Pow (e, half)\n y = Div (d, r)"),
    Spelling("power of minus a half", SHIFTED + "i = Pow (e, mhalf)\n y = Mul (d, i)"),
    Spelling("reciprocal of a power", SHIFTED + "r = Pow (e, half)\n i = Reciprocal (r)\n y = Mul (d, i)"),
    # differences
    Spelling("the difference twice", MEAN + "s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n b = Sub (x, m)\n y = Div (b, r)"),
    Spelling("the mean twice", MEAN + "s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n n = ReduceMean (x, third)\n b = Sub (x, n)\n y = Div (b, r)"),
    Spelling("the square of two differences", MEAN + "b = Sub (x, m)\n s = Mul (d, b)\n v = ReduceMean (s, last)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("minus as plus", "m = ReduceMean (x, last)\n g = Neg (m)\n d = Add (x, g)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    # epsilon
    Spelling("epsilon in front", VARIANCE + "e = Add (eps, v)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("epsilon of BERT", VARIANCE + "e = Add (v, tiny)\n r = Sqrt (e)\n y = Div (d, r)",
             weights="float tiny = {1e-12}", epsilon=1e-12),
    Spelling("epsilon with an axis", VARIANCE + "e = Add (v, wide)\n r = Sqrt (e)\n y = Div (d, r)",
             weights="float[1,1] wide = {1e-3}", epsilon=1e-3),
    Spelling("epsilon of a Constant node", "c = Constant <value_float=1e-6> ()\n" + VARIANCE
             + "e = Add (v, c)\n r = Sqrt (e)\n y = Div (d, r)", epsilon=1e-6),
    # means
    Spelling("axes as attribute", MEAN_OLD + "s = Mul (d, d)\n v = ReduceMean <axes=[-1]> (s)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n y = Div (d, r)", opset=17),
    Spelling("positive axes", "m = ReduceMean (x, third)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("several axes", "m = ReduceMean (x, both)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, both)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
             weights="int64[2] both = {2, -2}"),
    Spelling("all axes of a vector", "m = ReduceMean (x)\n d = Sub (x, m)\n s = Mul (d, d)\n v = ReduceMean (s)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", inputs="float[6] x"),
    Spelling("keepdims=0 and axes put back", "n = ReduceMean <keepdims=0> (x, last)\n m = Unsqueeze (n, last)\n"
             "d = Sub (x, m)\n s = Mul (d, d)\n u = ReduceMean <keepdims=0> (s, last)\n v = Unsqueeze (u, third)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("axes put back behind the root", MEAN + "s = Mul (d, d)\n v = ReduceMean <keepdims=0> (s, last)\n"
             "w = Reshape (v, column)\n e = Add (w, eps)\n r = Sqrt (e)\n y = Div (d, r)",
             weights="int64[3] column = {0, 0, 1}"),
    Spelling("sum divided by the count", "a = ReduceSum (x, last)\n m = Div (a, six)\n d = Sub (x, m)\n"
             "s = Mul (d, d)\n b = ReduceSum (s, last)\n v = Div (b, six)\n e = Add (v, eps)\n r = Sqrt (e)\n"
             "y = Div (d, r)", weights="float six = {6.0}"),
    Spelling("sum of squares", MEAN + "b = ReduceSumSquare (d, last)\n v = Div (b, six)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n y = Div (d, r)", weights="float six = {6.0}"),
    Spelling("rescaled sum", MEAN + "s = Mul (d, d)\n a = ReduceMean (s, last)\n b = Mul (a, six)\n v = Div (b, six)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", weights="float six = {6.0}"),
    Spelling("pooled", "m = GlobalAveragePool (x)\n d = Sub (x, m)\n s = Mul (d, d)\n v = GlobalAveragePool (s)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("pooled, as tf2onnx writes Keras's", "m = GlobalAveragePool (x)\n n = Neg (m)\n d = Sub (x, m)\n"
             "s = Mul (d, d)\n v = GlobalAveragePool (s)\n e = Add (v, eps)\n r = Sqrt (e)\n i = Reciprocal (r)\n"
             "k = Mul (i, gamma)\n a = Mul (x, k)\n b = Mul (n, k)\n c = Add (b, beta)\n y = Add (a, c)",
             weights="float[1,1,6] gamma, float[1,1,6] beta"),
    Spelling("pooled over two axes", "m = GlobalAveragePool (x)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, both)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
             inputs="float[N,7,6,5] x", weights="int64[2] both = {2, 3}"),
    # E[x²] - E[x]²
    Spelling("moments", "m = ReduceMean (x, last)\n d = Sub (x, m)\n p = Pow (x, two)\n a = ReduceMean (p, last)\n"
             "b = Mul (m, m)\n v = Sub (a, b)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)"),
    Spelling("moments, clamped", "m = ReduceMean (x, last)\n d = Sub (x, m)\n p = Mul (x, x)\n "
             "a = ReduceMean (p, last)\n b = Pow (m, two)\n c = Sub (a, b)\n v = Max (c, zero)\n"
             "e = Add (v, eps)\n i = Pow (e, mhalf)\n y = Mul (d, i)"),
    Spelling("moments, relu", "m = ReduceMean (x, last)\n d = Sub (x, m)\n p = Mul (x, x)\n a = ReduceMean (p, last)\n"
             "n = ReduceMean (x, third)\n b = Pow (n, itwo)\n c = Sub (a, b)\n v = Relu (c)\n e = Add (v, eps)\n"
             "r = Sqrt (e)\n y = Div (d, r)"),
    # what stands behind
    Spelling("scale only", ROOT + "z = Div (d, r)\n y = Mul (z, gamma)", weights="float[6] gamma"),
    Spelling("scale and bias", ROOT + "z = Div (d, r)\n w = Mul (gamma, z)\n y = Add (w, beta)",
             weights="float[6] gamma, float[6] beta"),
    Spelling("bias only", ROOT + "z = Div (d, r)\n y = Add (z, beta)", weights="float[1,6] beta"),
    Spelling("scaled before the division", ROOT + "t = Mul (gamma, d)\n z = Div (t, r)\n y = Add (z, beta)",
             weights="float[6] gamma, float[6] beta"),
    Spelling("scaled inverse", ROOT + "i = Reciprocal (r)\n k = Mul (i, gamma)\n y = Mul (d, k)",
             weights="float[6] gamma"),
    Spelling("scaled by one number", ROOT + "t = Mul (d, two)\n y = Div (t, r)"),
    Spelling("multiplied out, as TensorFlow writes it", ROOT + "i = Reciprocal (r)\n k = Mul (i, gamma)\n"
             "a = Mul (x, k)\n b = Mul (m, k)\n c = Sub (beta, b)\n y = Add (a, c)",
             weights="float[6] gamma, float[6] beta"),
    Spelling("multiplied out, without scale", ROOT + "i = Reciprocal (r)\n a = Mul (i, x)\n b = Mul (m, i)\n"
             "c = Sub (beta, b)\n y = Add (c, a)", weights="float[6] beta"),
    Spelling("multiplied out, without bias", ROOT + "i = Reciprocal (r)\n k = Mul (i, gamma)\n a = Mul (x, k)\n"
             "b = Mul (m, k)\n y = Sub (a, b)", weights="float[6] gamma"),
    Spelling("multiplied out, as Keras writes it", ROOT + "i = Reciprocal (r)\n k = Mul (i, gamma)\n"
             "a = Mul (x, k)\n n = Neg (m)\n b = Mul (n, k)\n c = Add (b, beta)\n y = Add (a, c)",
             weights="float[6] gamma, float[6] beta"),
    Spelling("multiplied out with a minus, the other way round", ROOT + "i = Reciprocal (r)\n a = Mul (i, x)\n"
             "n = Neg (m)\n b = Mul (i, n)\n c = Add (beta, b)\n y = Add (c, a)", weights="float[6] beta"),
    Spelling("multiplied out with a minus, without bias", ROOT + "i = Reciprocal (r)\n k = Mul (i, gamma)\n"
             "a = Mul (x, k)\n n = Neg (m)\n b = Mul (n, k)\n y = Add (a, b)", weights="float[6] gamma"),
    Spelling("scale, bias and a linear", ROOT + "z = Div (d, r)\n w = Mul (gamma, z)\n a = Add (w, beta)\n"
             "p = MatMul (a, k)\n y = Add (p, c)", "LayerNormalization MatMul Add",
             weights="float[6] gamma, float[6] beta, float[6,5] k, float[5] c"),
    Spelling("dynamic affine", ROOT + "z = Div (d, r)\n w = Mul (z, scale)\n y = Add (w, shift)",
             "LayerNormalization Mul Add", inputs="float[N,7,6] x, float[N,1,6] scale, float[N,1,6] shift"),
    Spelling("two readers", ROOT + "z = Div (d, r)\n y = Relu (z)\n w = Sigmoid (z)",
             "LayerNormalization Relu Sigmoid", outputs="float[] y, float[] w"),
    Spelling("shape of the data is read", ROOT + "z = Div (d, r)\n h = Shape (m)\n y = Expand (z, h)",
             "LayerNormalization ReduceMean Shape Expand"),
    # dtypes
    Spelling("casts around", "f = Cast <to=1> (x)\n m = ReduceMean (f, last)\n d = Sub (f, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n z = Div (d, r)\n y = Cast <to=10> (z)",
             "Cast LayerNormalization Cast", inputs="float16[N,7,6] x", outputs="float16[] y"),
    Spelling("cast inside", "f = Cast <to=1> (x)\n m = ReduceMean (f, last)\n d = Sub (f, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, eps)\n q = Sqrt (e)\n r = Cast <to=10> (q)\n"
             "n = Cast <to=10> (m)\n b = Sub (x, n)\n y = Div (b, r)",
             inputs="float16[N,7,6] x", outputs="float16[] y"),
    Spelling("half precision throughout", "m = ReduceMean (x, last)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, h)\n r = Sqrt (e)\n z = Div (d, r)\n y = Mul (z, g)",
             inputs="float16[N,7,6] x", outputs="float16[] y", weights="float16 h, float16[6] g",
             values={"h": 0.001}, epsilon=0.0010004043579101562),
    Spelling("double precision throughout", "m = ReduceMean (x, last)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, h)\n r = Sqrt (e)\n y = Div (d, r)",
             inputs="double[N,7,6] x", outputs="double[] y", weights="double h = {0.0009765625}", epsilon=2.0**-10),
]  # fmt: skip

IMAGE = "float[N,6,H,W] x"
FIRST = (
    "m = ReduceMean (x, second)\n d = Sub (x, m)\n s = Pow (d, two)\n v = ReduceMean (s, second)\n"
    "e = Add (v, eps)\n r = Sqrt (e)\n "
)

CHANNELS_FIRST = [
    Spelling("over the channels of an image", FIRST + "y = Div (d, r)", "Transpose LayerNormalization Transpose",
             inputs=IMAGE),
    Spelling("with scale and bias", FIRST + "z = Div (d, r)\n w = Mul (z, gamma)\n y = Add (w, beta)",
             "Transpose LayerNormalization Transpose", inputs=IMAGE, weights="float[6,1,1] gamma, float[6,1,1] beta"),
    Spelling("channels first, scaled before the division", FIRST + "t = Mul (d, gamma)\n y = Div (t, r)",
             "Transpose LayerNormalization Transpose", inputs=IMAGE, weights="float[6,1,1] gamma"),
    Spelling("behind a Transpose", "x = Transpose <perm=[0,3,1,2]> (i)\n" + FIRST + "y = Div (d, r)",
             "LayerNormalization Transpose", inputs="float[N,H,W,6] i"),
    Spelling("in front of a Transpose", FIRST + "z = Div (d, r)\n y = Transpose <perm=[0,2,3,1]> (z)\n q = Relu (y)",
             "Transpose LayerNormalization Relu", inputs=IMAGE, outputs="float[] q"),
    Spelling("between Transposes", "x = Transpose <perm=[0,3,1,2]> (i)\n" + FIRST
             + "z = Div (d, r)\n t = Transpose <perm=[0,2,3,1]> (z)\n y = MatMul (t, k)", "LayerNormalization MatMul",
             inputs="float[N,H,W,6] i", weights="float[6,5] k"),
    Spelling("Transposes of its own", "t = Transpose <perm=[0,2,3,1]> (x)\n m = ReduceMean (t, last)\n d = Sub (t, m)\n"
             "s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n z = Div (d, r)\n"
             "y = Transpose <perm=[0,3,1,2]> (z)", "Transpose LayerNormalization Transpose", inputs=IMAGE),
    Spelling("over the cells of an image", "m = ReduceMean (x, cells)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, cells)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
             inputs="float[N,6,8,11] x", weights="int64[2] cells = {2, 3}"),
]  # fmt: skip

SQUARES = "s = Mul (x, x)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n "
RMS = "RMSNormalization"
RMS_NORMS = [
    Spelling("rms, div", SQUARES + "r = Sqrt (e)\n y = Div (x, r)", RMS),
    Spelling("rms, reciprocal", SQUARES + "r = Sqrt (e)\n i = Reciprocal (r)\n y = Mul (x, i)", RMS),
    Spelling("rms, power", SQUARES + "i = Pow (e, mhalf)\n y = Mul (i, x)", RMS),
    Spelling("rms, integer exponent", "s = Pow (x, itwo)\n v = ReduceMean (s, last)\n e = Add (eps, v)\n"
             "i = Pow (e, mhalf)\n y = Mul (i, x)", RMS),
    Spelling("rms, scale", SQUARES + "r = Sqrt (e)\n z = Div (x, r)\n y = Mul (gamma, z)", RMS,
             weights="float[6] gamma"),
    Spelling("rms, scaled before the division", SQUARES + "r = Sqrt (e)\n t = Mul (x, gamma)\n y = Div (t, r)", RMS,
             weights="float[6] gamma"),
    Spelling("rms of T5, with casts", "f = Cast <to=1> (x)\n s = Pow (f, two)\n v = ReduceMean (s, last)\n"
             "e = Add (v, eps)\n r = Sqrt (e)\n i = Reciprocal (r)\n z = Mul (f, i)\n w = Cast <to=10> (z)\n"
             "y = Mul (g, w)", "Cast RMSNormalization Cast", inputs="float16[N,7,6] x", outputs="float16[] y",
             weights="float16[6] g"),
    Spelling("rms of a difference from another mean", "m = ReduceMean (x, second)\n d = Sub (x, m)\n s = Mul (d, d)\n"
             "v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
             "ReduceMean Sub RMSNormalization"),
    Spelling("rms for onnxruntime at opset 18", SQUARES + "r = Sqrt (e)\n z = Div (x, r)\n y = Mul (gamma, z)",
             "SimplifiedLayerNormalization", weights="float[6] gamma", opset=18, target="onnxruntime"),
]  # fmt: skip

GROUPS = "g = Reshape (x, split)\n n = InstanceNormalization <epsilon=1e-5> (g, gs, gb)\n h = Shape (x)\n "
SPLIT = "int64[3] split = {0, 2, -1}, float[2] gs = {1, 1}, float[2] gb = {0, 0}"
BACK = "z = Reshape (n, h)\n "
GROUP_CORE = (
    "g = Reshape (x, split)\n m = ReduceMean (g, last)\n d = Sub (g, m)\n s = Mul (d, d)\n v = ReduceMean (s, last)\n"
    "e = Add (v, eps)\n r = Sqrt (e)\n n = Div (d, r)\n h = Shape (x)\n "
)
GROUP = "GroupNormalization"
CHANNEL_AFFINE = "float[6,1,1] gamma, float[6,1,1] beta"
GROUP_NORMS = [
    Spelling("as torch writes it", GROUPS + BACK + "w = Mul (z, gamma)\n y = Add (w, beta)", GROUP,
             inputs="float[N,6,8,11] x", weights=f"{SPLIT}, {CHANNEL_AFFINE}"),
    Spelling("of a dynamic size", GROUPS + BACK + "w = Mul (z, gamma)\n y = Add (w, beta)", GROUP,
             inputs="float[N,6,H,W] x", weights=f"{SPLIT}, {CHANNEL_AFFINE}"),
    Spelling("of a sequence", GROUPS + BACK + "w = Mul (z, gamma)\n y = Add (w, beta)", GROUP,
             inputs="float[N,6,T] x", weights=f"{SPLIT}, float[6,1] gamma, float[6,1] beta"),
    Spelling("without affine", GROUPS + "y = Reshape (n, h)", GROUP, inputs="float[N,6,8,11] x", weights=SPLIT),
    Spelling("with a scale for each group", GROUPS + "y = Reshape (n, h)", GROUP, inputs="float[N,6,8,11] x",
             weights="int64[3] split = {0, 2, -1}, float[2] gs, float[2] gb"),
    Spelling("spelled out", GROUP_CORE + BACK + "w = Mul (z, gamma)\n y = Add (w, beta)", GROUP,
             inputs="float[N,6,8,11] x", weights=f"int64[3] split = {{0, 2, -1}}, {CHANNEL_AFFINE}"),
    Spelling("spelled out over several axes", GROUP_CORE.replace("last", "rest") + BACK + "y = Add (z, beta)", GROUP,
             inputs="float[N,6,8,11] x",
             weights="int64[5] split = {0, 2, 3, 8, 11}, int64[3] rest = {2, 3, 4}, float[6,1,1] beta"),
    Spelling("one group", GROUPS + "y = Reshape (n, h)", GROUP, inputs="float[N,6,8,11] x",
             weights="int64[3] split = {0, 1, -1}, float[1] gs = {1}, float[1] gb = {0}"),
]  # fmt: skip


@dataclass(frozen=True)
class Lookalike:
    """What looks like a norm and must stay, bit for bit; the code in the ledger, or None where it is not listed."""

    name: str
    body: str
    reason: str | None
    inputs: str = "float[N,7,6] x"
    weights: str = ""
    outputs: str = "float[] y"
    opset: int = 23

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        weights = ", ".join(text for text in (CONSTANTS, self.weights) if text)
        return model(self.inputs, weights, self.body, outputs=self.outputs, opset=self.opset)


LOOKALIKES = [
    Lookalike("pooled over more axes than the variance", ROOT + "n = GlobalAveragePool (x)\n b = Sub (x, n)\n"
              "y = Div (b, r)", "NF312", inputs="float[N,7,6,5] x"),
    Lookalike("unbiased variance", MEAN + "s = Mul (d, d)\n a = ReduceMean (s, last)\n b = Mul (a, six)\n"
              "v = Div (b, five)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF310",
              weights="float six = {6.0}, float five = {5.0}"),
    Lookalike("unbiased variance by sum", MEAN + "s = Mul (d, d)\n a = ReduceSum (s, last)\n v = Div (a, five)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF310", weights="float five = {5.0}"),
    Lookalike("scaled variance", MEAN + "s = Mul (d, d)\n a = ReduceMean (s, last)\n v = Mul (a, two)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF310"),
    Lookalike("rounded count", MEAN + "s = Mul (d, d)\n a = ReduceSum (s, last)\n v = Mul (a, sixth)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF310",
              weights="float sixth = {0.16666667}"),
    Lookalike("epsilon outside of the root", VARIANCE + "r = Sqrt (v)\n e = Add (r, eps)\n y = Div (d, e)",
              "NF311"),
    Lookalike("another mean in the numerator", MEAN + "s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n"
              "r = Sqrt (e)\n n = ReduceMean (x, second)\n b = Sub (x, n)\n y = Div (b, r)",
              "NF312"),
    Lookalike("the mean of another value in the numerator", MEAN + "s = Mul (d, d)\n v = ReduceMean (s, last)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n n = ReduceMean (u, last)\n b = Sub (u, n)\n y = Div (b, r)",
              "NF312", inputs="float[N,7,6] x, float[N,7,6] u"),
    Lookalike("numerator not centred", ROOT + "y = Div (x, r)", "NF312"),
    Lookalike("mean square not centred", MEAN + "s = Mul (x, x)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n"
              "r = Sqrt (e)\n y = Div (d, r)", "NF312"),
    Lookalike("mean square of another value", SQUARES + "r = Sqrt (e)\n y = Div (u, r)", "NF312",
              inputs="float[N,7,6] x, float[N,7,6] u"),
    Lookalike("variance over other axes than the mean", MEAN + "s = Mul (d, d)\n v = ReduceMean (s, second)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n n = ReduceMean (x, second)\n b = Sub (x, n)\n y = Div (b, r)",
              "NF312"),
    Lookalike("keepdims=0 meets another axis", "m = ReduceMean <keepdims=0> (x, last)\n d = Sub (x, m)\n"
              "s = Mul (d, d)\n v = ReduceMean <keepdims=0> (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n"
              "y = Div (d, r)", "NF312", inputs="float[6,6] x"),
    Lookalike("keepdims=0 in the mean only", "m = ReduceMean <keepdims=0> (x, last)\n d = Sub (x, m)\n"
              "s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
              "NF312", inputs="float[6,6] x"),
    Lookalike("keepdims=0 in the variance only", MEAN + "s = Mul (d, d)\n v = ReduceMean <keepdims=0> (s, last)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF312",
              inputs="float[6,6,6] x"),
    Lookalike("axes put back elsewhere", "n = ReduceMean <keepdims=0> (x, last)\n m = Unsqueeze (n, second)\n"
              "d = Sub (x, m)\n s = Mul (d, d)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n"
              "y = Div (d, r)", "NF312", inputs="float[2,6,6] x"),
    Lookalike("an epsilon for each token", VARIANCE + "e = Add (v, pos)\n r = Sqrt (e)\n y = Div (d, r)", None,
              weights="float[7,1] pos"),
    Lookalike("a scale for each token", ROOT + "t = Mul (d, each)\n y = Div (t, r)", "NF304",
              weights="float[7,1] each"),
    Lookalike("multiplied out with another factor", ROOT + "i = Reciprocal (r)\n a = Mul (x, i)\n b = Mul (m, u)\n"
              "y = Sub (a, b)", "NF312", inputs="float[N,7,6] x, float[N,7,1] u"),
    Lookalike("multiplied out with another mean", ROOT + "i = Reciprocal (r)\n n = ReduceMean (x, second)\n"
              "a = Mul (x, i)\n b = Mul (n, i)\n y = Sub (a, b)", "NF312"),
    Lookalike("multiplied out with a minus and another factor", ROOT + "i = Reciprocal (r)\n a = Mul (x, i)\n"
              "n = Neg (m)\n b = Mul (n, u)\n c = Add (b, beta)\n y = Add (a, c)", "NF312",
              inputs="float[N,7,6] x, float[N,7,1] u", weights="float[6] beta"),
    Lookalike("multiplied out, and the mean added", ROOT + "i = Reciprocal (r)\n a = Mul (x, i)\n"
              "b = Mul (m, i)\n c = Add (b, beta)\n y = Add (a, c)", "NF312",
              weights="float[6] beta"),
    Lookalike("multiplied out, of an unbiased variance", MEAN + "s = Mul (d, d)\n a = ReduceMean (s, last)\n"
              "b = Mul (a, six)\n v = Div (b, five)\n e = Add (v, eps)\n r = Sqrt (e)\n i = Reciprocal (r)\n"
              "k = Mul (i, gamma)\n p = Mul (x, k)\n q = Mul (m, k)\n c = Sub (beta, q)\n y = Add (p, c)", "NF310",
              weights="float six = {6.0}, float five = {5.0}, float[6] gamma, float[6] beta"),
    Lookalike("multiplied out, of a size that is not fixed", ROOT + "i = Reciprocal (r)\n p = Mul (x, i)\n"
              "q = Mul (m, i)\n y = Sub (p, q)", "NF014", inputs="float[N,7,T] x"),
    Lookalike("multiplied out, below opset 17", MEAN_OLD + "s = Mul (d, d)\n v = ReduceMean <axes=[-1]> (s)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n i = Reciprocal (r)\n p = Mul (x, i)\n n = Neg (m)\n"
              "q = Mul (n, i)\n c = Add (q, beta)\n y = Add (p, c)", "NF315", weights="float[6] beta", opset=16),
    Lookalike("a negative epsilon", VARIANCE + "e = Add (v, minus)\n r = Sqrt (e)\n y = Div (d, r)", "NF311",
              weights="float minus = {-0.001}"),
    Lookalike("an epsilon that is no float32", "m = ReduceMean (x, last)\n d = Sub (x, m)\n s = Mul (d, d)\n"
              "v = ReduceMean (s, last)\n e = Add (v, h)\n r = Sqrt (e)\n y = Div (d, r)", "NF311",
              inputs="double[N,7,6] x", outputs="double[] y", weights="double h = {0.00001}"),
    Lookalike("the mean is an output", ROOT + "y = Div (d, r)", "NF313",
              outputs="float[] y, float[] m"),
    Lookalike("the deviation is read again", ROOT + "z = Div (d, r)\n y = Mul (z, r)", "NF313"),
    Lookalike("a size that is not fixed", "m = ReduceMean (x, second)\n d = Sub (x, m)\n s = Mul (d, d)\n"
              "v = ReduceMean (s, second)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF014",
              inputs="float[N,T] x"),
    Lookalike("axes that are not constant", "m = ReduceMean (x, axes)\n d = Sub (x, m)\n s = Mul (d, d)\n"
              "v = ReduceMean (s, axes)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)",
              "NF009", inputs="float[7,6] x, int64[1] axes", outputs="float[7,6] y"),
    Lookalike("layer norm below opset 17", MEAN_OLD + "s = Mul (d, d)\n v = ReduceMean <axes=[-1]> (s)\n"
              "e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", "NF315", opset=16),
    Lookalike("rms norm below opset 23", SQUARES + "r = Sqrt (e)\n y = Div (x, r)", "NF315", opset=22),
    Lookalike("group norm below opset 21", GROUPS + "y = Reshape (n, h)", "NF315",
              inputs="float[N,6,8,11] x", weights=SPLIT, opset=20),
    Lookalike("group norm spelled out below opset 21", GROUP_CORE + "y = Reshape (n, h)", "NF315",
              inputs="float[N,6,8,11] x", weights="int64[3] split = {0, 2, -1}", opset=20),
    Lookalike("a mean over no axes", "m = ReduceMean <noop_with_empty_axes=1> (x)\n d = Sub (x, m)\n s = Mul (d, d)\n"
              "v = ReduceMean <noop_with_empty_axes=1> (s)\n e = Add (v, eps)\n r = Sqrt (e)\n y = Div (d, r)", None),
    Lookalike("a cube", MEAN + "s = Pow (d, three)\n v = ReduceMean (s, last)\n e = Add (v, eps)\n r = Sqrt (e)\n"
              "y = Div (d, r)", None, weights="float three = {3.0}"),
    Lookalike("a fourth root", SHIFTED + "q = Sqrt (e)\n r = Sqrt (q)\n y = Div (d, r)", None),
    Lookalike("the largest in place of the mean", MEAN + "s = Mul (d, d)\n v = ReduceMax (s, last)\n e = Add (v, eps)\n"
              "r = Sqrt (e)\n y = Div (d, r)", None),
    Lookalike("multiplied by the deviation", ROOT + "y = Mul (d, r)", None),
    Lookalike("moments over other axes", "m = ReduceMean (x, second)\n d = Sub (x, m)\n p = Mul (x, x)\n"
              "a = ReduceMean (p, last)\n b = Mul (m, m)\n v = Sub (a, b)\n w = Max (v, zero)\n e = Add (w, one)\n"
              "r = Sqrt (e)\n y = Div (d, r)", None),
]  # fmt: skip
