"""The search: a map travels upward to the producers of what it acts on, else downward to all consumers.

A journey visits operators in topological order, so that a value with several readers is judged when all of
them have spoken. It either ends in weights on every branch, or is refused as a whole with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.maps import data_input
from normdeploy.fold.plan import Plan
from normdeploy.fold.travel import journey_up, new_plan, shift_first, travel_down


def plans(state: GraphState, node: ir.Node) -> Iterator[Plan | Refused]:
    """Return every plan for the map of ``node``, best first, or the refusal in its place."""
    m = state.maps[node]
    if m.is_identity:
        yield new_plan(state, node)
        return
    for attempt in _attempts(state, node, m):
        try:
            yield attempt(state, node, m)
        except Refused as refusal:
            yield refusal


Attempt = Callable[[GraphState, ir.Node, AffineMap], Plan]


def _attempts(state: GraphState, node: ir.Node, m: AffineMap) -> Iterator[Attempt]:
    """Yield all ways to try: first what leaves nothing of the map, then nothing of this node, then an Add."""
    both = not m.scales_nothing and not m.shifts_nothing
    twins, partners = _twins(state, node, m), _partners(state, node)
    whole = new_plan(state, node)
    yield _up_whole
    if twins:
        yield _up_with_twins
    yield partial(_down_whole, whole)
    # A journey that treats maps in another way is another one only where it met one, or was given up.
    meets = len(whole.remainders) > 1 or state.is_given_up
    if meets and m.shifts_nothing:
        yield _down_past_adds
    if both:
        yield _scale_up_shift_down
    if partners:
        yield _down_together
        if not m.scales_nothing:
            yield _down_with_partners
    if meets:
        yield _down_until_maps
        yield _down_to_last_map
    if both:
        yield _scale_up_shift_stays
        if twins:
            yield _scale_up_shift_stays_with_twins
        yield _scale_down_shift_stays


def _up_whole(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    return journey_up(state, [node], m)


def _down_whole(plan: Plan, state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    travel_down(state, plan, node, m)
    return plan


def _down_past_adds(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Send a scale alone past constant Adds, which stay: ``s x + a = s (x + a / s)``."""
    plan = new_plan(state, node)
    travel_down(state, plan, node, m, past_adds=True)
    return plan


def _scale_up_shift_down(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    plan = journey_up(state, [node], m.without_shift())
    travel_down(state, plan, node, m.only_shift())
    return plan


def _scale_up_shift_stays(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    plan = journey_up(state, [node], m.without_shift())
    plan.remainders[node] = m.only_shift()
    return plan


def _scale_down_shift_stays(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    plan = new_plan(state, node)
    plan.remainders[node] = shift_first(m, node)
    travel_down(state, plan, node, m.without_shift())
    return plan


def _down_until_maps(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Let the map join the next maps on its way, which stay."""
    plan = new_plan(state, node)
    travel_down(state, plan, node, m, stop_at_maps=True)
    require_fewer(plan, node)
    return plan


def _down_to_last_map(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Let all maps in a row become what the last of them is."""
    plan = new_plan(state, node)
    travel_down(state, plan, node, m, stop_at_maps=True, at_last=True)
    require_fewer(plan, node)
    return plan


def require_fewer(plan: Plan, node: ir.Node, *, than: int | None = None) -> None:
    """Refuse a plan that leaves as many operators as its maps are, or ``than`` are allowed."""
    left = (rest for rest in plan.remainders.values() if rest is not None)
    pair = 1 if plan.has_norm else 2  # what a map with a scale and a shift is written as
    count = sum(1 if rest.scales_nothing or rest.shifts_nothing else pair for rest in left)
    if count >= (len(plan.remainders) if than is None else than + 1):
        raise Refused("NF006", "as many operators would be left as there are", node)


# -- several maps together -------------------------------------------------------------------------


def _up_with_twins(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Send the same map behind every part of a Split up as one."""
    return journey_up(state, [node, *_twins(state, node, m)], m)


def _scale_up_shift_stays_with_twins(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    nodes = [node, *_twins(state, node, m)]
    plan = journey_up(state, nodes, m.without_shift())
    return replace(plan, remainders=plan.remainders | dict.fromkeys(nodes, m.only_shift()))


def _twins(state: GraphState, node: ir.Node, m: AffineMap) -> list[ir.Node]:
    """Return the other nodes that do the same to what the producer of the data of ``node`` makes."""
    producer = data_input(state.view, node).producer()
    readers = [use.node for value in (producer.outputs if producer is not None else ()) for use in value.uses()]
    others = dict.fromkeys(reader for reader in readers if reader is not node and reader in state.maps)
    return [other for other in others if state.maps[other].equals(m)]


def _down_together(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Send maps whose results are read together, as queries and keys are, down as they are."""
    partners = _partners(state, node)
    plan = replace(new_plan(state, node), remainders=dict.fromkeys([node, *partners]))
    travel_down(state, plan, node, m, together={partner: state.maps[partner] for partner in partners})
    return plan


def _down_with_partners(state: GraphState, node: ir.Node, m: AffineMap) -> Plan:
    """Send a map down where others come in: ``s x + t + u y + v = s (x + (u / s) y) + t + v``, and ``u / s`` stays.

    Each partner is left with ``u / s``, and what it makes lacks ``s`` and ``v`` from now on.
    """
    if not m.scale.all():
        raise Refused("NF205", "a scale of 0 cannot be taken out of a sum", node)
    plan, due = new_plan(state, node), {}
    for partner in _partners(state, node):
        own = state.maps[partner]
        rest = m.divides(own) if _fits(state, m, partner.outputs[0]) else None
        if rest is None:
            raise Refused("NF215", "the maps that meet act on tensors of different shape", partner)
        plan.remainders[partner] = None if rest.is_identity else rest
        due[partner] = AffineMap(m.scale, own.shift)
    travel_down(state, plan, node, m, together=due)
    return plan


def _fits(state: GraphState, m: AffineMap, value: ir.Value) -> bool:
    """True where ``m`` varies over no axis of ``value`` that is of another size: both may only lie side by side."""
    shape = state.view.shape(value)
    return shape is None or len(shape) != m.rank or all(shape[axis] == m.size(axis) for axis in m.axes)


def _partners(state: GraphState, node: ir.Node) -> list[ir.Node]:
    """Return the other maps whose results are read together with that of ``node``."""
    inputs = [value for use in node.outputs[0].uses() for value in use.node.inputs if value is not None]
    makers = dict.fromkeys(value.producer() for value in inputs)
    return [maker for maker in makers if maker is not None and maker is not node and maker in state.maps]
