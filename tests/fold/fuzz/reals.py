"""What a graph computes over the real numbers: onnx's reference evaluator with everything in float64.

PyTorch takes the place of the operators that slide a window, and numpy that of the few whose reference is
incomplete or leaves float64. Nothing of normdeploy takes part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnx.inliner
import torch
import torch.nn.functional as F
from attention64 import Attention
from customs import TWINS
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_loop import Loop as ReferenceLoop
from onnx.reference.ops.op_resize import Resize as ReferenceResize
from recurrence64 import RECURRENT
from rounding64 import Rounded, RoundedNorm, imported, round_each
from sampling64 import DeformConv, GridSample

Arrays = dict[str, np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _same(array: np.ndarray) -> np.ndarray:
    return array


class Truth:
    """A model over the real numbers; ``change`` is done to each stored float tensor, still in its own dtype.

    With a ``seed`` each number that is computed is moved by up to so many ``units`` in its last place.
    """

    def __init__(
        self, proto: onnx.ModelProto, change: Change = _same, *, seed: int | None = None, units: float = 1.0
    ) -> None:
        self._names = [info.name for info in proto.graph.output]
        flat = onnx.inliner.inline_local_functions(proto) if proto.functions else proto  # they would lose our operators
        wide = widened(flat, change)
        if seed is not None:
            round_each(wide.graph, seed, units)
            wide.opset_import.append(imported())
        self._evaluator = ReferenceEvaluator(wide, new_ops=OPERATORS)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs by name, floats in float64."""
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, dict(feeds))
        return dict(arrays(zip(self._names, results, strict=True)))


def arrays(results: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by name; those of a sequence by number."""
    for name, result in results:
        if isinstance(result, list):
            yield from ((f"{name}[{index}]", np.asarray(item)) for index, item in enumerate(result))
            yield f"{name}.length", np.array(len(result))
        else:
            yield name, np.asarray(result)


def widened(proto: onnx.ModelProto, change: Change = _same) -> onnx.ModelProto:
    """A copy of ``proto``, which has no functions, with every float tensor, type and cast in float64."""
    wide = copy.deepcopy(proto)
    _compute_constants(wide.graph, {})
    _widen(wide.graph, change, _unmoved(wide.graph))
    return wide


def _dequantized(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A vector of integers times its scale or scales; rounded once."""
    return np.asarray(codes.astype(np.float64) * scale).astype(scale.dtype)


_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {"Add": np.add, "Sqrt": np.sqrt, "DequantizeLinear": _dequantized}


def _is_computed(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type not in _ARITHMETIC or not all(name in known for name in node.input):
        return False
    if node.op_type != "DequantizeLinear":
        return True
    codes = known[node.input[0]]
    return codes.data_type == TensorProto.INT32 and len(codes.dims) == 1 and len(node.input) == 2  # a bias


def _compute_constants(graph: onnx.GraphProto, around: Mapping[str, onnx.TensorProto]) -> None:
    """What the graph computes from constants alone is rounded to its own dtype, as whoever runs it does."""
    known = {**around, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        if node.domain:
            continue
        if node.op_type == "Constant":
            known[node.output[0]] = node.attribute[0].t
        elif _is_computed(node, known):
            array = np.asarray(_ARITHMETIC[node.op_type](*(numpy_helper.to_array(known[n]) for n in node.input)))
            tensor = known[node.output[0]] = numpy_helper.from_array(array, node.output[0])
            node.CopyFrom(helper.make_node("Constant", [], [tensor.name], value=tensor))
        for attr in node.attribute:
            if attr.HasField("g"):
                _compute_constants(attr.g, known)


def unshared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` in which each constant of the main graph is read once: several readers get one each."""
    copied = copy.deepcopy(proto)
    graph = copied.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant" and not node.domain
    }
    read: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in read and name in tensors:
                node.input[index] = f"{name}/{len(graph.initializer)}"
                graph.initializer.add().CopyFrom(tensors[name])
                graph.initializer[-1].name = node.input[index]
            read.add(name)
    return copied


def _unmoved(graph: onnx.GraphProto) -> set[str]:
    """What no change is done to, in a body too: a scale of a Resize that moves makes another shape, and an exponent
    that moves makes no number of a negative one.
    """
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input[1:] if node.op_type in ("Resize", "Upsample", "Pow") and not node.domain else ())
        for attr in node.attribute:
            if attr.HasField("g"):
                found |= _unmoved(attr.g)
    return found


def _widen(graph: onnx.GraphProto, change: Change, unmoved: set[str]) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor, _same if tensor.name in unmoved else change)
    for info in (*graph.input, *graph.output):
        for kind in (info.type, info.type.sequence_type.elem_type, info.type.optional_type.elem_type):
            if kind.HasField("tensor_type") and kind.tensor_type.elem_type in FLOATS:
                kind.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("t"):
                _widen_tensor(attr.t, _same if node.output[0] in unmoved else change)
            elif node.op_type == "Cast" and attr.name == "to" and attr.i in FLOATS:
                attr.i = TensorProto.DOUBLE
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                _widen(body, change, unmoved)


def _widen_tensor(tensor: onnx.TensorProto, change: Change) -> None:
    if tensor.data_type in FLOATS:
        array = change(numpy_helper.to_array(tensor)).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


# -- operators that slide a window -----------------------------------------------------------------


def pads_of(
    sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], auto_pad: str | None, pads: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Cells added before and after each spatial axis (ONNX specification, Conv: auto_pad)."""
    count = len(sizes)
    if auto_pad in (None, "", "NOTSET"):
        flat = list(pads or [0] * 2 * count)
        return list(zip(flat[:count], flat[count:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * count
    totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(sizes, spans, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if auto_pad == "SAME_UPPER" else [(high, low) for low, high in halves]


def with_ceil(
    sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """``pads`` with ceil_mode: a last window may reach past the end, if it starts before the right pad."""
    result = []
    for n, span, stride, (low, high) in zip(sizes, spans, strides, pads, strict=True):
        windows = -(-(low + n + high - span) // stride) + 1
        windows -= (windows - 1) * stride >= low + n
        result.append((low, max(high, (windows - 1) * stride + span - low - n)))
    return result


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.array(array))


def _padded(x: torch.Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    return F.pad(x, [cells for pair in reversed(pads) for cells in pair], value=value)


def _spans(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]


class Conv(OpRun):  # type: ignore[misc]  # onnx has no annotations
    """PyTorch's convolution."""

    op_domain = ""

    def _run(
        self, x: Any, w: Any, b: Any = None, auto_pad: Any = None, dilations: Any = None, group: Any = None,
        kernel_shape: Any = None, pads: Any = None, strides: Any = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        count = x.ndim - 2
        strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
        cells = pads_of(x.shape[2:], _spans(w.shape[2:], dilations), strides, auto_pad, pads)
        conv = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
        y = conv(_padded(_tensor(x), cells), _tensor(w), _tensor(b), strides, 0, dilations, group or 1)
        return (y.numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    """PyTorch's transposed convolution: the full one, then cut."""

    op_domain = ""

    def _run(
        self, x: Any, w: Any, b: Any = None, auto_pad: Any = None, dilations: Any = None, group: Any = None,
        kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None, pads: Any = None,
        strides: Any = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        count = x.ndim - 2
        strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
        extra, pads = list(output_padding or [0] * count), list(pads or [0] * 2 * count)
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
        y = conv(_tensor(x), _tensor(w), None, strides, 0, 0, group or 1, dilations)
        y = _padded(y, [(-pads[i], extra[i] - pads[count + i]) for i in range(count)])
        return ((y if b is None else y + _tensor(b).reshape(-1, *[1] * count)).numpy(),)


class MaxPool(OpRun):  # type: ignore[misc]
    """PyTorch's max pool (onnx's reference confuses the axes of pads)."""

    op_domain = ""

    def _run(
        self, x: Any, auto_pad: Any = None, ceil_mode: Any = None, dilations: Any = None, kernel_shape: Any = None,
        pads: Any = None, storage_order: Any = None, strides: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        count = x.ndim - 2
        strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
        spans = _spans(kernel_shape, dilations)
        cells = pads_of(x.shape[2:], spans, strides, auto_pad, pads)
        if ceil_mode:
            cells = with_ceil(x.shape[2:], spans, strides, cells)
        wide = _padded(_tensor(x), cells, -float("inf"))
        places = _padded(torch.arange(x.size, dtype=torch.float64).reshape(x.shape), cells)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
        y, where = pool(wide, kernel_shape, strides, 0, dilations, return_indices=True)
        indices = places.flatten(2).gather(2, where.flatten(2)).reshape(where.shape).to(torch.int64)
        return y.numpy(), indices.numpy()


class AveragePool(OpRun):  # type: ignore[misc]
    """Sums and counts, each as PyTorch's convolution with a kernel of ones; ceil_mode's own cells never count."""

    op_domain = ""

    def _run(
        self, x: Any, auto_pad: Any = None, ceil_mode: Any = None, count_include_pad: Any = None, dilations: Any = None,
        kernel_shape: Any = None, pads: Any = None, strides: Any = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        count = x.ndim - 2
        strides, dilations = list(strides or [1] * count), list(dilations or [1] * count)
        spans = _spans(kernel_shape, dilations)
        named = pads_of(x.shape[2:], spans, strides, auto_pad, pads)
        cells = with_ceil(x.shape[2:], spans, strides, named) if ceil_mode else named
        beyond = [(a - c, b - d) for (a, b), (c, d) in zip(cells, named, strict=True)]
        ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float64)
        counted = _padded(_padded(ones, named, float(bool(count_include_pad))), beyond)
        conv = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
        kernel = torch.ones(1, 1, *kernel_shape, dtype=torch.float64)
        flat = _padded(_tensor(x), cells).flatten(0, 1).unsqueeze(1)
        sums = conv(flat, kernel, None, strides, 0, dilations)
        y = sums / conv(counted, kernel, None, strides, 0, dilations)
        return (y.reshape(*x.shape[:2], *y.shape[2:]).numpy(),)


class GlobalMaxPool(OpRun):  # type: ignore[misc]
    """The largest cell of each channel (onnx's reference forgets axes)."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


# -- operators whose reference is incomplete -------------------------------------------------------


class Pad(OpRun):  # type: ignore[misc]
    """numpy's padding; negative pads cut cells off."""

    op_domain = ""

    def _run(self, x: Any, pads: Any = None, value: Any = None, axes: Any = None, mode: Any = None) -> tuple[Any]:
        pairs = np.zeros((x.ndim, 2), np.int64)
        pairs[list(range(x.ndim) if axes is None else axes)] = np.asarray(pads).reshape(2, -1).T
        cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pairs, x.shape, strict=True))
        grown = np.maximum(pairs, 0)
        if mode not in (None, "constant"):
            return (np.pad(x[cut], grown, mode=mode),)
        return (np.pad(x[cut], grown, constant_values=0.0 if value is None else float(np.asarray(value).reshape(()))),)


class Resize(ReferenceResize):  # type: ignore[misc]
    """The reference computes the cubic weights in float32, unless its coefficient is a Python float.

    Resize of opset 10, with scales alone, is Upsample.
    """

    op_domain = ""

    def _run(self, *inputs: Any, cubic_coeff_a: Any = None, roi: Any = None, **attributes: Any) -> Any:
        if len(inputs) == 2:
            return _resize_asymmetric(*inputs, attributes["mode"])
        exact = None if cubic_coeff_a is None else float(cubic_coeff_a)
        return super()._run(*inputs, cubic_coeff_a=exact, **attributes)


class Upsample(OpRun):  # type: ignore[misc]
    """Resize before opset 10: asymmetric coordinates, rounded down."""

    op_domain = ""

    def _run(self, x: Any, scale: Any = None, mode: Any = None, scales: Any = None) -> Any:
        return _resize_asymmetric(x, np.asarray(scale if scales is None else scales, np.float32), mode)


def _resize_asymmetric(x: np.ndarray, scales: np.ndarray, mode: str) -> tuple[np.ndarray]:
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    infos = [helper.make_empty_tensor_value_info(name) for name in ("x", "s", "y")]
    graph = helper.make_graph([node], "one", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    return (ReferenceEvaluator(model).run(None, {"x": x, "s": scales})[0],)


class Unsqueeze(OpRun):  # type: ignore[misc]
    """Axes counted from the back belong to the result (onnx's reference takes those of opset 11 for the data's)."""

    op_domain = ""

    def _run(self, x: Any, axes: Any = None) -> tuple[np.ndarray]:
        return (np.expand_dims(x, tuple(int(axis) for axis in axes)),)


class Squeeze(OpRun):  # type: ignore[misc]
    """All axes of size 1, or the named ones, at once."""

    op_domain = ""

    def _run(self, x: Any, axes: Any = None) -> tuple[np.ndarray]:
        return (np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes)),)


class DequantizeLinear(OpRun):  # type: ignore[misc]
    """(q - zero) * scale, per tensor, along one axis, or for blocks of an axis."""

    op_domain = ""

    def _run(
        self, q: Any, scale: Any, zero: Any = None, axis: Any = 1, block_size: Any = 0, **_: Any
    ) -> tuple[np.ndarray]:
        if block_size:
            scale, zero = (
                None if a is None else np.repeat(a, block_size, axis).take(range(q.shape[axis]), axis)
                for a in (scale, zero)
            )
            return ((q.astype(np.float64) - (0 if zero is None else zero.astype(np.float64))) * scale,)
        shape = [-1 if i == (axis or 0) % q.ndim else 1 for i in range(q.ndim)] if scale.ndim else []
        shifted = q.astype(np.float64) - (0 if zero is None else zero.astype(np.float64).reshape(shape))
        return (shifted * scale.reshape(shape),)


class QuantizeLinear(OpRun):  # type: ignore[misc]
    """Rounded to the nearest even, per tensor, to int8."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, **_: Any) -> tuple[np.ndarray]:
        return (np.clip(np.rint(x / scale) + (0 if zero is None else zero), -128, 127).astype(np.int8),)


class BatchNormalization(OpRun):  # type: ignore[misc]
    """ONNX specification, BatchNormalization: at inference, or of its own statistics."""

    op_domain = ""

    def _run(
        self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: Any = None, momentum: Any = None,
        training_mode: Any = None, spatial: Any = None,
    ) -> tuple[np.ndarray, ...]:  # fmt: skip
        running = (mean, var)
        if training_mode:
            others = (0, *range(2, x.ndim))
            mean, var = x.mean(axis=others), x.var(axis=others)
        scale, bias, mean, var = (a.reshape(1, -1, *[1] * (x.ndim - 2)) for a in (scale, bias, mean, var))
        return ((x - mean) / np.sqrt(var + epsilon) * scale + bias, *(running if training_mode else ()))


class LayerNormalization(OpRun):  # type: ignore[misc]
    """ONNX specification, LayerNormalization-17 (the reference knows one stash_type only)."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any = None, axis: Any = None, epsilon: Any = None, **_: Any) -> Any:
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = x - x.mean(axis=axes, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
        return (normal * scale + (0.0 if bias is None else bias),)


class RMSNormalization(OpRun):  # type: ignore[misc]
    """ONNX specification, RMSNormalization-23."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, axis: Any = None, epsilon: Any = None, **_: Any) -> Any:
        axes = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + epsilon) * scale,)


class GroupNormalization(OpRun):  # type: ignore[misc]
    """ONNX specification, GroupNormalization-21 (the reference rounds to float32)."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, epsilon: Any = None, num_groups: Any = None, **_: Any) -> Any:
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(axis=-1, keepdims=True)
        normal = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)).reshape(x.shape)
        scale, bias = (a.reshape(1, -1, *[1] * (x.ndim - 2)) for a in (scale, bias))
        return (normal * scale + bias,)


class MultiHeadAttention(OpRun):  # type: ignore[misc]
    """ONNX Runtime's contrib operator: heads side by side, softmax((q + b_q) (k + b_k)^T * scale) (v + b_v)."""

    op_domain = "com.microsoft"

    def _run(self, *inputs: Any, **_: Any) -> tuple[np.ndarray]:
        q, k, v, bias, *_rest = (*inputs, None)
        parts = [q, k, v]
        if bias is not None:
            ends = np.cumsum([q.shape[-1], k.shape[-1]])
            parts = [part + piece for part, piece in zip(parts, np.split(bias, ends), strict=True)]
        heads = self.num_heads
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in parts)
        scores = q @ k.transpose(0, 1, 3, 2) * (getattr(self, "scale", None) or 1 / np.sqrt(q.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = weights / weights.sum(axis=-1, keepdims=True) @ v
        return (y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1),)


class Optional(OpRun):  # type: ignore[misc]
    """The element itself (onnx's reference wraps it, and hands the wrapping out again)."""

    op_domain = ""

    def _run(self, x: Any = None, **_: Any) -> tuple[Any]:
        return (x,)


class SequenceInsert(OpRun):  # type: ignore[misc]
    """At a place, counted from the back where it is negative (onnx's reference takes the end for the front)."""

    op_domain = ""

    def _run(self, sequence: Any, item: Any, place: Any = None) -> tuple[list[Any]]:
        index = len(sequence) if place is None else int(place)
        index += len(sequence) if index < 0 else 0
        return ([*sequence[:index], item, *sequence[index:]],)


class Loop(ReferenceLoop):  # type: ignore[misc]
    """The reference lays what the rounds give along an axis that is there; it is a new one."""

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> Any:
        with patch.object(np, "vstack", np.stack):
            return super()._run(*inputs, **attributes)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool, Pad, Resize, Upsample, Squeeze, Unsqueeze]
OPERATORS += [DequantizeLinear, QuantizeLinear, BatchNormalization, GroupNormalization]
OPERATORS += [LayerNormalization, RMSNormalization, Attention, MultiHeadAttention, GridSample, DeformConv, *RECURRENT]
OPERATORS += [Loop, Optional, SequenceInsert, Rounded, RoundedNorm, *TWINS]
