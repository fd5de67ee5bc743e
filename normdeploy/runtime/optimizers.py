"""Which of ONNX Runtime's graph optimizers crashes it on a model: found by leaving out halves of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normdeploy.runtime.isolated import CrashError, IsolatedRunner
from normdeploy.runtime.onnxruntime import DISABLED_OPTIMIZERS

ALTERS_WEIGHTS = "WeightBiasQuantization"
"""It makes 8-bit weights of float ones behind a QuantizeLinear: another model than the one that was given."""

_KNOWN = ("MatmulTransposeFusion",)
"""Asked first: it crashes on float16 networks that turn their sequence to the front."""

_LISTED = """
    MatmulTransposeFusion ConstantFolding ConstantSharing CommonSubexpressionElimination TransposeOptimizer
    LayerNormFusionL1 LayerNormFusionL2 SimplifiedLayerNormFusion SkipLayerNormFusion BiasSkipLayerNormFusion
    EmbedLayerNormFusion AttentionFusion GroupQueryAttentionFusion GroupQueryAttentionPreNormFusion
    MobileClipSplitForMHA GeluFusionL1 GeluFusionL2 BiasGeluFusion FastGeluFusion QuickGeluFusion BiasSplitGelu
    BiasSoftmaxFusion BiasDropoutFusion MatMulAddFusion MatMulScaleFusion MatMulActivationFusion
    MatMul_BatchNormalization_Fusion GemmActivationFusion GemmSumFusion GemmTransposeFusion ConvAddFusion
    ConvMulFusion ConvBNFusion ConvActivationFusion ConvAddActivationFusion ConvReluFusion PadFusion ReshapeFusion
    DivMulFusion NotWhereFusion GatherToSliceFusion GatherSliceToSplitFusion SliceConcatToSpaceToDepthFusion
    ExpandElimination CastElimination CastChainElimination UnsqueezeElimination NoopElimination EliminateIdentity
    EliminateSlice EliminateDropout ClipQuantRewrite ReluQuantRewrite FuseReluClip PreShapeNodeElimination
    FuseFp16InitializerToFp32NodeTransformer RemoveDuplicateCastTransformer CastFloat16Transformer NchwcTransformer
    NhwcTransformer QDQPropagationTransformer QDQSelectorActionTransformer QDQS8ToU8Transformer
    QDQFinalCleanupTransformer DoubleQDQPairsRemover EnsureUniqueDQForNodeUnit WeightBiasQuantization
    DynamicQuantizeMatMulFusion MatMulIntegerToFloatFusion MatMulNBitsFusion DQMatMulNBitsFusion ConstantFoldingDQ
    Avx2WeightS8ToU8Transformer LabelEncoderFusion FuseInitializersTransformer SplitToSequence StringSplit
    SwiGluFusion
"""
NAMES = tuple(_LISTED.split())
"""What ONNX Runtime 1.32 calls its optimizers; it passes over a name that it does not have."""


def faithful(model: ir.Model) -> dict[str, str]:
    """Return the session options without which ONNX Runtime runs another model than ``model``."""
    quantized = any(node.op_type in ("QuantizeLinear", "FakeQuantize") for node in model.graph.all_nodes())
    return {DISABLED_OPTIMIZERS: ALTERS_WEIGHTS} if quantized else {}


def without(options: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return ``options`` with these optimizers off as well."""
    present = [name for name in options.get(DISABLED_OPTIMIZERS, "").split(",") if name]
    off = list(dict.fromkeys([*present, *names]))
    return {**options, DISABLED_OPTIMIZERS: ",".join(off)} if off else dict(options)


def culprits(crashes: Callable[[Sequence[str]], bool]) -> tuple[str, ...] | None:
    """Return a smallest set of optimizers without which nothing crashes; None where it crashes without any of them.

    ``crashes`` tells whether it does with the given ones off. By QuickXplain (Junker 2004): about 2 k log2(n / k) runs
    for k culprits among n.
    """
    for known in _KNOWN:
        if not crashes([known]):
            return (known,)
    if crashes(NAMES):
        return None
    return _needed(crashes, (), NAMES, grown=False)


def _needed(
    crashes: Callable[[Sequence[str]], bool], off: tuple[str, ...], among: Sequence[str], *, grown: bool
) -> tuple[str, ...]:
    """Return a smallest set of ``among`` that must be off beside ``off``; ``grown`` where ``off`` has just grown."""
    if grown and not crashes(off):
        return ()
    if len(among) == 1:
        return tuple(among)
    first, second = tuple(among[: len(among) // 2]), tuple(among[len(among) // 2 :])
    later = _needed(crashes, off + first, second, grown=True)
    return _needed(crashes, off + later, first, grown=bool(later)) + later


def crash_free(
    path: Path, options: Mapping[str, str], feed: Mapping[str, np.ndarray] | None = None
) -> tuple[str, ...] | None:
    """Return which optimizers must be off for ``path`` to open and run; None where that does not help."""

    def crashes(names: Sequence[str]) -> bool:
        try:
            runner = IsolatedRunner(path, threads=1, options=without(options, names))
            if feed is not None:
                runner(feed)
            runner.close()
        except CrashError:
            return True
        except Exception:  # it runs, and refuses: no crash
            return False
        return False

    return culprits(crashes)
