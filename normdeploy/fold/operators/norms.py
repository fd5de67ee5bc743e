"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm absorb from behind: what scales their output is their own scale."""

from __future__ import annotations

import numpy as np

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.edits import Edit
from normdeploy.fold.operators.rows import Maps, need_not_over, only_first, vector
from normdeploy.fold.plan import Step
from normdeploy.graph import operator


def layer_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """``s (gamma z + beta) + t = (s gamma) z + (s beta + t)``, over the normalized axes."""
    m = need_not_over(step, only_first(step, outs), range(step.attr("axis", -1) % step.rank()))
    scale = step.edit(1)
    if scale is None or (step.input(2) is not None and step.edit(2) is None):
        raise step.refuse("its scale and bias are not constant")
    rank = len(scale.shape)
    factor, shift = _over(m.scale, rank), _over(m.shift, rank)
    bias = step.edit(2)
    if bias is not None:
        step.put(2, bias.scaled(left=factor).shifted(shift))
    elif np.any(shift):
        if operator(step.node) != "LayerNormalization":
            raise step.refuse("it has no bias to take a shift")
        step.put(2, Edit(None, scale.dtype, shift=np.broadcast_to(shift, scale.shape).copy()))
    step.put(1, scale.scaled(left=factor))
    step.absorbed()
    return {}


def group_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """The same over the channels, since opset 21; before, the scale was one number a group."""
    if step.view.opset < 21:
        raise step.refuse("its scale and bias are not constant numbers for each channel")
    return instance_norm_up(step, outs)


def instance_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """``s (gamma z + beta) + t`` over the channels, as :func:`layer_norm_up` over the features."""
    factor, shift = vector(step, only_first(step, outs), axis=1)
    scale, bias = step.edit(1), step.edit(2)
    if scale is None or bias is None:
        raise step.refuse("its scale and bias are not constant numbers for each channel")
    step.put(1, scale.scaled(left=factor))
    step.put(2, bias.scaled(left=factor).shifted(shift))
    step.absorbed()
    return {}


def _over(array: Array, rank: int) -> Array:
    """``array`` without the leading axes that the parameters of the norm do not have (all of size 1)."""
    return array.reshape(array.shape[array.ndim - rank :])
