"""Norms in float64 for the reference, from their papers: onnx's own compute statistics in float32."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun


class LayerNormalization(OpRun):  # type: ignore[misc]
    """Ba et al. 2016, arXiv 1607.06450 (onnx's reference knows no statistics in float64)."""

    op_domain = ""

    def _run(self, x, scale, bias=None, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axis=axes, keepdims=True)
        inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
        y = (x - mean) * inverse * scale
        return (y if bias is None else y + bias, mean, inverse)


class GroupNormalization(OpRun):  # type: ignore[misc]
    """Wu & He 2018, arXiv 1803.08494 (onnx's reference computes its statistics in float32)."""

    op_domain = ""

    def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        groups = x.reshape(x.shape[0], num_groups, -1)
        groups = groups - groups.mean(-1, keepdims=True)
        groups = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + epsilon)
        channels = (1, -1, *(1,) * (x.ndim - 2))
        return (groups.reshape(x.shape) * scale.reshape(channels) + bias.reshape(channels),)


class SimplifiedLayerNormalization(OpRun):  # type: ignore[misc]
    """onnxruntime's name of RMSNormalization (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    op_domain = ""

    def _run(self, x, scale, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        axes = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + epsilon) * scale,)


NORMS = [LayerNormalization, GroupNormalization, SimplifiedLayerNormalization]
