"""Translations of torch operators to ONNX that differ from torch's own."""

# No "from __future__ import annotations" here: the exporter reads the types from the signature.
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # its type stubs know no value of unknown dtype


def _instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Any:
    """InstanceNorm with running statistics is BatchNormalization; torch's own detours over N * C channels."""
    del momentum, cudnn_enabled
    channels = op.Shape(x, start=1, end=2)
    if weight is None:
        weight = op.Expand(op.CastLike(op.Constant(value_float=1.0), x), channels)
    if bias is None:
        bias = op.Expand(op.CastLike(op.Constant(value_float=0.0), x), channels)
    if use_input_stats:
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)
    return op.BatchNormalization(x, weight, bias, running_mean, running_var, epsilon=eps)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.instance_norm.default: _instance_norm}
"""The ``custom_translation_table`` of torch.onnx.export."""
