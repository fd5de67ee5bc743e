"""Weights and biases of the operators that have them, as a plan would leave them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.float64 import products
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.plan import Step
from normdeploy.graph import operator


def scale_bias(step: Step, scale: Array, shift: Array, index: int = 2) -> None:
    """Let the bias at input ``index``, a number a channel, become ``scale * bias + shift``, made where missing."""
    bias = step.edit(index)
    if bias is not None:
        step.put(index, bias.scaled(left=scale).shifted(shift))
    elif step.input(index) is not None:
        raise step.view.not_constant("its bias is", step.node, step.input(index))
    elif np.any(shift):
        step.put(index, Edit(None, bias_dtype(step), shift=np.broadcast_to(shift, (_channels(step),)).copy()))


def add_bias(step: Step, shift: Array) -> None:
    """Add ``shift`` to the bias at input 2."""
    scale_bias(step, np.ones(()), shift)


def _channels(step: Step) -> int:
    shape = weight_shape(step)
    return shape[1] * step.attr("group", 1) if operator(step.node) == "ConvTranspose" else shape[0]


def weight_shape(step: Step) -> tuple[int, ...]:
    """Return the shape of the weight at input 1, which must be fixed."""
    shape = step.view.require_shape(step.data(1), step.node)
    if not all(isinstance(dim, int) for dim in shape):
        raise step.refuse("NF014", "the shape of its weight is not fixed")
    return tuple(int(dim) for dim in shape if dim is not None)


def times_weight(step: Step, shift: Array, *, transposed: bool = False) -> Array:
    """Return ``shift @ weight`` in float64 for the matrix at input 1 as the plan would leave it, or its transpose.

    What the plan has not touched is converted in parts, where it is used: few weights are wanted in float64 as a whole.
    """
    edit = step.edit(1)
    untouched = None if edit is None else edit.untouched()
    weight = exact_weight(step) if untouched is None else untouched
    matrix = weight.T if transposed else weight
    return products.matmul(np.broadcast_to(shift, (*shift.shape[:-1], matrix.shape[0])), matrix)


def exact_weight(step: Step, index: int = 1) -> Array:
    """Return the weight at input ``index`` in float64, as the plan would leave it."""
    weight = step.weight(index)
    if weight is None:
        raise step.refuse("NF101", "its weight is not constant, so a shift cannot be multiplied through")
    return weight


def bias_dtype(step: Step) -> ir.DataType:
    """Return the dtype of a bias that is to be made."""
    weight = step.edit(1)
    dtype = weight.dtype if weight is not None else step.data(1).dtype or step.data(0).dtype
    if dtype is None:
        raise step.refuse("NF109", "the dtype of its new bias is not known")
    return dtype
