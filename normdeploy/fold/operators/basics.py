"""What reading a graph takes to know of operators: which are constant, which keep the rank, which only move a weight.

This is known before any rule, and imports none.
"""

from __future__ import annotations

import onnx_ir as ir

from normdeploy.graph import operator

CONSTANT = "Constant"
CAST_LIKE = "CastLike"
IDENTITY = "Identity"
RESIZE = "Resize"
SHAPE = "Shape"
DEQUANTIZE = "DequantizeLinear"

ROUNDED = frozenset({"Gemm", "Einsum", "BatchNormalization", "InstanceNormalization", "LayerNormalization"})
"""What is computed of floats: in float64, and rounded once, as no two runtimes compute it alike."""
EVALUATED = ROUNDED | {"Shape", "Split"}
"""What is evaluated of constants beside what cleaning evaluates: onnx's reference was held to ONNX Runtime for these.

It is not right for every operator and every opset. A quantized weight stays quantized: it is edited through its scale.
"""
TRAINING_IS_SAID = 14
"""The opset from which on a BatchNormalization says itself whether it trains."""


def trains_unsaid(kind: str, opset: int) -> bool:
    """Return True for a BatchNormalization that trains where it has more than one output."""
    return kind == "BatchNormalization" and opset < TRAINING_IS_SAID


KEEPS_RANK = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
    | {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
    | {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Identity", "Dropout", "Cast"}
)
"""Operators whose output has the rank of their first input."""

HAS_RANK_OF_WEIGHT = frozenset({"Conv", "ConvTranspose"})
MATRICES = frozenset({"Gemm"})
"""Operators whose output is a matrix."""

MOVED_LAZILY = frozenset({"Transpose", "Cast", "Identity", "Reshape"})
"""Operators behind which a large weight is made anew whenever it is read."""

SIZED_BY_VALUE = frozenset(
    {
        "ConstantOfShape", "Expand", "Tile", "Pad", "Range", "OneHot", "Resize", "Upsample", "HannWindow",
        "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "CenterCropPad", "Col2Im", "MaxUnpool", "AffineGrid",
        "DFT", "STFT", "RoiAlign", "MaxRoiPool", "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "EyeLike",
    }
)  # fmt: skip
"""Operators whose output's size is in a value or an attribute."""
NO_LARGER = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "TopK", "Loop", "StringSplit"})
"""Operators that shape inference does not know the output's size of, and that have no more elements than went in."""

WRITTEN = frozenset(
    {
        "Add", "BatchNormalization", "Constant", "Conv", "GroupNormalization", "Identity", "LayerNormalization", "Mul",
        "RMSNormalization", "SimplifiedLayerNormalization", "Transpose",
    }
)  # fmt: skip
"""Operators that a fold may write."""

UNKNOWN_TO_ONNX = frozenset({"SimplifiedLayerNormalization"})
"""Operators of ONNX Runtime in ONNX's own domain, which the checker does not know."""


def is_norm(node: ir.Node) -> bool:
    """Return whether ``node`` is a norm that is an affine map."""
    return operator(node) == "BatchNormalization"


def is_quantized(producer: ir.Node | None) -> bool:
    """Return whether what ``producer`` makes is stored as integers."""
    return producer is not None and operator(producer) == DEQUANTIZE
