"""Running one operator in float64, for the proof: onnx's reference where it is right, a few lines where it is not.

onnx.reference has no grouped ConvTranspose and rounds nothing; casts between float types and dropout are
the identity on real numbers, which is what a proof is about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from normdeploy.fold.affine import Array

Attributes = Mapping[str, Any]


def run(
    op_type: str, attributes: Attributes, inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1
) -> list[Array]:
    """The outputs of one operator of the default domain on ``inputs`` (float inputs in float64)."""
    own = _OWN.get(op_type)
    if own is not None:
        return [np.asarray(own(attributes, *inputs))]
    names = [f"i{index}" if item is not None else "" for index, item in enumerate(inputs)]
    node = onnx.helper.make_node(op_type, names, [f"o{i}" for i in range(outputs)], **attributes)
    info = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "one", [info(name) for name in names if name], [info(f"o{i}") for i in range(outputs)]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name: item for name, item in zip(names, inputs, strict=True) if name}
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


def _identity(attributes: Attributes, x: Array, *others: Any) -> Array:
    del attributes, others
    return x


def _batch_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    """ONNX specification, BatchNormalization-15: (x - mean) / sqrt(var + epsilon) * scale + bias."""
    channels = (1, -1, *(1,) * (x.ndim - 2))
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    centred = x - mean.reshape(channels)
    return centred / np.sqrt(var.reshape(channels) + eps) * scale.reshape(channels) + bias.reshape(channels)


def _layer_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array | None = None) -> Array:
    """ONNX specification, LayerNormalization-17 (Ba et al. 2016, arXiv 1607.06450)."""
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    eps = float(np.float32(attributes.get("epsilon", 1e-5)))
    y: Array = centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + eps) * scale
    return y if bias is None else y + bias


def _conv(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """ONNX specification, Conv-11: correlation, as one matrix product a group over sliding windows."""
    kernel = weight.shape[2:]
    spatial = len(kernel)
    strides = attributes.get("strides") or [1] * spatial
    dilations = attributes.get("dilations") or [1] * spatial
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(attributes, x.shape[2:], spans, strides)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + spatial)))
    picks = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    windows = windows[picks]
    groups = attributes.get("group", 1)
    batch, cells = x.shape[0], windows.shape[2 : 2 + spatial]
    # (batch, group, in, cells..., kernel...) -> (group, batch * cells, in * kernel)
    rows = windows.reshape(batch, groups, x.shape[1] // groups, int(np.prod(cells)), int(np.prod(kernel)))
    rows = rows.transpose(1, 0, 3, 2, 4).reshape(groups, batch * int(np.prod(cells)), -1)
    columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    products = rows @ columns if rows.any() else np.zeros((groups, rows.shape[1], columns.shape[2]))
    y = products.reshape(groups, batch, int(np.prod(cells)), -1).transpose(1, 0, 3, 2)
    y = y.reshape(batch, weight.shape[0], *cells)
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * spatial)


def _pads(
    attributes: Attributes, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return [(0, 0)] * len(sizes)
    if auto_pad == "NOTSET":
        pads = attributes.get("pads") or [0] * 2 * len(sizes)
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(sizes, spans, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if auto_pad == "SAME_UPPER" else [(high, low) for low, high in halves]


def _conv_transpose(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """ONNX specification, ConvTranspose-11: every input cell adds its kernel, strided, then the pads are cut off."""
    groups, spatial = attributes.get("group", 1), x.ndim - 2
    kernel, per_group = weight.shape[2:], weight.shape[1]
    strides = attributes.get("strides") or [1] * spatial
    dilations = attributes.get("dilations") or [1] * spatial
    extra = attributes.get("output_padding") or [0] * spatial
    full = [
        s * (n - 1) + d * (k - 1) + 1 + o
        for s, n, d, k, o in zip(strides, x.shape[2:], dilations, kernel, extra, strict=True)
    ]
    y = np.zeros((x.shape[0], groups * per_group, *full))
    grouped_x = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    grouped_w = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in itertools.product(*(range(k) for k in kernel)):
        weights = grouped_w.reshape(*grouped_w.shape[:3], -1)[..., np.ravel_multi_index(tap, kernel)]
        part = np.einsum("bgi...,gio->bgo...", grouped_x, weights)
        cells = tuple(
            slice(d * t, d * t + s * n, s) for d, t, s, n in zip(dilations, tap, strides, x.shape[2:], strict=True)
        )
        y[(slice(None), slice(None), *cells)] += part.reshape(x.shape[0], -1, *x.shape[2:])
    cuts = _transpose_cuts(attributes, x.shape[2:], full, strides)
    y = y[(slice(None), slice(None), *(slice(a, n - b) for (a, b), n in zip(cuts, full, strict=True)))]
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * spatial)


def _transpose_cuts(
    attributes: Attributes, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    wanted = attributes.get("output_shape")
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if wanted is None and auto_pad in ("NOTSET", "VALID"):
        return _pads(attributes, sizes, [1] * len(sizes), strides)
    wanted = list(wanted or [n * s for n, s in zip(sizes, strides, strict=True)])[-len(sizes) :]
    totals = [max(n - want, 0) for n, want in zip(full, wanted, strict=True)]
    if auto_pad == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


_OWN: dict[str, Callable[..., Array]] = {
    "Identity": _identity,
    "Cast": _identity,
    "Dropout": _identity,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
}
