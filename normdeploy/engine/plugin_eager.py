"""A plugin's operator in eager PyTorch: the kernel on a GPU, elsewhere float64 rounded once, and float64 as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normdeploy.engine.plugin import OPERATORS, QUANTIZED, Operator
from normdeploy.kernels import ops

_OPERATORS = {operator.name: operator for operator in OPERATORS}


def run(name: str, attributes: Mapping[str, Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs of the plugin ``name`` on ``inputs``, by ``torch.ops.normdeploy``.

    Args:
        name: such as ``AddLayerNorm``.
        attributes: of its ONNX node.
        inputs: as the plugin takes them: x of any shape, gamma and beta of the axes that the norm goes over.

    Raises:
        KeyError: there is no such plugin, or an attribute is missing.
    """
    operator, axis = _OPERATORS[name], int(attributes["axis"])
    given = dict(zip(operator.inputs, inputs, strict=True))
    shape = given["x"].shape
    features = math.prod(shape[axis:])
    for key in ("x", "residual"):
        if key in given:
            given[key] = given[key].reshape(*shape[:axis], features)
    for key in ("gamma", "beta"):
        if key in given:
            given[key] = given[key].expand(shape[axis:]).reshape(features)
    outputs = _called(operator, given, float(np.float32(attributes["epsilon"])), attributes)
    return tuple(output.reshape(shape) for output in outputs)


def _called(
    operator: Operator, given: Mapping[str, Tensor], eps: float, attributes: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    x, gamma, beta = given["x"], given["gamma"], given.get("beta")
    if operator.is_quantized:
        dtype = getattr(torch, QUANTIZED[int(attributes["to"])])  # PyTorch calls them as the kernel does
        return (ops.layer_norm_quantize(x, gamma, beta, given["scale"], eps, dtype),)
    if "residual" in given:
        return tuple(ops.add_layer_norm(x, given["residual"], gamma, beta, eps))
    if beta is None:
        return (ops.rms_norm(x, gamma, eps),)
    return (ops.layer_norm(x, gamma, beta, eps),)
