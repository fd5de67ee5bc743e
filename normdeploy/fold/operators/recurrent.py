"""LSTM, GRU and RNN: what meets their input is linear, whatever the gates make of it afterwards.

    W (s x + t) + Wb  =  (W s) x + (Wb + W t)        for every gate, step and direction

So a map over the features goes into the weight and bias of the input, at every activation, clip and layout, coupled
gates and ``linear_before_reset`` included. Nothing passes upward, or through a state: the gates bend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators.biases import bias_dtype, exact_weight
from normdeploy.fold.operators.rows import Maps, Nature, Row, all_but, along, only_first
from normdeploy.fold.operators.sizes import Known, Probing, Shape, fixed
from normdeploy.fold.plan import Step

_BIAS, _LENGTHS = 3, 4


def recurrent_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Scale the input features of W, (directions, gates * hidden, features), and add ``W t`` to Wb."""
    m = only_first(step, ins)
    if any(axis != m.rank - 1 for axis in m.axes):
        raise step.refuse("NF016", "the map varies over steps or samples, and the weight does not")
    shift = m.shift.reshape(-1)
    if np.any(shift):
        weight = exact_weight(step)
        _add_to_input_bias(step, weight @ np.broadcast_to(shift, weight.shape[-1:]))
    step.scale_weight(1, right=m.scale.reshape(-1))
    return [None] * len(step.node.outputs)


def _add_to_input_bias(step: Step, moved: Array) -> None:
    """Add ``moved``, (directions, gates * hidden), to Wb, the first half of the bias; Rb, the other half, stays."""
    both = np.concatenate([moved, np.zeros_like(moved)], axis=1)
    bias = step.edit(_BIAS)
    if bias is not None:
        step.put(_BIAS, bias.shifted(both))
    elif step.input(_BIAS) is not None:
        raise step.refuse("NF101", "its bias is not constant")
    else:
        step.put(_BIAS, Edit(None, bias_dtype(step), shift=both))


# -- the proof -------------------------------------------------------------------------------------


def evaluate(
    attributes: Mapping[str, Any],
    x: Array,
    weight: np.ndarray,
    recurrence: Array,
    bias: Array | None = None,
    lengths: np.ndarray | None = None,
    *states: Array | None,
) -> list[Array]:
    """Return all that the three outputs are functions of: ``x Wᵀ + Wb`` of every gate and step, and the other inputs.

    The gates saturate, and would hide from a probe what reaches them. ONNX specification, LSTM-22, GRU-22 and RNN-22:
    the outputs depend on X, W and Wb through this sum alone.
    """
    del attributes, lengths
    projected = np.tensordot(x, weight.astype(np.float64, copy=False), axes=(-1, -1))
    own, other = (0.0, np.zeros(weight.shape[:2])) if bias is None else np.split(bias, 2, axis=1)
    rest = [recurrence, other, *(state for state in states if state is not None)]
    everything = np.concatenate([np.ravel(part) for part in (projected + own, *rest)])
    return [everything] * 3


def probe_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape]:
    """Return a shape for each input: few steps of two samples, and what W and R say of features and hidden units."""
    del maps, known
    directions, gates, features = fixed(view, node.inputs[1])
    hidden = fixed(view, node.inputs[2])[-1]
    x, state = (3, 2, features), (directions, 2, hidden)
    if view.attr(node, "layout", 0):
        x, state = (2, 3, features), (2, directions, hidden)
    shapes = [x, (directions, gates, features), (directions, gates, hidden), (directions, 2 * gates), (2,)]
    return [*shapes, state, state, (directions, 3 * hidden)][: len(node.inputs)]


ROWS = (
    Row(
        ("LSTM", "GRU", "RNN"),
        down=recurrent_down,
        why=("NF001", "its gates bend what comes out of it"),
        nature=Nature.LINEAR,
        heavy=True,
        parameters={1: all_but(-1), 2: all_but(-1), _BIAS: along()},
        evaluate=evaluate,
        any_dtype=(1,),
        probing=Probing(
            shapes=probe_shapes,
            draws={_LENGTHS: lambda random, shapes: random.integers(1, 3, shapes[_LENGTHS])},
        ),
    ),
)
