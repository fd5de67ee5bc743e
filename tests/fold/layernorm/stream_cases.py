"""Residual streams: those that may be centred, and those that one writer or reader forbids.

Features are 6, tokens 7. ``x`` is the stream where a case builds on ``_block``, which reads it by two norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from norm_harness import model

AFFINES = "float[6] g1, float[6] b1, float[6] g2, float[6] b2"
LINEARS = "float[6,9] w1, float[9] c1, float[9,6] w2, float[6] c2, float[6,5] head, float[5] hb"
BLOCK = (
    "n = LayerNormalization (x, g1, b1)\n p = MatMul (n, w1)\n q = Add (p, c1)\n r = Relu (q)\n o = MatMul (r, w2)\n"
    "u = Add (o, c2)\n z = Add (x, u)\n"
)
HEAD = "m = LayerNormalization (z, g2, b2)\n h = MatMul (m, head)\n y = Add (h, hb)\n"
TOKENS = "int64[N,7] ids"
EMBED = "e = Gather <axis=0> (table, ids)\n x = Add (e, pos)\n"
TABLES = "float[8,6] table, float[7,6] pos"


@dataclass(frozen=True)
class Stream:
    """A graph with LayerNorms over a stream.

    Attributes:
        name: what the case shows.
        body: nodes in ONNX text.
        weights: declared beside those of the block.
        inputs: graph inputs in ONNX text.
        outputs: graph outputs in ONNX text.
        rms: how many LayerNorms become RMSNorms.
        layer: how many stay.
        reason: what the ledger says of those that stay.
        opset: the opset of the default domain.
        target: who will run the model.
        onnxruntime: whether it can run the model.
    """

    name: str
    body: str
    weights: str = TABLES
    inputs: str = TOKENS
    outputs: str = "float[] y"
    rms: int = 0
    layer: int = 0
    reason: str = ""
    opset: int = 23
    target: str = "onnx"
    onnxruntime: bool = True

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        weights = ", ".join(text for text in (AFFINES, LINEARS, self.weights) if text)
        return model(self.inputs, weights, self.body, outputs=self.outputs, opset=self.opset)


CENTRED = [
    Stream("token and position embeddings", EMBED + BLOCK + HEAD, rms=2),
    Stream("type embeddings, on the left of sums",
           "e = Gather <axis=0> (table, ids)\n t = Gather <axis=0> (types, kinds)\n"
           "a = Add (t, e)\n x = Add (pos, a)\n" + BLOCK + HEAD, weights=f"{TABLES}, float[4,6] types",
           inputs=f"{TOKENS}, int64[N,7] kinds", rms=2),
    Stream("positions by Slice", "e = Gather <axis=0> (table, ids)\n l = Shape <start=1, end=2> (ids)\n"
           "s = Slice (pos, zero, l, zero)\n x = Add (e, s)\n" + BLOCK + HEAD, inputs="int64[N,T] ids",
           weights="float[8,6] table, float[11,6] pos, int64[1] zero = {0}", rms=2),
    Stream("patches and class token", "c = Conv <strides=[2,2]> (i, k, kb)\n f = Reshape (c, flat)\n"
           "t = Transpose <perm=[0,2,1]> (f)\n l = Shape <end=1> (i)\n v = Concat <axis=0> (l, rest)\n"
           "cls = Expand (token, v)\n j = Concat <axis=1> (cls, t)\n x = Add (j, pos)\n" + BLOCK + HEAD,
           inputs="float[N,3,4,6] i", weights="float[6,3,2,2] k, float[6] kb, int64[3] flat = {0, 0, -1}, "
           "float[1,1,6] token, int64[2] rest = {1, 6}, float[1,7,6] pos", rms=2),
    Stream("head reads the class token", EMBED + BLOCK + "m = LayerNormalization (z, g2, b2)\n"
           "a = Gather <axis=1> (m, first)\n y = Gemm (a, head, hb)", weights=f"{TABLES}, int64 first = {{0}}", rms=2),
    Stream("norm of the class token", EMBED + BLOCK + "a = Gather <axis=1> (z, first)\n"
           "m = LayerNormalization (a, g2, b2)\n y = Gemm (m, head, hb)", weights=f"{TABLES}, int64 first = {{0}}",
           rms=2),
    Stream("norm of the mean of all tokens", EMBED + BLOCK + "a = ReduceMean <keepdims=0> (z, one)\n"
           "m = LayerNormalization (a, g2, b2)\n y = Gemm (m, head, hb)", weights=f"{TABLES}, int64[1] one = {{1}}",
           rms=2),
    Stream("tied head", EMBED + BLOCK + "m = LayerNormalization (z, g2, b2)\n v = Transpose (table)\n"
           "h = MatMul (m, v)\n y = Add (h, vb)", weights=f"{TABLES}, float[8] vb", rms=2),
    Stream("one table for two inputs", "e = Gather <axis=0> (table, ids)\n t = Gather <axis=0> (table, more)\n"
           "x = Add (t, e)\n" + BLOCK + HEAD, weights="float[8,6] table", inputs=f"{TOKENS}, int64[N,7] more", rms=2),
    Stream("gemm writers", "e = Gemm <transB=1, alpha=0.5, beta=2.0> (i, k, kb)\n j = Gemm (i, k2, one)\n"
           "x = Sub (e, j)\n" + BLOCK.replace("u = Add (o, c2)", "u = Add (o, c2)") + HEAD, inputs="float[N,3] i",
           weights="float[6,3] k, float[1,6] kb, float[3,6] k2, float one", rms=2),
    Stream("gemm with rows of its own", "e = Gemm (i, k, kb)\n x = Identity (e)\n" + BLOCK + HEAD,
           inputs="float[7,3] i", weights="float[3,6] k, float[7,1] kb", rms=2),
    Stream("constant on the left", "e = MatMul (k, i)\n x = Transpose <perm=[0,2,1]> (e)\n" + BLOCK + HEAD,
           inputs="float[N,3,7] i", weights="float[6,3] k", rms=2),
    Stream("transposed convolution", "e = ConvTranspose (i, k, kb)\n x = Transpose <perm=[0,2,1]> (e)\n" + BLOCK + HEAD,
           inputs="float[N,3,7] i", weights="float[3,6,1] k, float[6] kb", rms=2, onnxruntime=False),
    Stream("scaled by one number", "e = Gather <axis=0> (table, ids)\n s = Mul (e, two)\n x = Add (s, pos)\n"
           + BLOCK.replace("z = Add (x, u)", "d = Div (u, half)\n z = Add (d, x)") + HEAD,
           weights=f"{TABLES}, float two = {{2.5}}, float half = {{0.3}}", rms=2),
    Stream("scaled for each token", EMBED + BLOCK.replace("z = Add (x, u)", "k = Mul (keep, u)\n z = Add (x, k)")
           + HEAD,
           inputs=f"{TOKENS}, float[N,7,1] keep", rms=2),
    Stream("a number for all features", EMBED.replace("x =", "x0 =") + "x1 = Add (x0, number)\n x = Add (column, x1)\n"
           + BLOCK + HEAD, weights=f"{TABLES}, float number, float[7,1] column", rms=2),
    Stream("dropout and identity", EMBED.replace("x =", "x0 =") + "x = Dropout (x0)\n"
           + BLOCK.replace("z = Add (x, u)", "i = Identity (u)\n z = Add (x, i)") + HEAD, rms=2),
    Stream("layer scale goes into its projection", EMBED
           + BLOCK.replace("z = Add (x, u)", "s = Mul (u, ls)\n z = Add (x, s)") + HEAD,
           weights=f"{TABLES}, float[6] ls", rms=2),
    Stream("windows", EMBED + BLOCK.replace("x, g1", "wd, g1").replace("n = ", "wd = Reshape (x, window)\n n = ")
           .replace("z = Add (x, u)", "ub = Reshape (u, back)\n z = Add (x, ub)") + HEAD,
           weights=f"{TABLES}, int64[3] window = {{-1, 1, 6}}, int64[3] back = {{-1, 7, 6}}", rms=2),
    Stream("padded with zeros", EMBED + BLOCK + "zp = Pad (z, pads)\n m = LayerNormalization (zp, g2, b2)\n"
           "h = MatMul (m, head)\n y = Add (h, hb)", weights=f"{TABLES}, int64[6] pads = {{0, 1, 0, 0, 2, 0}}", rms=2),
    Stream("a norm without affine writes", "e = Gather <axis=0> (table, ids)\n x = LayerNormalization (e, ones)\n"
           + BLOCK + HEAD, weights="float[8,6] table, float[6] ones = {1, 1, 1, 1, 1, 1}", rms=3),
    Stream("a scale that had to stay", EMBED + BLOCK + "m = LayerNormalization (z, g2)\n y = Sigmoid (m)", rms=2),
    Stream("a bias that had to stay", EMBED + BLOCK + "m = LayerNormalization (z, g2, b2)\n y = Sigmoid (m)", rms=1,
           layer=1, reason="NF326"),
    Stream("no residual at all", "c = MatMul (i, k)\n x = Add (c, kb)\n n = LayerNormalization (x, g1, b1)\n"
           "p = MatMul (n, w1)\n y = Add (p, c1)", inputs="float[N,7,3] i", weights="float[3,6] k, float[6] kb", rms=1),
    Stream("two streams", EMBED + BLOCK + HEAD.replace("y =", "y1 =")
           + "k = MatMul (y1, v)\n l = LayerNormalization (k, g3, b3)\n"
           "a = MatMul (l, v2)\n y = Add (a, c3)",
           weights=f"{TABLES}, float[5,4] v, float[4] g3, float[4] b3, float[4,3] v2, float[3] c3", rms=3),
    Stream("shape of the stream is read", EMBED + BLOCK + HEAD.replace("y =", "y0 =") + "s = Shape <end=2> (x)\n"
           "t = Concat <axis=0> (s, five)\n y = Expand (y0, t)", weights=f"{TABLES}, int64[1] five = {{5}}", rms=2),
    Stream("onnxruntime's own operator", EMBED + BLOCK + HEAD, opset=18, target="onnxruntime", rms=2),
    Stream("RMSNormalization for onnxruntime", EMBED + BLOCK + HEAD, target="onnxruntime", rms=2),
]  # fmt: skip

NORMED = EMBED + BLOCK + HEAD
REFUSED = [
    # readers that keep the mean
    Stream("a head without a norm", EMBED + BLOCK + HEAD + "t = MatMul (z, head)", outputs="float[] y, float[] t",
           layer=2, reason="NF321 (MatMul t)"),
    Stream("a linear branch without a norm", EMBED + "l = MatMul (x, sq)\n" + BLOCK.replace("z = Add (x, u)",
           "v = Add (x, l)\n"
           "z = Add (v, u)") + HEAD, weights=f"{TABLES}, float[6,6] sq", layer=2, reason="NF321 (MatMul l)"),
    Stream("a tap", EMBED + BLOCK + HEAD + "t = Relu (x)", outputs="float[] y, float[] t", layer=2,
           reason="NF321 (Relu t)"),
    Stream("pooled into a head", EMBED + BLOCK + HEAD + "a = ReduceMean <keepdims=0> (z, one)\n t = Gemm (a, head, hb)",
           weights=f"{TABLES}, int64[1] one = {{1}}", outputs="float[] y, float[] t", layer=2,
           reason="NF321 (Gemm t)"),
    Stream("pooled output", EMBED + BLOCK + HEAD + "t = ReduceMean <keepdims=0> (z, one)",
           weights=f"{TABLES}, int64[1] one = {{1}}", outputs="float[] y, float[] t", layer=2,
           reason="NF002"),
    Stream("the stream is an output", EMBED + BLOCK + HEAD, outputs="float[] y, float[] z", layer=2,
           reason="NF002"),
    Stream("a hidden state is an output", EMBED + BLOCK + HEAD, outputs="float[] y, float[] x", layer=2,
           reason="NF002"),
    Stream("a projection's output is an output", EMBED + BLOCK + HEAD, outputs="float[] y, float[] u", layer=2,
           reason="NF002"),
    Stream("its mean is taken", EMBED + BLOCK + HEAD + "t = ReduceMean (z, two)",
           weights=f"{TABLES}, int64[1] two = {{2}}",
           outputs="float[] y, float[] t", layer=2, reason="NF015 (ReduceMean t)"),
    Stream("an RMS norm reads it", EMBED + BLOCK + HEAD + "t = RMSNormalization (z, g2)",
           outputs="float[] y, float[] t",
           layer=2, reason="NF321 (RMSNormalization t)"),
    Stream("a norm over more axes reads it", EMBED + BLOCK + HEAD + "t = LayerNormalization <axis=1> (z, wide)",
           weights=f"{TABLES}, float[7,6] wide", outputs="float[] y, float[] t", layer=3,
           reason="NF324"),
    Stream("the mean of a norm is used", EMBED + BLOCK
           + "m, t = LayerNormalization (z, g2, b2)\n h = MatMul (m, head)\n"
           "y = Add (h, hb)", outputs="float[] y, float[] t", layer=2, reason="NF211"),
    Stream("features side by side", EMBED + BLOCK + HEAD
           + "a = Concat <axis=2> (x, z)\n t = LayerNormalization (a, wide)",
           weights=f"{TABLES}, float[12] wide", outputs="float[] y, float[] t", layer=3, reason="NF321 (Concat a)"),
    Stream("features taken apart", EMBED + BLOCK + HEAD + "a = Reshape (z, heads)\n t = Softmax <axis=-1> (a)",
           weights=f"{TABLES}, int64[4] heads = {{0, 0, 2, 3}}", outputs="float[] y, float[] t", layer=2,
           reason="NF323 (Reshape a)"),
    Stream("some features only", EMBED + BLOCK + HEAD + "t = Slice (z, zero, four, two)",
           weights=f"{TABLES}, int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] two = {{2}}",
           outputs="float[] y, float[] t", layer=2, reason="NF323 (Slice t)"),
    Stream("scaled for each feature", EMBED + BLOCK + HEAD + "t = Mul (z, gate)", inputs=f"{TOKENS}, float[N,7,6] gate",
           outputs="float[] y, float[] t", layer=2, reason="NF321 (Mul t)"),
    Stream("squared", EMBED + BLOCK + HEAD + "t = Mul (z, z)", outputs="float[] y, float[] t", layer=2,
           reason="NF321 (Mul t)"),
    # writers that cannot be centred
    Stream("post-LN", "e = Gather <axis=0> (table, ids)\n x = LayerNormalization (e, g2, b2)\n" + BLOCK
           + "m = LayerNormalization (z, g1, b2)\n h = MatMul (m, head)\n y = Add (h, hb)",
           weights="float[8,6] table", layer=3, reason="NF325"),
    Stream("an activation writes", EMBED.replace("x =", "x0 =") + "x = Relu (x0)\n" + BLOCK + HEAD, layer=2,
           reason="NF322 (Relu x)"),
    Stream("an input writes", BLOCK + HEAD, inputs="float[N,7,6] x", weights="", layer=2,
           reason="NF003"),
    Stream("an input is added", EMBED.replace("x =", "x0 =") + "x = Add (x0, i)\n" + BLOCK + HEAD,
           inputs=f"{TOKENS}, float[N,7,6] i", layer=2, reason="NF003"),
    Stream("a number for each token is added", EMBED.replace("x =", "x0 =") + "x = Add (x0, i)\n" + BLOCK + HEAD,
           inputs=f"{TOKENS}, float[N,7,1] i", layer=2, reason="NF323"),
    Stream("a gate that is not constant", EMBED + BLOCK.replace("z = Add (x, u)",
           "s = Mul (u, gate)\n z = Add (x, s)") + HEAD,
           inputs=f"{TOKENS}, float[N,1,6] gate", layer=2, reason="NF322 (Mul s)"),
    Stream("a depthwise convolution", "c = Conv <group=3> (i, k, kb)\n x = Transpose <perm=[0,2,1]> (c)\n" + BLOCK
           + HEAD,
           inputs="float[N,3,7] i", weights="float[6,1,1] k, float[6] kb", layer=2,
           reason="NF322"),
    Stream("weights that are an input", EMBED + BLOCK + HEAD, inputs=f"{TOKENS}, float[8,6] table",
           weights="float[7,6] pos", layer=2, reason="NF003"),
    Stream("a projection whose weight is an input", EMBED + BLOCK + HEAD, inputs=f"{TOKENS}, float[9,6] w2",
           weights=TABLES, layer=2, reason="NF101 (MatMul o)"),
    Stream("padded with a number", EMBED + BLOCK + "zp = Pad (z, pads, one)\n m = LayerNormalization (zp, g2, b2)\n"
           "h = MatMul (m, head)\n y = Add (h, hb)",
           weights=f"{TABLES}, int64[6] pads = {{0, 1, 0, 0, 2, 0}}, float one = {{1.0}}", layer=2,
           reason="NF202 (Pad zp)"),
    Stream("quantized embeddings",
           "dq = DequantizeLinear (codes, step)\n e = Gather <axis=0> (dq, ids)\n x = Add (e, pos)\n"
           + BLOCK + HEAD, weights="int8[8,6] codes, float step = {0.1}, float[7,6] pos", layer=2,
           reason="NF322 (DequantizeLinear dq)"),
    Stream("softmax of the features", EMBED.replace("x =", "x0 =") + "x = Softmax <axis=-1> (x0)\n" + BLOCK + HEAD,
           layer=2, reason="NF322 (Softmax x)"),
    # no way to spell it
    Stream("below opset 23", EMBED + BLOCK + HEAD, opset=22, layer=2, reason="NF315"),
    Stream("for TensorRT", EMBED + BLOCK + HEAD, target="tensorrt", layer=2,
           reason="NF316"),
]  # fmt: skip
