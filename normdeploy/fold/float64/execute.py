"""Formulas of operators in float64, where onnx's reference has none or is not right, and that reference for the rest.

A formula takes the attributes by name, and the inputs. Casts between float types and dropout are the identity on real
numbers, which is what a proof is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_resize import Resize as _ReferenceResize

from normdeploy.fold.affine import Array
from normdeploy.fold.float64 import products
from normdeploy.fold.operators.basics import RESIZE

Attributes = Mapping[str, Any]


def reference(
    op_type: str, attributes: Attributes, inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1
) -> list[Array]:
    """Return the outputs of one operator of ONNX on ``inputs``, by onnx's reference; float ones are in float64."""
    names = [f"i{index}" if item is not None else "" for index, item in enumerate(inputs)]
    node = onnx.helper.make_node(op_type, names, [f"o{i}" for i in range(outputs)], **attributes)
    feeds = {name: item for name, item in zip(names, inputs, strict=True) if name}
    with np.errstate(all="ignore"):
        return list(_reference(node.SerializeToString(deterministic=True), opset).run(None, feeds))


@lru_cache(maxsize=256)  # to make one takes longer than to run it, and a network repeats its operators
def _reference(serialized: bytes, opset: int) -> ReferenceEvaluator:
    """Return what runs one node."""
    node, info = onnx.NodeProto.FromString(serialized), onnx.helper.make_empty_tensor_value_info
    inputs, outputs = [info(name) for name in node.input if name], [info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model, new_ops=[Resize])


class Resize(_ReferenceResize):
    """The reference computes the cubic weights in float32: it reads its coefficient as one."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> Any:
        attributes["cubic_coeff_a"] = float(attributes["cubic_coeff_a"])
        return super()._run(*inputs, **attributes)


def matmul(attributes: Attributes, a: np.ndarray, b: np.ndarray) -> Array:
    """Evaluate by the ONNX specification, MatMul-13."""
    del attributes
    return products.matmul(a, b)


def identity(attributes: Attributes, x: Array, *others: Any) -> Array:
    """Return the data: on real numbers nothing is cast, and nothing dropped."""
    del attributes, others
    return x


def batch_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    """Evaluate by the ONNX specification, BatchNormalization-15: (x - mean) / sqrt(var + epsilon) * scale + bias."""
    channels = (1, -1, *(1,) * (x.ndim - 2))
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    centred = x - mean.reshape(channels)
    return centred / np.sqrt(var.reshape(channels) + eps) * scale.reshape(channels) + bias.reshape(channels)


def layer_normalization(
    attributes: Attributes, x: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, Array, Array]:
    """Evaluate by the ONNX specification, LayerNormalization-17 (Ba et al. 2016, arXiv 1607.06450): y, mean, inverse
    deviation.
    """
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    deviation = np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + eps)
    y: Array = (x - mean) / deviation * scale
    return y if bias is None else y + bias, mean, 1.0 / deviation


def rms_normalization(attributes: Attributes, x: Array, scale: Array) -> Array:
    """Evaluate by the ONNX specification, RMSNormalization-23 (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    y: Array = x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + eps) * scale
    return y


def global_max_pool(attributes: Attributes, x: Array) -> Array:
    """Evaluate by the ONNX specification, GlobalMaxPool-22; the reference knows images only."""
    del attributes
    y: Array = x.max(axis=tuple(range(2, x.ndim)), keepdims=True)
    return y


def group_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    """Evaluate by the ONNX specification, GroupNormalization-21 (Wu & He 2018, arXiv 1803.08494); the reference
    rounds to float32.
    """
    groups = x.reshape(x.shape[0], attributes["num_groups"], -1)
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    centred = groups - groups.mean(axis=-1, keepdims=True)
    normalized = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)).reshape(x.shape)
    channels = (1, -1, *(1,) * (x.ndim - 2))
    y: Array = normalized * scale.reshape(channels) + bias.reshape(channels)
    return y


def instance_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    """Evaluate by the ONNX specification, InstanceNormalization-6 (Ulyanov et al. 2016, arXiv 1607.08022): a group
    for each channel.
    """
    return group_normalization({**attributes, "num_groups": x.shape[1]}, x, scale, bias)


def prelu(attributes: Attributes, x: Array, slope: Array) -> Array:
    """Evaluate by the ONNX specification, PRelu-9 (He et al. 2015, arXiv 1502.01852)."""
    del attributes
    y: Array = np.where(x < 0, slope * x, x)
    return y


def pad(attributes: Attributes, x: Array, *parameters: np.ndarray | None) -> Array:
    """Evaluate by the ONNX specification, Pad-23: negative pads cut cells off, which the reference does not know."""
    pads, value, axes = (*parameters, None, None, None)[:3]
    counts = [int(n) for n in (attributes["pads"] if pads is None else pads)]
    fill = attributes.get("value", 0.0) if value is None else float(np.asarray(value).reshape(()))
    named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    lows, highs = [0] * x.ndim, [0] * x.ndim
    for axis, low, high in zip(named, counts[: len(counts) // 2], counts[len(counts) // 2 :], strict=True):
        lows[axis], highs[axis] = low, high
    x = x[tuple(slice(max(-low, 0), n - max(-high, 0)) for low, high, n in zip(lows, highs, x.shape, strict=True))]
    added = [(max(low, 0), max(high, 0)) for low, high in zip(lows, highs, strict=True)]
    mode = attributes.get("mode", "constant")
    return np.pad(x, added, constant_values=fill) if mode == "constant" else np.pad(x, added, mode=mode)


def squeeze(attributes: Attributes, x: Array, axes: np.ndarray | None = None) -> Array:
    """Evaluate by the ONNX specification, Squeeze-13; the reference takes negative axes from opset 13 on only."""
    named = attributes.get("axes") if axes is None else axes.ravel().tolist()
    return np.squeeze(x, None if named is None else tuple(named))


def unsqueeze(attributes: Attributes, x: Array, axes: np.ndarray | None = None) -> Array:
    """Evaluate by the ONNX specification, Unsqueeze-13; negative axes are those of the result, a scalar is one."""
    return np.expand_dims(x, tuple(attributes["axes"] if axes is None else axes.ravel().tolist()))


def dequantize_linear(attributes: Attributes, codes: np.ndarray, scale: Array, zero: np.ndarray | None = None) -> Array:
    """Evaluate by the ONNX specification, DequantizeLinear-23; the reference knows it from opset 19 on."""
    axis, block = attributes.get("axis", 1) % max(codes.ndim, 1), attributes.get("block_size", 0)

    def along(a: np.ndarray) -> np.ndarray:  # one number a slice of the axis, or a block of slices
        if block:
            return np.asarray(np.take(a, np.arange(codes.shape[axis]) // block, axis=axis))
        return a.reshape([-1 if i == axis else 1 for i in range(codes.ndim)]) if a.ndim else a

    shifted: Array = codes.astype(np.float64) - (0.0 if zero is None else along(zero).astype(np.float64))
    y: Array = shifted * along(scale)
    return y


def resize(attributes: Attributes, x: Array, *parameters: np.ndarray | None) -> Array:
    """Evaluate by the ONNX specification, Upsample-7 (scales an attribute), Upsample-9 and Resize-10 (an input),
    Resize-11 and on.
    """
    if len(parameters) > 1:
        crops = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        roi = parameters[0] if crops else None  # else ignored: any vector, mostly an empty one
        return reference(RESIZE, attributes, [x, roi, *parameters[1:]], _RESIZE)[0]
    scales = parameters[0] if parameters else np.asarray(attributes["scales"], np.float64)
    mode = attributes.get("mode", "nearest")
    placed = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return reference(RESIZE, placed, [x, None, scales], _RESIZE)[0]


_RESIZE = 19
"""An opset whose Resize has all that those of other opsets have."""
