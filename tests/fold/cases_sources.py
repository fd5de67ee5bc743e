"""Where maps come from, and what they become when they meet."""

from __future__ import annotations

from cases import CONV, IMAGE, Case
from harness import bn, norm

# fmt: off
# A table: a case a row, as wide as the page.

# -- sources of maps -------------------------------------------------------------------------------


def source(name: str, body: str, weights: str, becomes: str = "Conv", **more: object) -> Case:
    """A convolution to 5 channels, then a map from ``c`` to ``y``."""
    return Case(name, "float[2,3,8,11] x", f"{CONV}, {weights}", "c = Conv (x, w, b)\n" +
         body, becomes, **more)  # type: ignore[arg-type]


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
    Case("input normalization into a padded conv: a shift stays", IMAGE, f"{CONV}, float[3,1,1] mean, float[3,1,1] pos",
         "m = Sub (x, mean)\n t = Div (m, pos)\n y = Conv <pads=[1,1,1,1]> (t, w, b)", "Sub Conv"),
    Case("InstanceNorm with running statistics, as torch exports it", "float[2,3,8,11] x",
         f"{CONV}, {bn(5)}, int64[4] to = {{1,10,6,9}}, int64[4] back = {{2,5,6,9}}, int64[1] r = {{2}}",
         "c = Conv (x, w, b)\n q = Reshape (c, to)\n g = Tile (gamma, r)\n b2 = Tile (beta, r)\n m = Tile (mean, r)\n"
         "v = Tile (var, r)\n n = BatchNormalization (q, g, b2, m, v)\n y = Reshape (n, back)",
         "Conv Reshape Reshape"),
    Case("statistics in float64 under a float32 tensor", IMAGE, f"{CONV}, float[5] gamma, float[5] beta, "
         "double[5] mean, double[5] var", "c = Conv (x, w, b)\n" + norm("c", "y"), "Conv"),
]

# -- maps meeting maps -----------------------------------------------------------------------------

COMPOSED = [
    Case("three norms in a row, nothing to go to", IMAGE, f"{bn(3)}, {bn(3, '2')}, {bn(3, '3')}",
         "r = Relu (x)\n" + norm("r", "a") + norm("a", "c", "2") + norm("c", "d", "3") + "y = Relu (d)",
         "Relu BatchNormalization Relu"),
    Case("Mul and Add become no norm", IMAGE, "float[3,1,1] s, float[3,1,1] a",
         "r = Relu (x)\n m = Mul (r, s)\n n = Add (m, a)\n y = Relu (n)", "Relu Mul Add Relu"),
    Case("Sub, Div, Mul, Add become a Mul and an Add", IMAGE,
         "float[3,1,1] mean, float[3,1,1] pos, float[3,1,1] s, float[3,1,1] a",
         "r = Relu (x)\n p = Sub (r, mean)\n q = Div (p, pos)\n m = Mul (q, s)\n n = Add (m, a)\n y = Relu (n)",
         "Relu Mul Add Relu"),
    Case("two scales become one", "float[N,T,3] x", "float[3] s, float k = {0.5}",
         "r = Relu (x)\n m = Mul (r, s)\n n = Mul (m, k)\n y = Relu (n)", "Relu Mul Relu"),
    Case("two shifts become one", "float[N,T,3] x", "float[3] s, float[3] k",
         "r = Relu (x)\n m = Add (r, s)\n n = Sub (m, k)\n y = Relu (n)", "Relu Add Relu"),
    Case("Neg twice is nothing", IMAGE, "float s", "r = Relu (x)\n m = Neg (r)\n n = Neg (m)\n y = Relu (n)",
         "Relu Relu"),
    Case("a norm through a Transpose joins a scale", IMAGE, f"{bn(3)}, float[3] k",
         "r = Relu (x)\n" + norm("r", "n") + "t = Transpose <perm=[0,2,3,1]> (n)\n m = Mul (t, k)\n"
         "u = Transpose <perm=[0,3,1,2]> (m)\n" + "v = BatchNormalization (u, gamma, gamma, mean, var)\n y = Relu (v)",
         "Relu Transpose Transpose BatchNormalization Relu"),
    Case("the scale goes up, the shift goes down", "float[N,3,L] x, float[N,5,L] z",
         f"float[5,3] w, float[7,5,2] v, {bn(5)}",
         "m = MatMul (w, x)\n" + norm("m", "n") + "a = Add (n, z)\n y = Conv (a, v)", "MatMul Add Conv"),
    Case("norm, conv, norm", IMAGE, f"{CONV}, {bn(3)}, {bn(5, '2')}",
         norm("x", "t") + "c = Conv (t, w, b)\n" + norm("c", "y", "2"), "Conv"),
    Case("norm with a negative scale, relu, conv, norm, relu", IMAGE,
         f"{CONV}, float[3] signs = {{0.5, -2.0, 1.5}}, float[3] beta, float[3] mean, float[3] var, {bn(5, '2')}",
         "t = BatchNormalization (x, signs, beta, mean, var)\n" + "r = Relu (t)\n c = Conv (r, w, b)\n" + norm("c",
         "d", "2") + "y = Relu (d)",
         "BatchNormalization Relu Conv Relu"),
    Case("conv, norm, conv, norm", IMAGE, f"{CONV}, float[7,5,3,3] v, {bn(5)}, {bn(7, '2')}",
         "c = Conv (x, w, b)\n" + norm("c", "n") + "d = Conv <pads=[1,1,1,1]> (n, v)\n" + norm("d", "y", "2"),
         "Conv Conv"),
    Case("a norm with identity parameters", IMAGE, "float[3] one = {1,1,1}, float[3] zero = {0,0,0}",
         "r = Relu (x)\n n = BatchNormalization <epsilon=0.0> (r, one, zero, zero, one)\n y = Relu (n)", "Relu Relu"),
]
