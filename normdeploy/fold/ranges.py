"""Float16 holds numbers up to 65504: a plan may not make a value in between outgrow what the original computes.

The output of a norm directly behind its convolution is computed in both, so there every scale is harmless. A scale that
goes up through an average or a sum, or a small one that is taken off and goes down, makes values larger that were never
so large: what an average made small again is infinite before it. How large they are, no graph tells; so a limit is set
on how much larger they become than the largest value of the original that they are known by.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.maps import data_input
from normdeploy.fold.operators.rows import Magnitude
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan

LIMIT = 16.0
"""How many times larger a value may become: networks are taken to stay below 65504 / 16 where nothing is known."""
_LARGEST = 65504.0 / LIMIT

_HALVES = frozenset({ir.DataType.FLOAT16})
_CONVERTED = _HALVES | {ir.DataType.FLOAT, ir.DataType.BFLOAT16}

Growth = dict[ir.Value, float]
"""How many times larger values are than the values of the original that bound them; 1 for what is not listed."""


def growth(plan: Plan, state: GraphState, grown: Growth, narrow: ir.DataType | None) -> Growth:
    """Return the growth of all values that ``plan`` maps, if none of those in float16 outgrows it.

    Args:
        plan: what is to change.
        state: the graph, as it is before.
        grown: the growth of its values by the plans before.
        narrow: what its float32 values will be converted to; None where they stay.

    Raises:
        Refused: a value in float16 may become more than ``LIMIT`` times larger.
    """
    halves = _HALVES if narrow is None else _CONVERTED if narrow == ir.DataType.FLOAT16 else frozenset()
    if not any(value.dtype in halves for value in (*plan.up, *plan.down)):
        return {}
    found = ChainMap[ir.Value, float]({}, grown)  # not a copy for each plan
    own = {value: found.get(value, 1.0) for value in (*plan.up, *plan.down)}
    for value, m in plan.up.items():  # readers come before what they read
        found[value] = min(_scaled(own[value], m), _shown(plan, value, found))
    for value, m in plan.down.items():  # makers come before what they make
        found[value] = min(_unscaled(own[value], m), _made(plan, state, value, found))
    for value in own:
        if value.dtype in halves and not found[value] <= max(LIMIT, own[value]):
            raise Refused(
                "NF022", f"{value.name} would become up to {found[value]:.3g} times larger, and float16 ends at 65504"
            )
    return {value: found[value] for value in own}


def _scaled(size: float, m: AffineMap) -> float:
    return size * _largest(m.scale) + _largest(m.shift) / _LARGEST


def _unscaled(size: float, m: AffineMap) -> float:
    if not np.all(m.scale):  # what was 0 may have been of any size
        return np.inf
    with np.errstate(all="ignore"):
        inverse = AffineMap(1.0 / m.scale, m.shift / m.scale)
    return _scaled(size, inverse)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _shown(plan: Plan, value: ir.Value, found: Mapping[ir.Value, float]) -> float:
    """Return the growth of what shows ``value`` as large as it is; infinity where a reader of it does not."""
    readers = [use.node for use in value.uses() if not states(use.node).shape_only]
    return max((_shown_by(plan, reader, found) for reader in readers), default=np.inf)


def _shown_by(plan: Plan, reader: ir.Node, found: Mapping[ir.Value, float]) -> float:
    if reader in plan.remainders:  # from now on the value is what this map made
        return found.get(reader.outputs[0], 1.0)
    if states(reader).magnitude is not Magnitude.KEPT:
        return np.inf
    return max((found[out] for out in reader.outputs if out in plan.up), default=np.inf)


def _made(plan: Plan, state: GraphState, value: ir.Value, found: Mapping[ir.Value, float]) -> float:
    """Return the growth of ``value`` by that of what it is made of; infinity where that does not bound it."""
    maker = value.producer()
    if maker is None:
        return np.inf
    if maker in plan.remainders:
        left, size = plan.remainders[maker], found.get(data_input(state.view, maker), 1.0)
        return size if left is None else _scaled(size, left)
    row = states(maker)
    if row.norm:  # without its scale and bias no element is larger than the root of their number
        return 1.0
    sizes = [found.get(each, 1.0) for each in maker.inputs if each is not None and each in plan.down]
    if row.sums:
        return sum(sizes) if len(sizes) == len(maker.inputs) else np.inf
    return np.inf if row.magnitude is Magnitude.FREE else max(sizes, default=np.inf)
