"""Which rule an operator has, and what else the walk must know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normdeploy.serving.rows import rules
from normdeploy.serving.rows.call import Call, Mask

Rule = Callable[[Call], Sequence[Mask]]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ELEMENTWISE = _names("""
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos
Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less
LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu
""")
MOVED = _names("""
Concat DepthToSpace Expand Flatten Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
""")
REDUCED = _names("""
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
""")
SAMPLES = _names("""
AveragePool Conv ConvInteger ConvTranspose DeformConv GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
InstanceNormalization LpPool MaxPool Resize Upsample QLinearConv com.microsoft::GroupNorm
""")
ALL_SAMPLES = _names("""
Attention GridSample RotaryEmbedding
com.microsoft::Attention com.microsoft::MultiHeadAttention com.microsoft::RotaryEmbedding
""")
SKIPPING = _names("com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization")

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, rules.elementwise),
    **dict.fromkeys(MOVED, rules.moved),
    **dict.fromkeys(REDUCED, rules.reduced),
    **dict.fromkeys(SAMPLES, rules.samples),
    **dict.fromkeys(ALL_SAMPLES, rules.all_samples),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), rules.softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), rules.searched),
    **dict.fromkeys(("LpNormalization", "LRN", "MeanVarianceNormalization"), rules.normalized_along),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), rules.layer_norm),
    **dict.fromkeys(SKIPPING, rules.skip_norm),
    **dict.fromkeys(("MatMul", "MatMulInteger"), rules.matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), rules.recurrent),
    **dict.fromkeys(("Dropout", "QuantizeLinear", "DequantizeLinear", "BatchNormalization"), rules.first),
    **dict.fromkeys(("ScatterElements", "ScatterND"), rules.scattered),
    "CastLike": rules.type_of_second,
    "CumSum": rules.cumulated,
    "Einsum": rules.einsum,
    "Gather": rules.gathered,
    "GatherElements": rules.gathered_elements,
    "GatherND": rules.gathered_nd,
    "Gemm": rules.gemm,
    "OneHot": rules.one_hot,
    "Pad": rules.padded,
    "QLinearMatMul": rules.quantized_matmul,
    "TopK": rules.top,
}
"""Full name of an operator → its rule."""

INDICES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("CumSum", "Expand", "Reshape", "Tile", "TopK", "Split", "Squeeze", "Unsqueeze", "Trilu"), (1,)),
    **dict.fromkeys(REDUCED, (1,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), (1,)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), (1,)),
    **dict.fromkeys(("AffineGrid", "CenterCropPad", "Upsample"), (1,)),
    "ConstantOfShape": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
"""Full name → which inputs say where, and not what: their values are needed."""
FOLLOWED = frozenset({"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"})
"""Operators whose rules take indices that rows choose; of any other nothing is known then."""
