"""The affine tail of a LayerNorm or RMSNorm: taken off, and sent down into every consumer.

    LN(x; gamma, beta) = gamma ⊙ LN(x; 1, 0) + beta

Once their tails are gone, norms of the same value with the same epsilon are one norm.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.norms import has_bias
from normdeploy.fold.plan import Plan, Step
from normdeploy.fold.search import require_fewer
from normdeploy.fold.travel import travel_down
from normdeploy.graph import operator

AFFINE_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Norms over trailing axes with a scale (input 1) and, for LayerNormalization, a bias (input 2)."""


def plans(state: GraphState, node: ir.Node, tail: AffineMap) -> Iterator[Plan | Refused]:
    """Return every plan that takes the tail off ``node``, best first, or the refusal in its place."""
    for stop_at_maps in (False, True):
        plan = Plan(source=node, committed=state.committed)
        _strip(Step(state.view, node, plan))
        try:
            travel_down(state, plan, node, tail, stop_at_maps=stop_at_maps)
            _require_scales_to_meet(state, plan)
            require_fewer(plan, node, than=len(plan.remainders))
            yield plan
        except Refused as refusal:
            yield refusal


def _require_scales_to_meet(state: GraphState, plan: Plan) -> None:
    """Refuse to make a scale of an Add: what it had may have gone up into this very norm, and would do so again."""
    for node, remainder in plan.remainders.items():
        if remainder is not None and not remainder.scales_nothing and state.maps[node].scales_nothing:
            raise Refused("NF317", "the scale would stay in a map that has none", node)


def has_zero_bias(state: GraphState, node: ir.Node) -> bool:
    """Return True for a norm whose bias has become zero."""
    return has_bias(node) and not np.any(state.view.array(node.inputs[2]))


def same_core(state: GraphState, node: ir.Node) -> Hashable:
    """Return what two norms without a tail share when they are the same function of the same value; None with a
    tail.
    """
    view = state.view
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None  # each call of the function around it may give another
    if has_bias(node) or not np.all(view.array(node.inputs[1]) == 1) or view.is_used(node, 1) or view.is_used(node, 2):
        return None
    rank = view.rank(node.outputs[0])
    if rank is None:
        return None
    axis = view.attr(node, "axis", -1) % rank
    epsilon = np.float32(view.attr(node, "epsilon", 1e-5))
    return (operator(node), node.inputs[0], axis, epsilon, view.attr(node, "stash_type", 1))


def _strip(step: Step) -> None:
    for index, value in ((1, 1.0), (2, 0.0)):
        edit = step.edit(index)
        if edit is not None:
            step.put(index, Edit(None, edit.dtype, shift=np.full(edit.shape, value)))
