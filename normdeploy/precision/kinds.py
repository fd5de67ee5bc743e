"""The precisions, the operators that decide one, and the norms: names alone, which a runtime needs no graph for."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp16", "bf16"]

HEAVY = frozenset(
    {"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "Attention", "LSTM", "GRU", "RNN"}
)
"""Operators whose dtype decides what a model computes in."""

NORMS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
    }
)
"""Normalization operators of the standard domain."""
