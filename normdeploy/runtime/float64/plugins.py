"""The operators of TensorRT plugins in float64, by the PyTorch operators that the same kernel is behind."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import torch

from normdeploy.engine import plugin_eager
from normdeploy.engine.plugin import DOMAIN, OPERATORS
from normdeploy.runtime.float64.step import Array, Step, UnknownOperatorError


def _run(name: str, step: Step, *inputs: Array) -> tuple[Array, ...]:
    if step.attribute("plugin_namespace", "") != DOMAIN:
        raise UnknownOperatorError(f"{DOMAIN}::{name}, which is no plugin of this package,")
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
    return tuple(_array(output) for output in plugin_eager.run(name, step.attributes, tensors))


def _array(tensor: torch.Tensor) -> Array:
    if tensor.dtype != torch.float8_e4m3fn:
        return np.asarray(tensor.numpy())
    return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)  # NumPy has no such type of its own


PLUGINS = {(DOMAIN, operator.name): functools.partial(_run, operator.name) for operator in OPERATORS}
"""(Domain, operator) → its rule, called with the step and its inputs."""
