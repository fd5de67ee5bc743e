"""The axes of its inputs along which an operator does more than treat each entry by itself.

Along an axis that has an entry for each row, whole or among others, none of that may be: it would take rows together,
drop some, or do by their place in the batch what it does, at sizes that nobody has tried too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from normdeploy.serving.rows.call import Call
from normdeploy.serving.rows.rules import letters
from normdeploy.serving.rows.table import ALL_SAMPLES, ELEMENTWISE, REDUCED, SAMPLES, SKIPPING

Axes = tuple[int, ...]
Along = Callable[[Call], dict[int, Axes]]
WHOLE = 2**31 - 1
"""An end of a slice that no size reaches."""


def along(name: str, call: Call) -> Iterator[tuple[int, int]]:
    """Yield place of an input and axis, of all axes along which the operator ``name`` works."""
    found = ALONG.get(name, _all)(call)
    for place, axes in found.items():
        rank = call.mask(place).ndim
        yield from ((place, axis % rank) for axis in axes if rank)


def _all(call: Call) -> dict[int, Axes]:
    return {place: tuple(range(mask.ndim)) for place, mask in enumerate(call.masks) if mask is not None}


def _none(call: Call) -> dict[int, Axes]:
    del call
    return {}


def _but_first(call: Call) -> dict[int, Axes]:
    """All of parameters: scales, zero points, gains."""
    return {place: axes for place, axes in _all(call).items() if place}


def _axis(default: int) -> Along:
    return lambda call: {0: (call.attributes.get("axis", default),)}


def _reduced(call: Call) -> dict[int, Axes]:
    axes = call.axes()
    if not axes:
        axes = () if call.attributes.get("noop_with_empty_axes", 0) else tuple(range(call.mask(0).ndim))
    return {0: axes}


def _softmax(call: Call) -> dict[int, Axes]:
    axis, rank = call.attributes.get("axis", -1 if call.opset >= 13 else 1), call.mask(0).ndim
    return {0: (axis,) if call.opset >= 13 else tuple(range(axis % max(rank, 1), rank))}


def _normalized(call: Call) -> dict[int, Axes]:
    default = {"LpNormalization": (-1,), "LRN": (1,)}.get(call.node.op_type, (0, 2, 3))
    return {0: call.axes() or call.axes("axis") or default}


def _norm(call: Call) -> dict[int, Axes]:
    rank = call.mask(0).ndim
    axes = tuple(range(call.attributes.get("axis", -1) % rank, rank))
    return {**_but_first(call), 0: axes}


def _skip_norm(call: Call) -> dict[int, Axes]:
    return {**_but_first(call), 0: (-1,), 1: (-1,)}


def _batch_norm(call: Call) -> dict[int, Axes]:
    trained = call.attributes.get("training_mode", 0) or (call.opset < 14 and len(call.node.output) > 1)
    return {**_but_first(call), 0: tuple(axis for axis in range(call.mask(0).ndim) if axis != 1) if trained else ()}


def _product(second: int) -> Along:
    def found(call: Call) -> dict[int, Axes]:
        return {**_but_first(call), 0: (-1,), second: (-2,) if call.mask(second).ndim > 1 else (-1,)}

    return found


def _gemm(call: Call) -> dict[int, Axes]:
    return {0: (-2 if call.attributes.get("transA", 0) else -1,), 1: (-1 if call.attributes.get("transB", 0) else -2,)}


def _einsum(call: Call) -> dict[int, Axes]:
    *operands, result = letters(call)
    return {
        place: tuple(axis for axis, letter in enumerate(each) if letter not in result or each.count(letter) > 1)
        for place, each in enumerate(operands)
    }


def _samples(call: Call) -> dict[int, Axes]:
    return {**_but_first(call), 0: tuple(range(1, call.mask(0).ndim))}


def _all_samples(call: Call) -> dict[int, Axes]:
    return {place: axes[1:] for place, axes in _all(call).items()}


def _recurrent(call: Call) -> dict[int, Axes]:
    free = 0 if call.attributes.get("layout", 0) else 1
    weights = {place: axes for place, axes in _all(call).items() if place in (1, 2, 3, 7)}
    return {0: tuple({0, 1, 2} - {free}), **weights, **{place: tuple({0, 1, 2} - {free}) for place in (5, 6)}}


def _padded(call: Call) -> dict[int, Axes]:
    pads = call.axes("pads", 1) or ()
    axes = call.axes("axes", 3) or tuple(range(call.mask(0).ndim))
    return {0: tuple(axis for place, axis in enumerate(axes) if pads[place] or pads[place + len(axes)])}


def _sliced(call: Call) -> dict[int, Axes]:
    """All that are named, but for those that stay whole: from 0, in steps of 1, to the end."""
    starts, ends = call.axes("starts", 1) or (), call.axes("ends", 2) or ()
    axes = call.axes("axes", 3) or tuple(range(len(starts)))
    steps = call.axes("steps", 4) or (1,) * len(starts)
    whole = [
        start == 0 and step == 1 and (end >= WHOLE or 2 in call.counts)
        for start, end, step in zip(starts, ends, steps, strict=True)
    ]
    fixed = not call.node.input[1:] or 1 not in call.computed
    return {0: tuple(axis for axis, stays in zip(axes, whole, strict=True) if not (stays and fixed))}


def _tiled(call: Call) -> dict[int, Axes]:
    repeats = call.axes("repeats", 1) or ()
    return {0: tuple(axis for axis, (times, size) in enumerate(zip(repeats, call.mask(0).shape, strict=True))
                     if size > 1 and (times != 1 or 1 in call.computed))}  # fmt: skip


def _concatenated(call: Call) -> dict[int, Axes]:
    return dict.fromkeys(_all(call), (call.attributes["axis"],))


def _gathered_nd(call: Call) -> dict[int, Axes]:
    """The axes of its coordinates, but for the first one where that is each row's own number."""
    first, count = call.attributes.get("batch_dims", 0), call.mask(1).shape[-1]
    own = first == 0 and call.own_row
    return {0: tuple(range(first + own, first + count)), 1: (-1,)}


def _scattered_nd(call: Call) -> dict[int, Axes]:
    return {0: tuple(range(call.mask(1).shape[-1])), 1: tuple(range(call.mask(1).ndim))}


ALONG: dict[str, Along] = {
    **dict.fromkeys((*ELEMENTWISE, "CastLike", "OneHot"), _none),
    **dict.fromkeys(("Expand", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "ConstantOfShape"), _none),
    **dict.fromkeys(REDUCED, _reduced),
    **dict.fromkeys(SAMPLES, _samples),
    **dict.fromkeys(ALL_SAMPLES, _all_samples),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("ArgMax", "ArgMin", "Gather", "GatherElements", "ScatterElements", "Split"), _axis(0)),
    **dict.fromkeys(("LpNormalization", "LRN", "MeanVarianceNormalization"), _normalized),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _norm),
    **dict.fromkeys(SKIPPING, _skip_norm),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _product(1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Dropout", "QuantizeLinear", "DequantizeLinear"), _but_first),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _all_samples),
    "BatchNormalization": _batch_norm,
    "Concat": _concatenated,
    "CumSum": lambda call: {0: call.axes("axis") or (0,)},
    "Einsum": _einsum,
    "GatherND": _gathered_nd,
    "Gemm": _gemm,
    "Pad": _padded,
    "QLinearMatMul": _product(3),
    "ScatterND": _scattered_nd,
    "Slice": _sliced,
    "Tile": _tiled,
    "TopK": _axis(-1),
    "Trilu": lambda call: {0: (-2, -1)},
}  # fmt: skip
"""Full name → the axes; of an operator that is not here, all."""
