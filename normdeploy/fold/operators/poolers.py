"""Operators that average or select: an average has weights that sum to 1, so an affine map passes unchanged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.float64 import execute, windows
from normdeploy.fold.operators import moved, sizes, windowed
from normdeploy.fold.operators.rows import (
    Magnitude,
    Maps,
    Nature,
    Parameters,
    Row,
    Shift,
    along,
    both_ways,
    only_first,
    require_not_over,
    states,
)  # fmt: skip
from normdeploy.fold.plan import Step
from normdeploy.graph import operator


def _spatial(m: AffineMap) -> range:
    return range(2, m.rank)


def average_pool(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: padded cells that count as 0 in the average let only the scale pass."""
    del upward
    padded = any(step.attr("pads", [])) or step.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    outside = padded or step.attr("ceil_mode", 0)
    if step.attr("count_include_pad", 0) and outside and not m.shifts_nothing:
        raise step.refuse("NF201", "padded cells count as 0 in the average, so a shift does not pass")
    return require_not_over(step, m, _spatial(m))


def global_pool(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: an average over all cells of a channel."""
    del upward
    return require_not_over(step, m, _spatial(m))


def max_pool(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map under which the largest stays the largest; ties and the index need its scale to be above 0."""
    del upward
    if np.any(m.scale < 0):
        raise step.refuse("NF204", "a negative scale turns the largest into the smallest")
    if step.view.is_used(step.node, 1) and not np.all(m.scale > 0):
        raise step.refuse("NF204", "a scale of 0 makes all indices tie")
    return require_not_over(step, m, _spatial(m))


def reduce_mean(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Return a mean over axes that the map does not vary over."""
    rank = step.rank()
    axes = step.view.parameter(step.node, "axes", 1)
    if not axes:
        if step.attr("noop_with_empty_axes", 0):
            return m
        axes = list(range(rank))
    positive = tuple(axis % rank for axis in axes)
    if not step.attr("keepdims", 1):
        if upward:
            return m.moved(lambda a: np.expand_dims(a, positive))
        require_not_over(step, m, positive)
        return m.moved(lambda a: np.squeeze(a, positive))
    return require_not_over(step, m, positive)


def resize(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: interpolation weights sum to 1; only a crop filled with an extrapolation value breaks that."""
    del upward
    if step.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise step.refuse("NF201", "cells outside the crop hold the extrapolation value")
    before = step.view.require_shape(step.data(), step.node)
    after = step.view.require_shape(step.node.outputs[0], step.node)
    same = [axis for axis in m.axes if before[axis] is not None and before[axis] == after[axis]]
    if same != list(m.axes) or any(_scale_along(step, axis) != 1.0 for axis in m.axes):
        raise step.refuse("NF015", "the map varies over a resized axis")
    return m


def _scale_along(step: Step, axis: int) -> float:
    """Return the scale of a Resize along ``axis``: one that is not 1 may still leave the size as it is."""
    modern = step.view.opset >= 11
    if modern and step.input(3) is not None:
        return 1.0  # by sizes: an equal size is not scaled
    scales = step.view.parameter(step.node, "scales", 2 if modern else 1)
    named = [index % step.rank() for index in step.attr("axes", range(step.rank()))]
    return float(scales[named.index(axis)]) if axis in named else 1.0


def pad(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: reflection, edge, wrap and cropping copy cells; a constant must be what the map makes of one
    scalar.
    """
    pads = step.view.parameter(step.node, "pads", 1)
    axes = step.view.parameter(step.node, "axes", 3) if step.view.opset >= 18 else None
    positive = [axis % m.rank for axis in (axes or range(m.rank))]
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    moved = [axis for axis, low, high in zip(positive, before, after, strict=True) if low or high]
    require_not_over(step, m, moved)
    if step.attr("mode", "constant") == "constant" and any(count > 0 for count in pads):
        _move_constant(step, m, upward)
    return m


def _move_constant(step: Step, m: AffineMap, upward: bool) -> None:
    edit = step.edit(2)
    if step.input(2) is not None and edit is None:
        raise step.refuse("NF202", "its constant is not known")
    old = float(edit.exact().reshape(())) if edit is not None else float(step.attr("value", 0.0))
    if not upward and not np.all(m.scale):
        raise step.refuse("NF205", "a scale of 0 leaves no constant to pad with")
    new = m.scale * old + m.shift if upward else (old - m.shift) / m.scale
    if not np.all(new == new.flat[0]):
        raise step.refuse("NF202", "the padded constant would have to differ from channel to channel")
    if new.flat[0] == old:
        return
    if edit is None:
        raise step.refuse("NF202", "its constant is an attribute or a default")
    step.put(2, edit.scaled(left=np.zeros(())).shifted(np.asarray(new.flat[0])))


def positively_homogeneous(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: ``f(s x) = s f(x)`` for s > 0: ReLU and its leaky kin; a shift moves the kink."""
    del upward
    if not m.shifts_nothing:
        raise step.refuse("NF203", "a shift would move its kink")
    if not np.all(m.scale > 0):
        raise step.refuse("NF204", "a scale that is not positive would turn its sides")
    return m


def prelu(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Do as :func:`positively_homogeneous`, whatever the slope is, constant or not; the slope stays."""
    if step.view.opset < 7:
        raise step.refuse("NF012", "before opset 7 its slope follows other rules of broadcasting")
    return positively_homogeneous(step, m, upward)


def cast(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Return a cast to the same or, seen in the direction of travel, a wider float type."""
    source, target = step.data().dtype, step.node.outputs[0].dtype
    if not (step.view.is_float(step.data()) and step.view.is_float(step.node.outputs[0])):
        raise step.refuse("NF212", "it casts to or from integers")
    narrow, wide = (target, source) if upward else (source, target)
    if source != target and (narrow is None or wide is None or narrow.itemsize >= wide.itemsize):
        raise step.refuse("NF212", "the cast narrows what the map would have to survive")
    return m


def dropout(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map: at inference nothing is dropped."""
    del upward
    view, node = step.view, step.node
    training = view.opset >= 12 and view.parameter(node, "training_mode", 2, default=False)
    if training or (view.opset < 7 and not step.attr("is_test", 0)):
        raise step.refuse("NF301", "it is in training mode")
    if view.is_used(node, 1):
        raise step.refuse("NF211", "its mask is used")
    return m


# -- sums of branches ------------------------------------------------------------------------------


def sum_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass a map: ``s (a + b) + t = (s a + t) + s b``: the scale to every branch, the shift to one that can take it."""
    m = only_first(step, outs)
    values = [step.data(index) for index in range(len(step.node.inputs))]
    parts = [_onto(step, m, value) for value in values]
    sign = -1.0 if operator(step.node) == "Sub" else 1.0
    taker = next((i for i, value in enumerate(values) if _takes_shift(step, value)), 0)
    wanted = {}
    for index, part in enumerate(parts):
        shift = part.shift * (sign if index else 1.0) if index == taker else np.zeros((1,) * part.rank)
        wanted[index] = AffineMap(part.scale, shift)
    return wanted


def _takes_shift(step: Step, value: ir.Value | None) -> bool:
    """Return True if the branch ends in something with a bias before anything that a shift cannot pass.

    Behind a norm that stays the shift goes to its own bias.
    """
    while step.node not in step.view.tails and value is not None and (producer := value.producer()) is not None:
        shift = states(producer).shift
        if shift is Shift.TAKEN:
            return True
        if shift is Shift.STOPPED or not producer.inputs:
            return False
        value = producer.inputs[0]
    return step.view.is_constant(value)


def _onto(step: Step, m: AffineMap, value: ir.Value) -> AffineMap:
    """Return the part of ``m`` that a branch which is broadcast into the sum can carry."""
    shape = step.view.require_shape(value, step.node)
    extra = m.rank - len(shape)
    if any(axis < extra or shape[axis - extra] != m.size(axis) for axis in m.axes):
        raise step.refuse("NF020", "a branch is broadcast along the axis of the map")
    return m.moved(lambda a: a.reshape(a.shape[extra:]))


def sum_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Pass a map: shifts add up; a scale passes only where every branch has the same one."""
    rank = step.view.require_rank(step.node.outputs[0], step.node)
    shape = step.view.require_shape(step.node.outputs[0], step.node)
    maps = [_lifted(m, rank) for m in ins]
    if any(not np.all(m.scale == maps[0].scale) for m in maps):
        raise step.refuse("NF206", "the branches of the sum do not have the same scale")
    if any(shape[axis] != m.size(axis) for m in maps for axis in m.axes):
        raise step.refuse("NF020", "a branch is broadcast along the axis of the map")
    sign = -1.0 if operator(step.node) == "Sub" else 1.0
    shift = maps[0].shift + sum((sign * m.shift for m in maps[1:]), np.zeros((1,) * rank))
    return [AffineMap(maps[0].scale, shift)]


def _lifted(m: AffineMap | None, rank: int) -> AffineMap:
    if m is None:
        return AffineMap.identity(rank)
    return AffineMap.of(m.scale, m.shift, rank)


# -- the rows --------------------------------------------------------------------------------------


_PLANE = sizes.Probing(size=sizes.whole_plane, same_axes=True)
SUMMED: Parameters = {None: along()}

ROWS = (
    Row(
        ("Dropout",), **both_ways(dropout), magnitude=Magnitude.KEPT, evaluate=execute.identity,
        probing=sizes.ELEMENTWISE, carries=True,
    ),
    Row(
        ("Cast",), **both_ways(cast), magnitude=Magnitude.KEPT, evaluate=execute.identity, probing=sizes.ELEMENTWISE,
    ),
    # averages, whose weights sum to 1
    Row(
        ("AveragePool",), **both_ways(average_pool), magnitude=Magnitude.BOUNDED, shift=Shift.STOPPED,
        evaluate=windows.average_pool, probing=windowed.POOL, carries=True,
    ),
    Row(
        ("GlobalAveragePool",), **both_ways(global_pool), magnitude=Magnitude.BOUNDED, probing=_PLANE, carries=True,
    ),
    Row(("ReduceMean",), **both_ways(reduce_mean), magnitude=Magnitude.BOUNDED, carries=True),
    Row(
        ("Resize",), **both_ways(resize), magnitude=Magnitude.BOUNDED, evaluate=execute.resize, probing=moved.RESIZE,
        carries=True,
    ),
    Row(("Upsample",), **both_ways(resize), magnitude=Magnitude.BOUNDED, evaluate=execute.resize, carries=True),
    Row(
        ("Pad",), **both_ways(pad), nature=Nature.LINEAR, magnitude=Magnitude.KEPT, evaluate=execute.pad, carries=True,
        parameters={2: along()},
    ),
    # sums of branches
    Row(("Sum",), sum_up, sum_down, nature=Nature.LINEAR, probing=sizes.ELEMENTWISE, parameters=SUMMED, sums=True),
    # not linear, but some maps commute with them
    Row(
        ("MaxPool",), **both_ways(max_pool), nature=Nature.MONOTONE, magnitude=Magnitude.KEPT,
        evaluate=windows.max_pool, probing=windowed.POOL,
    ),
    Row(
        ("GlobalMaxPool",), **both_ways(max_pool), nature=Nature.MONOTONE, magnitude=Magnitude.KEPT,
        evaluate=execute.global_max_pool, probing=_PLANE,
    ),
    Row(
        ("Relu",), **both_ways(positively_homogeneous), nature=Nature.HOMOGENEOUS, magnitude=Magnitude.KEPT,
        shift=Shift.STOPPED, probing=sizes.ELEMENTWISE,
    ),
    Row(
        ("LeakyRelu",), **both_ways(positively_homogeneous), nature=Nature.HOMOGENEOUS, shift=Shift.STOPPED,
        probing=sizes.ELEMENTWISE,
    ),
    Row(
        ("PRelu",), **both_ways(prelu), nature=Nature.HOMOGENEOUS, shift=Shift.STOPPED,
        evaluate=execute.prelu, probing=sizes.ELEMENTWISE,
    ),
)  # fmt: skip
