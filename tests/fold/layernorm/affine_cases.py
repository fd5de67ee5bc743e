"""Norms with scale and bias, and what reads them: where both can go, where they must stay, and norms that are twins."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from norm_harness import model

LN = "n = LayerNormalization <axis=-1, epsilon=1e-5> (x, gamma, beta)\n"
RMS = "n = RMSNormalization <axis=-1, epsilon=1e-6> (x, gamma)\n"
TOKENS = "float[N,7,6] x"
AFFINE = "float[6] gamma, float[6] beta"


@dataclass(frozen=True)
class Case:
    """A norm over the last of three axes, ``n``, and what reads it; ``becomes`` counts what is left."""

    name: str
    weights: str
    body: str
    becomes: str
    outputs: str = "float[] y"
    opset: int = 21

    def model(self, norm: str = LN, affine: str = AFFINE, opset: int = 0) -> onnx.ModelProto:
        """The graph as a model."""
        return model(TOKENS, f"{affine}, {self.weights}", norm + self.body, outputs=self.outputs,
                     opset=opset or self.opset)  # fmt: skip


INTO = [
    Case("matmul", "float[6,5] w, float[5] b", "p = MatMul (n, w)\n y = Add (p, b)", "MatMul Add"),
    Case("matmul, bias in front", "float[6,5] w, float[5] b", "p = MatMul (n, w)\n y = Add (b, p)", "MatMul Add"),
    Case("gemm", "float[6,5] w, float[5] b", "f = Flatten <axis=2> (n)\n y = Gemm (f, w, b)", "Flatten Gemm"),
    Case("gemm transposed, scaled", "float[5,6] w, float[5] b",
         "f = Flatten <axis=2> (n)\n y = Gemm <transB=1, alpha=0.5, beta=2.0> (f, w, b)", "Flatten Gemm"),
    Case("gemm without bias", "float[5,6] w", "f = Flatten <axis=2> (n)\n y = Gemm <transB=1> (f, w)", "Flatten Gemm"),
    Case("q k v", "float[6,5] q, float[6,5] k, float[6,8] v, float[5] qb, float[5] kb, float[8] vb",
         "q0 = MatMul (n, q)\n q1 = Add (q0, qb)\n k0 = MatMul (n, k)\n k1 = Add (k0, kb)\n v0 = MatMul (n, v)\n"
         "v1 = Add (v0, vb)\n kt = Transpose <perm=[0,2,1]> (k1)\n s = MatMul (q1, kt)\n p = Softmax <axis=-1> (s)\n"
         "y = MatMul (p, v1)",
         "MatMul MatMul MatMul Add Add Add Transpose MatMul Softmax MatMul"),
    Case("1x1 conv through transpose", "float[5,6,1] w, float[5] b",
         "t = Transpose <perm=[0,2,1]> (n)\n y = Conv (t, w, b)", "Transpose Conv"),
    Case("constant on the left through transpose", "float[5,6] w, float[5,1] b",
         "t = Transpose <perm=[0,2,1]> (n)\n p = MatMul (w, t)\n y = Add (p, b)", "Transpose MatMul Add"),
    Case("a weight for each token", "float[7,6,5] w, float[5] b, int64[1] two = {2}",
         "u = Unsqueeze (n, two)\n p = MatMul (u, w)\n y = Add (p, b)", "Unsqueeze MatMul Add"),
]  # fmt: skip

BEHIND = "p = MatMul (m, w)\n y = Add (p, b)"
LINEAR = "float[6,5] w, float[5] b"
THROUGH = [
    Case("dropout", LINEAR, "m = Dropout (n)\n" + BEHIND, "MatMul Add"),
    Case("identity", LINEAR, "m = Identity (n)\n" + BEHIND, "MatMul Add"),
    Case("reshape", f"{LINEAR}, int64[2] to = {{-1, 6}}", "m = Reshape (n, to)\n" + BEHIND, "Reshape MatMul Add"),
    Case("flatten of all features", "float[42,5] w, float[5] b", "m = Flatten (n)\n y = Gemm (m, w, b)",
         "Flatten Gemm"),
    Case("slice of tokens", f"{LINEAR}, int64[1] a = {{1}}, int64[1] z = {{4}}, int64[1] axis = {{1}}",
         "m = Slice (n, a, z, axis)\n" + BEHIND, "Slice MatMul Add"),
    Case("class token by gather", f"{LINEAR}, int64 first = {{0}}", "m = Gather <axis=1> (n, first)\n" + BEHIND,
         "Gather MatMul Add"),
    Case("slice of features", "float[3,5] w, float[5] b, int64[1] a = {1}, int64[1] z = {6}, int64[1] axis = {2}, "
         "int64[1] step = {2}", "m = Slice (n, a, z, axis, step)\n" + BEHIND, "Slice MatMul Add"),
    Case("mean over tokens", f"{LINEAR}, int64[1] axis = {{1}}", "m = ReduceMean <keepdims=0> (n, axis)\n" + BEHIND,
         "ReduceMean MatMul Add"),
    Case("split of tokens", f"{LINEAR}, int64[2] parts = {{3, 4}}",
         "m, r = Split <axis=1> (n, parts)\n p = MatMul (m, w)\n y = Add (p, b)\n q = MatMul (r, w)\n z = Add (q, b)",
         "Split MatMul Add MatMul Add", outputs="float[] y, float[] z"),
    Case("concat with itself", f"{LINEAR}", "m = Concat <axis=1> (n, n)\n" + BEHIND, "Concat MatMul Add"),
    Case("two ways", "float[6,5] w, float[5] b, float[4,6,1] k",
         "p = MatMul (n, w)\n y = Add (p, b)\n t = Transpose <perm=[0,2,1]> (n)\n z = Conv (t, k)",
         "MatMul Add Transpose Conv", outputs="float[] y, float[] z"),
]  # fmt: skip

TWO_LINEARS = "p = MatMul (n, w)\n y = Add (p, wb)\n q = MatMul (m, v)\n z = Add (q, vb)\n"
TWINS = (
    "n = LayerNormalization <axis=-1{one}> (x, gamma, beta)\n m = LayerNormalization <axis={axis}{two}> (x, g, b)\n"
    + TWO_LINEARS
)
TWIN_WEIGHTS = "float[6,5] w, float[6,4] v, float[5] wb, float[4] vb, float[6] g, float[6] b"


def twins(*, one: str = "", two: str = "", axis: int = -1) -> onnx.ModelProto:
    """Two norms of one value with scales and biases of their own, a linear layer behind each."""
    body = TWINS.format(one=one, two=two, axis=axis)
    return model(TOKENS, f"{AFFINE}, {TWIN_WEIGHTS}", body, outputs="float[] y, float[] z")


@dataclass(frozen=True)
class Refusal:
    """A norm that must keep its scale and bias, bit for bit, and the reason."""

    name: str
    weights: str
    body: str
    reason: str
    outputs: str = "float[] y"
    inputs: str = TOKENS
    affine: str = AFFINE

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        weights = ", ".join(text for text in (self.affine, self.weights) if text)
        return model(self.inputs, weights, self.body, outputs=self.outputs)


REFUSED = [
    Refusal("post-LN output feeds the residual", "float[6,6] w", LN + "p = MatMul (n, w)\n y = Add (p, n)",
            "NF206"),
    Refusal("post-LN, deeper", "float[6,6] w", LN + "p = MatMul (n, w)\n r = Relu (p)\n q = Add (r, n)\n y = Relu (q)",
            "NF203"),
    Refusal("graph output", "", LN.replace("n =", "y ="), "NF002"),
    Refusal("graph output beside a linear", "float[6,5] w", LN + "y = MatMul (n, w)", "NF002",
            outputs="float[] y, float[] n"),
    Refusal("one reader is not linear", "float[6,5] w, float[5] b",
            LN + "p = MatMul (n, w)\n y = Add (p, b)\n z = Sigmoid (n)", "NF001",
            outputs="float[] y, float[] z"),
    Refusal("no bias behind to take the shift", "float[6,5] w", LN + "y = MatMul (n, w)", "NF002"),
    Refusal("a product of two values", "", LN + "t = Transpose <perm=[0,2,1]> (n)\n y = MatMul (n, t)",
            "NF207"),
    Refusal("padded convolution", "float[5,6,3] k", LN + "t = Transpose <perm=[0,2,1]> (n)\n"
            "y = Conv <pads=[1,1]> (t, k)", "NF201"),
    Refusal("dynamic scale", "float[6,5] w", LN + "y = MatMul (n, w)", "NF101",
            inputs=f"{TOKENS}, float[6] gamma", affine="float[6] beta"),
    Refusal("dynamic bias", "float[6,5] w", LN + "y = MatMul (n, w)", "NF101",
            inputs=f"{TOKENS}, float[6] beta", affine="float[6] gamma"),
    Refusal("weight is an input", "float b", LN + "y = MatMul (n, w)", "NF207",
            inputs=f"{TOKENS}, float[6,5] w"),
]  # fmt: skip
