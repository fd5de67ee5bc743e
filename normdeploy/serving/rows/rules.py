"""What the outputs of each operator depend on, as the ONNX operator specification and ONNX Runtime's define them.

A rule may say too much and never too little. An operator without one makes each element depend on all that it is given.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from normdeploy.serving.rows.call import Call, Mask, everything, mixed_along, together


def unknown(call: Call) -> Sequence[Mask]:
    """Let every element depend on everything."""
    return [np.broadcast_to(call.rest(), call.shapes[index]) for index in sorted(call.shapes)]


def elementwise(call: Call) -> Sequence[Mask]:
    """Combine elements at the same place, broadcast."""
    found = together(*(mask for mask in call.masks if mask is not None))
    return [found] * len(call.node.output)


def first(call: Call) -> Sequence[Mask]:
    """Take the first input element by element, and whole the others: scales, seeds, a type."""
    return [call.mask(0) | call.rest(0)] * len(call.node.output)


def type_of_second(call: Call) -> Sequence[Mask]:
    """Take the first input; of the second only the type."""
    return [call.mask(0)]


def moved(call: Call) -> Sequence[Mask]:
    """Run the operator itself on the masks: elements go elsewhere."""
    feeds = {}
    for index, name in enumerate(call.node.input):
        if name:
            feeds[name] = call.values[index] if index in call.values else call.mask(index)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in feeds]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in call.node.output]
    graph = onnx.helper.make_graph([call.node], "moved", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.opset)])
    return [np.asarray(each).astype(np.uint8) for each in ReferenceEvaluator(model).run(None, feeds)]


def padded(call: Call) -> Sequence[Mask]:
    """Pad, and cut where a pad is negative; what is put in depends on what its value does."""
    data = call.mask(0)
    pads, axes = call.axes("pads", 1) or (), call.axes("axes", 3) or range(data.ndim)
    pairs = {axis % data.ndim: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    widths = [pairs.get(axis, (0, 0)) for axis in range(data.ndim)]
    for axis, (before, after) in enumerate(widths):
        data = data.take(range(max(-before, 0), data.shape[axis] - max(-after, 0)), axis)
    mode = call.attributes.get("mode", b"constant").decode()
    filled: Any = {"constant_values": call.mask(2).ravel()[0]} if mode == "constant" else {}
    added: Any = [(max(before, 0), max(after, 0)) for before, after in widths]
    return [np.pad(data, added, mode, **filled)]


def reduced(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axes."""
    data, axes = call.mask(0), call.axes()
    if not axes:
        if call.attributes.get("noop_with_empty_axes", 0):
            return [data]
        axes = tuple(range(data.ndim))
    return [_kept(call, mixed_along(data, axes), axes)]


def searched(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axis."""
    axes = (call.attributes.get("axis", 0),)
    return [_kept(call, mixed_along(call.mask(0), axes), axes)]


def _kept(call: Call, mask: Mask, axes: tuple[int, ...]) -> Mask:
    return mask if call.attributes.get("keepdims", 1) else mask.squeeze(axes)


def softmax(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axis; below opset 13 along all axes from it on."""
    data = call.mask(0)
    axis = call.attributes.get("axis", -1 if call.opset >= 13 else 1) % max(data.ndim, 1)
    axes = (axis,) if call.opset >= 13 else tuple(range(axis, data.ndim))
    return [np.broadcast_to(mixed_along(data, axes), data.shape)]


def cumulated(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axis, those behind too."""
    data = call.mask(0)
    return [np.broadcast_to(mixed_along(data, call.axes("axis") or (0,)), data.shape)]


def normalized_along(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axes that are normalized over."""
    data = call.mask(0)
    default = {"LpNormalization": (-1,), "LRN": (1,)}.get(call.node.op_type, (0, 2, 3))
    axes = call.axes() or call.axes("axis") or default
    return [np.broadcast_to(mixed_along(data, axes), data.shape)]


def top(call: Call) -> Sequence[Mask]:
    """Mix all elements along the axis, of which k are left."""
    data, axis = call.mask(0), call.attributes.get("axis", -1)
    shape = list(data.shape)
    shape[axis] = int(call.values[1].item()) if 1 in call.values else call.attributes["k"]
    return [np.broadcast_to(mixed_along(data, (axis,)), shape)] * 2


def layer_norm(call: Call) -> Sequence[Mask]:
    """Mix all elements from the axis on; the mean and the deviation follow."""
    data = call.mask(0)
    axes = tuple(range(call.attributes.get("axis", -1) % data.ndim, data.ndim))
    statistics = mixed_along(data, axes)
    return [np.broadcast_to(statistics | call.rest(0), data.shape), statistics, statistics][: len(call.node.output)]


def skip_norm(call: Call) -> Sequence[Mask]:
    """Sum two inputs, normalize over the last axis; the fourth output is the sum."""
    total = call.mask(0) | call.mask(1)
    statistics = mixed_along(total, (-1,)) | call.rest(0, 1)
    found = [np.broadcast_to(statistics, total.shape), statistics, statistics, total | call.rest(0, 1)]
    return found[: len(call.node.output)]


def matmul(call: Call) -> Sequence[Mask]:
    """Mix a row of the one and a column of the other."""
    return [_product(call.mask(0), call.mask(1)) | call.rest(0, 1)]


def quantized_matmul(call: Call) -> Sequence[Mask]:
    """Mix as ``matmul`` does; a scale and a zero point stand behind each operand."""
    return [_product(call.mask(0), call.mask(3)) | call.rest(0, 3)]


def _product(a: Mask, b: Mask) -> Mask:
    rows = mixed_along(a, (-1,)) if a.ndim > 1 else mixed_along(a, (-1,))[None]
    columns = mixed_along(b, (-2,)) if b.ndim > 1 else mixed_along(b, (-1,))[:, None]
    found = rows | columns
    found = found if a.ndim > 1 else found[..., 0, :]
    return found if b.ndim > 1 else found[..., 0]


def gemm(call: Call) -> Sequence[Mask]:
    """Mix as ``matmul`` does, and add the element of C."""
    a = call.mask(0).T if call.attributes.get("transA", 0) else call.mask(0)
    b = call.mask(1).T if call.attributes.get("transB", 0) else call.mask(1)
    return [_product(a, b) | call.mask(2)]


def einsum(call: Call) -> Sequence[Mask]:
    """Mix each operand along the letters that the result has not, and put it at the places of the others."""
    *operands, result = letters(call)
    found = np.zeros(call.shapes[0], np.uint8)
    for index, own in enumerate(operands):
        if len(set(own)) != len(own):
            return unknown(call)  # a diagonal
        data = call.mask(index)
        away = tuple(place for place, letter in enumerate(own) if letter not in result)
        kept = [letter for letter in own if letter in result]
        data = np.bitwise_or.reduce(data, axis=away) if away else data
        data = data.transpose(sorted(range(len(kept)), key=lambda place: result.index(kept[place])))
        found = found | data[tuple(slice(None) if letter in kept else None for letter in result)]
    return [found]


def letters(call: Call) -> list[str]:
    """Return the letters of each operand and of the result, an ellipsis as capitals of its own."""
    equation = call.attributes["equation"].decode().replace(" ", "")
    left, _, right = equation.partition("->")
    operands = left.split(",")
    if "->" not in equation:
        plain = left.replace(",", "").replace("...", "")
        right = "..." * ("..." in left) + "".join(sorted(each for each in set(plain) if plain.count(each) == 1))
    widths = [call.mask(index).ndim - len(each.replace("...", "")) for index, each in enumerate(operands)]
    spare = [letter for letter in string.printable if letter not in equation and letter not in "., \n"]
    most = max((width for width, each in zip(widths, operands, strict=True) if "..." in each), default=0)
    named = [
        each.replace("...", "".join(spare[most - width : most])) for each, width in zip(operands, widths, strict=True)
    ]
    return [*named, right.replace("...", "".join(spare[:most]))]


def samples(call: Call) -> Sequence[Mask]:
    """Mix what lies in one entry of axis 0 of the first input; the other inputs go to all."""
    return _by_sample(call, {0})


def all_samples(call: Call) -> Sequence[Mask]:
    """Mix as ``samples`` does every input with as many entries along axis 0, but for a mask of fewer than 4 axes."""
    count, masks = call.mask(0).shape[0], enumerate(call.masks)
    apart = {place for place, mask in masks if mask is not None and mask.shape[:1] == (count,)}
    shared = call.node.op_type == "Attention" and call.mask(3).ndim < 4
    return _by_sample(call, apart - {3} if shared else apart)


def _by_sample(call: Call, apart: set[int]) -> Sequence[Mask]:
    parts = [call.mask(index) for index in sorted(apart)]
    each = together(*(np.bitwise_or.reduce(part, axis=tuple(range(1, part.ndim))) for part in parts)) | call.rest(
        *apart
    )
    made = []
    for index in sorted(call.shapes):
        shape = call.shapes[index]
        fits = shape[:1] == each.shape
        made.append(np.broadcast_to(each.reshape([-1, *[1] * (len(shape) - 1)]) if fits else everything(each), shape))
    return made


def recurrent(call: Call) -> Sequence[Mask]:
    """Mix time and features, not sequences: axis 1 of X and of the first states, 0 in layout 1."""
    axis = 0 if call.attributes.get("layout", 0) else 1
    x = call.mask(0)
    count, each = x.shape[axis], np.bitwise_or.reduce(x, axis=tuple({0, 1, 2} - {axis}))
    for index in (5, 6):
        state = call.mask(index)
        each = each | (np.bitwise_or.reduce(state, axis=tuple({0, 1, 2} - {axis})) if state.ndim == 3 else state)
    each = each | call.mask(4) | call.rest(0, 4, 5, 6)
    made = []
    for index in sorted(call.shapes):
        shape = call.shapes[index]
        place = 0 if axis == 0 else len(shape) - 2
        made.append(np.broadcast_to(each.reshape([count if at == place else 1 for at in range(len(shape))]), shape))
    return made


def gathered(call: Call) -> Sequence[Mask]:
    """Take what lies there, or anywhere along the axis where rows choose the index, and what the index depends on."""
    data, index = call.mask(0), call.mask(1)
    axis = call.attributes.get("axis", 0) % data.ndim
    chosen = _chosen(call, data, axis)
    found = np.take(chosen, call.values[1].astype(np.int64), axis=axis)
    return [found | index.reshape([*[1] * axis, *index.shape, *[1] * (data.ndim - axis - 1)])]


def gathered_elements(call: Call) -> Sequence[Mask]:
    """Take as ``gathered`` does, index by index."""
    data, index = call.mask(0), call.mask(1)
    axis = call.attributes.get("axis", 0) % data.ndim
    part = tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(index.shape))
    chosen = _chosen(call, data, axis)[part]
    found: Mask = np.take_along_axis(chosen, call.values[1].astype(np.int64), axis)
    return [found | index]


def gathered_nd(call: Call) -> Sequence[Mask]:
    """Take as ``gathered`` does; mix along the axes whose coordinates rows choose."""
    index, first = call.mask(1), call.attributes.get("batch_dims", 0)
    chosen = np.bitwise_or.reduce(index, axis=tuple(range(index.ndim - 1))).nonzero()[0]  # of the coordinates
    axes = tuple(first + place for place in chosen)
    data = np.broadcast_to(mixed_along(call.mask(0), axes), call.mask(0).shape)
    (found,) = moved(Call(call.node, [data, None], call.values, {}, call.opset))
    by_index = np.bitwise_or.reduce(index, axis=-1)
    return [found | by_index.reshape([*by_index.shape, *[1] * (found.ndim - by_index.ndim)])]


def _chosen(call: Call, data: Mask, axis: int) -> Mask:
    """Return what an element at the place of each of ``data`` can be, where rows choose the place along ``axis``."""
    return np.broadcast_to(mixed_along(data, (axis,)), data.shape) if everything(call.mask(1)) else data


def scattered(call: Call) -> Sequence[Mask]:
    """Put updates at their places, or anywhere along the axis where rows choose the place, or what is there is used."""
    if not everything(call.mask(1)) and call.attributes.get("reduction", b"none") == b"none":
        return moved(call)
    if call.node.op_type == "ScatterND":
        return [call.mask(0) | everything(call.mask(1), call.mask(2))]
    put = call.mask(1) | call.mask(2)
    axis = call.attributes.get("axis", 0) % put.ndim
    found = np.array(call.mask(0))
    part = tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(put.shape))
    found[part] |= mixed_along(put, (axis,))
    return [found]


def one_hot(call: Call) -> Sequence[Mask]:
    """Take the index at the place; the values are shared."""
    index = call.mask(0)
    axis = call.attributes.get("axis", -1) % (index.ndim + 1)
    return [np.broadcast_to(np.expand_dims(index, axis) | call.rest(0), call.shapes[0])]
