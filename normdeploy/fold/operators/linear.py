"""Operators with weights: they absorb maps.

    upward     s (W x + b) + t  =  (s W) x + (s b + t)
    downward   W (s x + t) + b  =  (W s) x + (W t + b)

A shift that meets padded cells cannot be moved into a bias: those cells hold 0 on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.float64 import execute, windows
from normdeploy.fold.graph.edits import Channels, Edit
from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators import bilinear, sizes, windowed
from normdeploy.fold.operators.basics import is_quantized
from normdeploy.fold.operators.biases import (
    add_bias,
    bias_dtype,
    exact_weight,
    scale_bias,
    times_weight,
    weight_shape,
)
from normdeploy.fold.operators.rows import (
    Feature,
    Maps,
    Nature,
    Row,
    Shift,
    Written,
    all_but,
    along,
    only_first,
    vector,
)
from normdeploy.fold.plan import Step

# -- Conv ------------------------------------------------------------------------------------------


def conv_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Scale the output channels of the weight; the rest goes into the bias."""
    scale, shift = vector(step, only_first(step, outs), axis=1)
    rank = step.view.require_rank(step.data(1), step.node)
    step.scale_weight(1, left=scale.reshape(-1, *(1,) * (rank - 1)))
    scale_bias(step, scale, shift)
    return {}


def conv_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Scale the input channels of the weight; the shift goes into the bias unless padded cells are read."""
    scale, shift = vector(step, only_first(step, ins), axis=1)
    shape = weight_shape(step)
    groups = step.attr("group", 1)
    if np.any(shift):
        _require_no_padding(step, shape)
        weight = exact_weight(step).reshape(groups, shape[0] // groups, shape[1], -1).sum(axis=-1)
        shifts = np.broadcast_to(shift, (groups * shape[1],)).reshape(groups, shape[1], 1)
        add_bias(step, (weight @ shifts).reshape(-1))
    scale_input_channels(step, scale)
    return [None]


def scale_input_channels(step: Step, scale: Array) -> None:
    """Scale the input channels of a weight that is laid out (out, in / groups, ...)."""
    shape, groups = weight_shape(step), step.attr("group", 1)
    factor = np.broadcast_to(scale, (groups * shape[1],)).reshape(groups, 1, shape[1])
    factor = np.broadcast_to(factor, (groups, shape[0] // groups, shape[1])) if groups > 1 else factor
    step.scale_weight(1, right=factor.reshape(-1, shape[1], *(1,) * (len(shape) - 2)))


def _require_no_padding(step: Step, shape: Sequence[int]) -> None:
    auto_pad = step.attr("auto_pad", "NOTSET")
    one_tap = all(size == 1 for size in shape[2:])
    if any(step.attr("pads", [])) if auto_pad == "NOTSET" else auto_pad != "VALID" and not one_tap:
        raise step.refuse(
            "NF201", "padded cells hold 0, which a shift would have to change", "pad with the value the shift maps to 0"
        )


# -- ConvTranspose ---------------------------------------------------------------------------------


def conv_transpose_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Do as Conv; the weight is laid out (in, out / groups, ...)."""
    scale, shift = vector(step, only_first(step, outs), axis=1)
    shape, groups = weight_shape(step), step.attr("group", 1)
    channels = groups * shape[1]
    factor = np.broadcast_to(scale, (channels,)).reshape(groups, 1, shape[1])
    factor = np.broadcast_to(factor, (groups, shape[0] // groups, shape[1]))
    step.scale_weight(1, left=factor.reshape(shape[0], shape[1], *(1,) * (len(shape) - 2)))
    scale_bias(step, np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,)))
    return {}


def conv_transpose_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Take the scale always; the shift only where every output cell sees the whole kernel."""
    scale, shift = vector(step, only_first(step, ins), axis=1)
    shape, groups = weight_shape(step), step.attr("group", 1)
    if np.any(shift):
        _require_full_kernel(step, shape)
        weight = exact_weight(step).reshape(groups, shape[0] // groups, shape[1], -1).sum(axis=-1)
        shifts = np.broadcast_to(shift, (shape[0],)).reshape(groups, 1, -1)
        add_bias(step, (shifts @ weight).reshape(-1))
    step.scale_weight(1, right=np.broadcast_to(scale, (shape[0],)).reshape(-1, *(1,) * (len(shape) - 1)))
    return [None]


def _require_full_kernel(step: Step, shape: Sequence[int]) -> None:
    spatial = len(shape) - 2
    pads = step.attr("pads", [0] * 2 * spatial)
    dilations = step.attr("dilations", [1] * spatial)
    reach = [d * (k - 1) for d, k in zip(dilations, shape[2:], strict=True)]
    plain = step.attr("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in step.node.attributes
    strided = any(s != 1 for s in step.attr("strides", [1] * spatial)) or any(step.attr("output_padding", [0]))
    if not plain or strided or any(pad < need for pad, need in zip(pads, reach * 2, strict=True)):
        raise step.refuse("NF201", "not every output cell sees the whole kernel, so the shift is no constant there")


# -- Gemm ------------------------------------------------------------------------------------------


def gemm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Send a map up ``alpha A B + beta C``: the columns of B, and of C, are scaled."""
    scale, shift = vector(step, only_first(step, outs), axis=1)
    step.scale_weight(1, left=scale.reshape(-1, 1) if step.attr("transB", 0) else scale)
    _gemm_bias(step, scale, shift)
    return {}


def gemm_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Scale the rows of B, and multiply the shift through into C."""
    rows = 0 if step.attr("transA", 0) else 1
    scale, shift = vector(step, only_first(step, ins), axis=rows)
    transposed = step.attr("transB", 0)
    if np.any(shift):
        moved = step.attr("alpha", 1.0) * times_weight(step, np.atleast_1d(shift), transposed=bool(transposed))
        _gemm_bias(step, np.ones(()), moved)
    step.scale_weight(1, right=scale if transposed else scale.reshape(-1, 1))
    return [None]


def _gemm_bias(step: Step, scale: Array, shift: Array) -> None:
    beta = step.attr("beta", 1.0)
    bias, is_read = step.edit(2), beta != 0.0
    if bias is not None and is_read:
        step.put(2, bias.scaled(left=scale).shifted(shift / beta))
    elif step.input(2) is not None and bias is None and (is_read or np.any(shift)):
        raise step.view.not_constant("its C is", step.node, step.input(2))
    elif np.any(shift):
        columns = weight_shape(step)[0 if step.attr("transB", 0) else 1]
        step.put(2, Edit(None, bias_dtype(step), shift=np.broadcast_to(shift, (columns,)).copy()))
        step.plan.attributes[step.node, "beta"] = 1.0


# -- MatMul ----------------------------------------------------------------------------------------


def matmul_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Return the scale of the columns (weight on the right) or rows (weight on the left); a MatMul has no bias."""
    m = only_first(step, outs)
    right = _weight_side(step)
    if right is None:
        return bilinear.matmul_up(step, m)
    if not m.shifts_nothing:
        raise step.refuse("NF108", "a MatMul has no bias to take a shift")
    factor = _as_matrix(m.scale, *_are_vectors(step, m, right))
    step.scale_weight(int(right), left=_over_weight(step, factor, right, mixed=-2 if right else -1))
    return {}


def matmul_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Put the scale into the weight; the shift, multiplied by the weight, goes on behind the MatMul."""
    right = _weight_side(step)
    if right is None:
        return bilinear.matmul_down(step, ins)
    m = ins[0 if right else 1]
    if m is None or ins[1 if right else 0] is not None:
        raise step.refuse("NF011", "the map is on the weight")
    rank = step.view.require_rank(step.node.outputs[0], step.node)
    vectors = _are_vectors(step, m, right)
    scale, shift = (_as_matrix(a, vectors[0] and right, vectors[1] and not right) for a in (m.scale, m.shift))
    factor = _over_weight(step, np.swapaxes(scale, -1, -2), right, mixed=-1 if right else -2)
    remainder = None
    if not m.shifts_nothing:
        if shift.shape[-2 if right else -1] != 1:
            raise step.refuse("NF016", "the map varies over an axis that the weight does not have")
        if right and step.rank(1) == 2:
            product = times_weight(step, shift)
        else:
            weight = _as_matrix(exact_weight(step, int(right)), vectors[0] and not right, vectors[1] and right)
            inner = weight.shape[-2 if right else -1]
            shift = np.broadcast_to(shift, (*shift.shape[:-2], *((1, inner) if right else (inner, 1))))
            product = shift @ weight if right else weight @ shift
        gone = tuple(axis for axis, vector in zip((-2, -1), vectors, strict=True) if vector)
        remainder = AffineMap.of(1.0, np.squeeze(product, gone), rank)
    step.scale_weight(int(right), right=factor)
    return [remainder]


def _weight_side(step: Step) -> bool | None:
    """Return True if the weight is the right operand (True) or the left (False); None where neither is constant."""
    for index in (1, 0):
        value = step.data(index)
        producer = value.producer()
        if step.edit(index) is not None or is_quantized(producer):
            return bool(index)
    return None


def _are_vectors(step: Step, m: AffineMap, right: bool) -> tuple[bool, bool]:
    """Return True if the left operand is a vector, and the right; ``m`` is a map on the data or on the result."""
    weight = step.rank(int(right))
    known = step.view.rank(step.data(int(not right)))
    data = m.rank if known is None and weight == 2 else step.rank(int(not right))
    return (data == 1, weight == 1) if right else (weight == 1, data == 1)


def _as_matrix(array: Array, row: bool, column: bool) -> Array:
    """Return ``array`` with the axes that MatMul puts in for a vector on the left (``row``) and on the right."""
    array = np.expand_dims(array, -1) if column else array
    return np.expand_dims(array, -2) if row else array


def _over_weight(step: Step, factor: Array, right: bool, *, mixed: int) -> Array:
    """Return ``factor``, as a matrix, cut to the rank of the weight; what it varies over must be an axis of the
    weight too.

    Along the axis ``mixed`` of a matrix the weight has others numbers than the factor, which must be one number there.
    """
    shape = step.view.require_shape(step.data(int(right)), step.node)
    matrix = shape if len(shape) > 1 else (*shape, 1) if right else (1, *shape)
    extra = factor.ndim - len(matrix)
    if factor.shape[mixed] != 1 or any(size != 1 for size in factor.shape[: max(extra, 0)]):
        raise step.refuse("NF016", "the map varies over an axis that the weight does not have")
    factor = factor.reshape(factor.shape[max(extra, 0) :])
    aligned = matrix[len(matrix) - factor.ndim :]
    pairs: list[tuple[int, Dim]] = list(zip(factor.shape, aligned, strict=True))
    if any(extent not in (1, dim) for extent, dim in pairs):
        raise step.refuse("NF104", "the map would enlarge the weight")
    return factor if len(shape) > 1 else np.squeeze(factor, -1 if right else -2)


# -- how residual streams are centred --------------------------------------------------------------


def _matmul_writes(step: Step, axis: int) -> Written:
    behind = axis - step.view.require_rank(step.node.outputs[0], step.node)
    if behind not in (-1, -2):
        raise step.refuse("NF322", "it writes the features along an axis that its weight does not have")
    index = 1 if behind == -1 else 0
    if len(step.view.require_shape(step.data(index), step.node)) < 2:
        raise step.refuse("NF322", "its weight is a vector")
    yield Feature(index, behind)


def _gemm_writes(step: Step, axis: int) -> Written:
    if axis != 1:
        raise step.refuse("NF322", "it writes the features along its rows")
    yield Feature(1, -2 if step.attr("transB", 0) else -1)
    if step.attr("beta", 1.0) != 0.0 and step.input(2) is not None:
        yield Feature(2, step.rank(2) - 1, added=True)


def _conv_writes(step: Step, axis: int) -> Written:
    if axis != 1 or step.attr("group", 1) != 1:
        raise step.refuse("NF322", "its output channels do not all read the same channels, so they have no common mean")
    yield Feature(1, 0)
    if step.input(2) is not None:
        yield Feature(2, 0)


def _conv_transpose_writes(step: Step, axis: int) -> Written:
    for feature in _conv_writes(step, axis):
        yield Feature(feature.index, 1 if feature.index == 1 else 0)


# -- the rows --------------------------------------------------------------------------------------


def _gemm_columns(step: Step) -> Channels:
    return Channels((0 if step.attr("transB", 0) else 1,))


def _conv_transpose_columns(step: Step) -> Channels:
    return Channels((1,), groups=step.attr("group", 1))


def _gemm_sizes(attributes: dict[str, Any], inputs: list[np.ndarray | None]) -> tuple[dict[str, Any], Any]:
    return {name: abs(value) if name in ("alpha", "beta") else value for name, value in attributes.items()}, inputs


def _gemm_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: sizes.Known) -> list[sizes.Shape] | None:
    """Return shapes to probe ``A B + C`` with: as many rows as a C of several has, and 1 where C has 1."""
    del maps
    if node.inputs[1] is None or not known(node.inputs[1]):
        return None
    weight = sizes.fixed(view, node.inputs[1])
    inner, columns = weight[::-1] if view.attr(node, "transB", 0) else weight
    c = (view.shape(node.inputs[2]) if len(node.inputs) > 2 else None) or ()
    rows = next((dim for dim in c[:-1] if isinstance(dim, int) and dim > 1), 0)
    rows = rows or next(size for size in (3, 4, 5) if size not in (inner, columns))
    a = (inner, rows) if view.attr(node, "transA", 0) else (rows, inner)
    axes = (rows, columns)[2 - len(c) :]
    added = tuple(1 if dim == 1 else size for dim, size in zip(c, axes, strict=True))
    return [a, weight, added][: len(node.inputs)]


def _by_matrix(view: View, node: ir.Node, rank: int, maps: sizes.Maps, known: sizes.Known) -> dict[int, int]:
    """Return the batch, and rows or columns that stay, by what maps vary over; what is summed over by the weight."""
    right = node.inputs[1] is not None and known(node.inputs[1])
    kept = -2 if right else -1
    batch = {axis: size for axis, size in sizes.by_maps(node, maps).items() if axis < -2 or axis == kept}
    weight = view.shape(node.inputs[int(right)]) or ()
    batch |= {axis: size for axis, size in sizes.trailing(weight).items() if axis < -2}
    inner = weight[-2 if right and len(weight) > 1 else -1] if weight else 1
    return batch | {-1 if right or rank == 1 else -2: int(inner or 1)}


ROWS = (
    Row(
        ("Conv",), conv_up, conv_down, nature=Nature.LINEAR, heavy=True, shift=Shift.TAKEN, merges=True,
        parameters={1: along(0), 2: along()}, evaluate=windows.conv, any_dtype=(1,), probing=windowed.CONVOLUTION,
        centre=_conv_writes,
    ),
    Row(
        ("ConvTranspose",), conv_transpose_up, conv_transpose_down, nature=Nature.LINEAR, heavy=True, shift=Shift.TAKEN,
        parameters={1: _conv_transpose_columns, 2: along()}, evaluate=windows.conv_transpose,
        probing=windowed.TRANSPOSED, centre=_conv_transpose_writes,
    ),
    Row(
        ("Gemm",), gemm_up, gemm_down, nature=Nature.LINEAR, heavy=True, shift=Shift.TAKEN,
        parameters={1: _gemm_columns, 2: along()}, absolute=_gemm_sizes, centre=_gemm_writes,
        probing=sizes.Probing(shapes=_gemm_shapes),
    ),
    Row(
        ("MatMul",), matmul_up, matmul_down, nature=Nature.LINEAR, heavy=True, shift=Shift.STOPPED,
        parameters={0: all_but(-1), 1: all_but(-2)}, evaluate=execute.matmul, any_dtype=(1,), centre=_matmul_writes,
        probing=sizes.Probing(pins=_by_matrix, size=sizes.matrix, shapes=bilinear.matmul_shapes),
    ),
)  # fmt: skip
