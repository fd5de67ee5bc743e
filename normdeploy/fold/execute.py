"""Running one operator in float64, for the proof: onnx's reference where it is right, a few lines where it is not.

Casts between float types and dropout are the identity on real numbers, which is what a proof is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_resize import Resize as _ReferenceResize

from normdeploy.fold import products, windows
from normdeploy.fold.affine import Array

Attributes = Mapping[str, Any]


def run(
    op_type: str, attributes: Attributes, inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1
) -> list[Array]:
    """The outputs of one operator of the default domain on ``inputs``; float ones are in float64, but see HEAVY."""
    own = _OWN.get(op_type)
    if own is not None:
        results = own(attributes, *inputs)
        return list(results) if isinstance(results, tuple) else [np.asarray(results)]
    if op_type == "Upsample" or (op_type == "Resize" and opset < 11):  # the reference knows neither
        op_type, attributes, inputs, opset = "Resize", *_as_resize(attributes, inputs), 13
    names = [f"i{index}" if item is not None else "" for index, item in enumerate(inputs)]
    node = onnx.helper.make_node(op_type, names, [f"o{i}" for i in range(outputs)], **attributes)
    feeds = {name: item for name, item in zip(names, inputs, strict=True) if name}
    with np.errstate(all="ignore"):
        return list(_reference(node.SerializeToString(deterministic=True), opset).run(None, feeds))


@lru_cache(maxsize=256)  # to make one takes longer than to run it, and a network repeats its operators
def _reference(serialized: bytes, opset: int) -> ReferenceEvaluator:
    """What runs one node."""
    node, info = onnx.NodeProto.FromString(serialized), onnx.helper.make_empty_tensor_value_info
    inputs, outputs = [info(name) for name in node.input if name], [info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model, new_ops=[Resize])


HEAVY = frozenset({"Conv", "MatMul"})
"""Operators whose weight, input 1, may be of any float dtype; it is not converted as a whole."""


class Resize(_ReferenceResize):
    """The reference computes the cubic weights in float32: it reads its coefficient as one."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> Any:
        attributes["cubic_coeff_a"] = float(attributes["cubic_coeff_a"])
        return super()._run(*inputs, **attributes)


def _identity(attributes: Attributes, x: Array, *others: Any) -> Array:
    del attributes, others
    return x


def _batch_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    """ONNX specification, BatchNormalization-15: (x - mean) / sqrt(var + epsilon) * scale + bias."""
    channels = (1, -1, *(1,) * (x.ndim - 2))
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    centred = x - mean.reshape(channels)
    return centred / np.sqrt(var.reshape(channels) + eps) * scale.reshape(channels) + bias.reshape(channels)


def _layer_normalization(
    attributes: Attributes, x: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, Array, Array]:
    """ONNX specification, LayerNormalization-17 (Ba et al. 2016, arXiv 1607.06450): y, mean, inverse deviation."""
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    deviation = np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + eps)
    y: Array = (x - mean) / deviation * scale
    return y if bias is None else y + bias, mean, 1.0 / deviation


def _rms_normalization(attributes: Attributes, x: Array, scale: Array) -> Array:
    """ONNX specification, RMSNormalization-23 (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    y: Array = x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + eps) * scale
    return y


def _global_max_pool(attributes: Attributes, x: Array) -> Array:
    """ONNX specification, GlobalMaxPool-22; the reference knows images only."""
    del attributes
    y: Array = x.max(axis=tuple(range(2, x.ndim)), keepdims=True)
    return y


def _group_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    """ONNX specification, GroupNormalization-21 (Wu & He 2018, arXiv 1803.08494); the reference rounds to float32."""
    groups = x.reshape(x.shape[0], attributes["num_groups"], -1)
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    centred = groups - groups.mean(axis=-1, keepdims=True)
    normalized = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)).reshape(x.shape)
    channels = (1, -1, *(1,) * (x.ndim - 2))
    y: Array = normalized * scale.reshape(channels) + bias.reshape(channels)
    return y


def _instance_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    """ONNX specification, InstanceNormalization-6 (Ulyanov et al. 2016, arXiv 1607.08022): a group for each channel."""
    return _group_normalization({**attributes, "num_groups": x.shape[1]}, x, scale, bias)


def _prelu(attributes: Attributes, x: Array, slope: Array) -> Array:
    """ONNX specification, PRelu-9 (He et al. 2015, arXiv 1502.01852)."""
    del attributes
    y: Array = np.where(x < 0, slope * x, x)
    return y


def _pad(attributes: Attributes, x: Array, *parameters: np.ndarray | None) -> Array:
    """ONNX specification, Pad-23: negative pads cut cells off, which the reference does not know."""
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


def _squeeze(attributes: Attributes, x: Array, axes: np.ndarray | None = None) -> Array:
    """ONNX specification, Squeeze-13; the reference takes negative axes from opset 13 on only."""
    named = attributes.get("axes") if axes is None else axes.tolist()
    return np.squeeze(x, None if named is None else tuple(named))


def _unsqueeze(attributes: Attributes, x: Array, axes: np.ndarray | None = None) -> Array:
    """ONNX specification, Unsqueeze-13; negative axes are those of the result."""
    return np.expand_dims(x, tuple(attributes["axes"] if axes is None else axes.tolist()))


def _dequantize_linear(
    attributes: Attributes, codes: np.ndarray, scale: Array, zero: np.ndarray | None = None
) -> Array:
    """ONNX specification, DequantizeLinear-23 without blocks; the reference knows it from opset 19 on."""
    axis = attributes.get("axis", 1)

    def along(a: np.ndarray) -> np.ndarray:  # one number a slice of the axis
        return a.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)]) if a.ndim else a

    shifted: Array = codes.astype(np.float64) - (0.0 if zero is None else along(zero).astype(np.float64))
    y: Array = shifted * along(scale)
    return y


def _as_resize(
    attributes: Attributes, inputs: Sequence[np.ndarray | None]
) -> tuple[Attributes, list[np.ndarray | None]]:
    """ONNX specification, Upsample-7 (scales an attribute), Upsample-9 and Resize-10 (scales an input)."""
    scales = inputs[1] if len(inputs) > 1 else np.asarray(attributes["scales"], np.float64)
    mode = attributes.get("mode", "nearest")
    placed = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return placed, [inputs[0], None, scales]


_OWN: dict[str, Callable[..., Array | tuple[Array, ...]]] = {
    "Identity": _identity,
    "Cast": _identity,
    "Dropout": _identity,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "SimplifiedLayerNormalization": _rms_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "PRelu": _prelu,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "DequantizeLinear": _dequantize_linear,
    "MatMul": lambda attributes, a, b: products.matmul(a, b),
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    "GlobalMaxPool": _global_max_pool,
}
