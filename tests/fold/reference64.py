"""An independent float64 truth: onnx's reference evaluator on the model with everything in float64.

PyTorch stands in where the reference is wrong or lacks a case: it has no grouped ConvTranspose and no Upsample,
confuses the axes of pads in MaxPool, cannot cut with Pad, and takes BatchNormalization below opset 14 for training.
Nothing of normdeploy takes part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from attention64 import Attention
from norms64 import NORMS
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from recurrence64 import RECURRENT
from sampling64 import GridSample

Arrays = dict[str, np.ndarray]
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def truth(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs of ``proto`` with all its numbers in float64."""
    wide = in_float64(proto)
    evaluator = ReferenceEvaluator(wide, new_ops=OPERATORS)
    inputs = {name: array.astype(np.float64) if is_float(array) else array for name, array in feeds.items()}
    with np.errstate(all="ignore"):
        results = evaluator.run(None, inputs)
    return {info.name: np.asarray(array) for info, array in zip(proto.graph.output, results, strict=True)}


def is_float(array: np.ndarray) -> bool:
    """Whether ``array`` holds floating-point numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def in_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` with every float tensor, type and cast in float64."""
    wide = copy.deepcopy(proto)
    for graph in (wide.graph, *wide.functions):
        _widen(graph)
    return wide


def _widen(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    if isinstance(graph, onnx.GraphProto):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in FLOATS:
                info.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("t"):
                _widen_tensor(attr.t)
            elif node.op_type == "Constant" and attr.name in ("value_float", "value_floats"):
                value = np.array(attr.f if attr.name == "value_float" else attr.floats, np.float64)
                attr.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
            elif node.op_type == "Cast" and attr.name == "to" and attr.i in FLOATS:
                attr.i = TensorProto.DOUBLE
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                _widen(body)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


# -- operators -------------------------------------------------------------------------------------


def _each(attributes: Mapping[str, Any], name: str, default: int, count: int) -> list[int]:
    return list(attributes.get(name) or [default] * count)


def _flat(pads: Sequence[int]) -> list[int]:
    """ONNX pads (all first cells, then all last) in PyTorch's order (pairs, last axis first)."""
    half = len(pads) // 2
    return [int(p) for i in reversed(range(half)) for p in (pads[i], pads[half + i])]


def _same_pads(sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], auto_pad: str) -> list[int]:
    totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(sizes, spans, strides, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if auto_pad == "SAME_UPPER" else large + small


def _tensors(*arrays: np.ndarray | None) -> list[Any]:
    return [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]


class Conv(OpRun):
    """PyTorch's convolution under the ONNX name."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[np.ndarray]:
        x, w, b = _tensors(*inputs, *[None] * (3 - len(inputs)))
        spatial, auto_pad = x.ndim - 2, attributes.get("auto_pad")
        strides, dilations = (_each(attributes, name, 1, spatial) for name in ("strides", "dilations"))
        pads = _each(attributes, "pads", 0, 2 * spatial)
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
            pads = _same_pads(x.shape[2:], spans, strides, auto_pad)
        conv = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        padded = F.pad(x, _flat(pads))
        return (conv(padded, w, b, stride=strides, dilation=dilations, groups=attributes.get("group") or 1).numpy(),)


class ConvTranspose(OpRun):
    """PyTorch's transposed convolution under the ONNX name: full, then cut."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[np.ndarray]:
        if attributes.get("output_shape") or attributes.get("auto_pad") not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("no test needs it")
        x, w, b = _tensors(*inputs, *[None] * (3 - len(inputs)))
        spatial = x.ndim - 2
        strides, dilations = (_each(attributes, name, 1, spatial) for name in ("strides", "dilations"))
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        full = conv(x, w, None, stride=strides, dilation=dilations, groups=attributes.get("group") or 1)
        pads, extra = _each(attributes, "pads", 0, 2 * spatial), _each(attributes, "output_padding", 0, spatial)
        cuts = [-p for p in pads[:spatial]] + [o - p for o, p in zip(extra, pads[spatial:], strict=True)]
        y = F.pad(full, _flat(cuts))
        return ((y if b is None else y + b.reshape(-1, *[1] * spatial)).numpy(),)


class MaxPool(OpRun):
    """PyTorch's max pool under the ONNX name."""

    op_domain = ""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, np.ndarray]:
        if any(attributes.get(name) not in (None, 0, "NOTSET") for name in ("auto_pad", "ceil_mode", "storage_order")):
            raise NotImplementedError("no test needs it")
        spatial = x.ndim - 2
        pads = _flat(_each(attributes, "pads", 0, 2 * spatial))
        padded = F.pad(torch.from_numpy(np.array(x)), pads, value=-float("inf"))
        places = F.pad(torch.arange(x.size, dtype=torch.float64).reshape(x.shape), pads)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
        steps = {"stride": attributes.get("strides") or 1, "dilation": attributes.get("dilations") or 1}
        y, i = pool(padded, attributes["kernel_shape"], **steps, return_indices=True)
        indices = places.flatten(2).gather(2, i.flatten(2)).reshape(i.shape).to(torch.int64)
        return y.numpy(), indices.numpy()


class Pad(OpRun):
    """PyTorch's constant padding, which may cut; numpy's in the other modes."""

    op_domain = ""

    def _run(self, x: np.ndarray, *inputs: Any, **attributes: Any) -> tuple[np.ndarray]:
        pads, value, axes = (*inputs, None, None, None)[:3]
        if axes is not None:
            raise NotImplementedError("no test needs it")
        pads = [int(p) for p in (attributes["pads"] if pads is None else pads)]
        mode = attributes.get("mode") or "constant"
        if mode != "constant":
            return (np.pad(x, np.reshape(pads, (2, -1)).T, mode=mode),)
        fill = attributes.get("value") or 0.0 if value is None else float(np.asarray(value).reshape(()))
        return (F.pad(torch.from_numpy(np.array(x)), _flat(pads), value=fill).numpy(),)


class BatchNormalization(OpRun):
    """PyTorch's, at inference."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[np.ndarray]:
        if attributes.get("training_mode"):
            raise NotImplementedError("no test needs it")
        x, scale, bias, mean, var = _tensors(*inputs)
        eps = float(np.float32(attributes["epsilon"]))
        return (F.batch_norm(x, mean, var, scale, bias, training=False, eps=eps).numpy(),)


class Upsample(OpRun):
    """Nearest cells, whole factors."""

    op_domain = ""

    def _run(self, x: np.ndarray, *inputs: Any, **attributes: Any) -> tuple[np.ndarray]:
        if attributes.get("mode") not in (None, "nearest"):
            raise NotImplementedError("no test needs it")
        for axis, factor in enumerate(inputs[0] if inputs else attributes["scales"]):
            x = np.repeat(x, int(factor), axis)
        return (x,)


OPERATORS = [
    *(Conv, ConvTranspose, MaxPool, Pad, BatchNormalization, Upsample, Attention, GridSample),
    *RECURRENT,
    *NORMS,
]
