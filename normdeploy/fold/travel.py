"""One journey: a map upward to the producers of what it acts on, or downward to all consumers.

Operators are visited in topological order, so that a value with several readers is judged when all of them have spoken.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.maps import data_input
from normdeploy.fold.operators.table import OPAQUE, row_of, states
from normdeploy.fold.plan import Plan, Step


def new_plan(state: GraphState, node: ir.Node) -> Plan:
    """Return a plan that takes the map of ``node``, and says nothing yet of where it goes."""
    return Plan(source=node, committed=state.committed, remainders={node: None})


def shift_first(m: AffineMap, node: ir.Node) -> AffineMap:
    """Return the shift that does what that of ``m`` does, in front of its scale."""
    before = m.shift_before_scale()
    if before is None:
        raise Refused("NF205", "a scale of 0 cannot follow its shift", node)
    return before


# -- upward ----------------------------------------------------------------------------------------

_JOURNEYS = 16
"""How many ways up are tried where products leave a choice between their factors."""


def journey_up(state: GraphState, nodes: list[ir.Node], m: AffineMap) -> Plan:
    """Return the first plan that sends ``m``, the map of all ``nodes``, up to weights; of a product each factor is
    tried.
    """
    first: Refused | None = None
    choices: dict[ir.Node, list[int]] | None = {}
    for _ in range(_JOURNEYS):
        if choices is None:
            break
        plan = replace(new_plan(state, nodes[0]), choices=choices, remainders=dict.fromkeys(nodes))
        try:
            _travel_up(state, plan, nodes, m)
            return plan
        except Refused as refusal:
            first = first or refusal
            choices = _other(choices)
    assert first is not None, "the first journey was refused, or there would be a plan"
    raise first


def _other(choices: dict[ir.Node, list[int]]) -> dict[ir.Node, list[int]] | None:
    """Return the next choice: the last one that was made and is not the last of its kind; None where there is none."""
    made = list(choices.items())
    while made:
        node, (_, *rest) = made.pop()
        if rest:
            return dict([*made, (node, rest)])
    return None


def _travel_up(state: GraphState, plan: Plan, starts: list[ir.Node], m: AffineMap) -> None:
    wanted: dict[ir.Value, list[AffineMap]] = {}
    queue: list[int] = []
    for start in starts:
        _want(state, plan, wanted, queue, start, data_input(state.view, start), m)
    while queue:
        node = state.nodes[-heapq.heappop(queue)]
        state.step(node)
        outs = [_agreed(state, plan, wanted, value, node) for value in node.outputs]
        for index, part in _pass_up(state, plan, node, outs).items():
            value = node.inputs[index]
            if value is not None and not part.is_identity:
                _want(state, plan, wanted, queue, node, value, part, index)


# An Add that is met on the way up stays, and its constant takes the shift: had it been able to go up itself,
# it would be gone. Any other map that is met is composed.
def _pass_up(state: GraphState, plan: Plan, node: ir.Node, outs: list[AffineMap | None]) -> dict[int, AffineMap]:
    own = state.maps.get(node)
    if own is not None and outs[0] is not None and not own.scales_nothing:
        plan.remainders[node] = None
        data = data_input(state.view, node)
        return {node.inputs.index(data): outs[0].after(own)}
    row = row_of(state.view, node)
    if row is None or row.up is None:
        raise Refused(*(row.why if row else OPAQUE), node)
    asked = row.up(Step(state.view, node, plan), outs)
    if asked:
        plan.through.append(node)
    return asked


def _want(
    state: GraphState,
    plan: Plan,
    wanted: dict[ir.Value, list[AffineMap]],
    queue: list[int],
    reader: ir.Node,
    value: ir.Value,
    m: AffineMap,
    index: int = 0,
) -> None:
    """Ask for ``m`` on ``value``: of a constant at once, of an operator when all its readers have asked."""
    if not m.is_finite:
        raise Refused("NF105", "the composed map is not finite", reader)
    if state.view.is_constant(value):
        _edit_constant(state, plan, reader, index, m)
        return
    producer = value.producer()
    if producer is None:
        raise Refused("NF003", state.view.told_input(value), reader)
    if value not in wanted:
        if not any(out in wanted for out in producer.outputs):
            heapq.heappush(queue, -state.position(producer))
        wanted[value] = []
    wanted[value].append(m)


def _agreed(
    state: GraphState, plan: Plan, wanted: dict[ir.Value, list[AffineMap]], value: ir.Value, node: ir.Node
) -> AffineMap | None:
    """Return the one map that every reader of ``value`` asks for."""
    asked = wanted.get(value)
    if asked is None:
        return None
    if value.is_graph_output():
        raise Refused("NF002", state.view.told_output(value), node)
    if sum(not states(use.node).shape_only for use in value.uses()) != len(asked):
        raise Refused("NF005", f"{value.name} has other readers", node)
    if not all(m.equals(asked[0]) for m in asked):
        raise Refused("NF005", f"the readers of {value.name} need different maps", node)
    plan.up[value] = asked[0]
    return asked[0]


def _edit_constant(state: GraphState, plan: Plan, reader: ir.Node, index: int, m: AffineMap) -> None:
    step = Step(state.view, reader, plan)
    edit = step.edit(index)
    shape = None if edit is None else edit.exact().shape
    if edit is None or shape is None or not state.view.is_float(step.data(index)):
        raise step.refuse("NF103", "the constant it would change is not floating-point")
    if any(m.size(axis) not in (1, shape[axis]) for axis in range(m.rank)):
        raise step.refuse("NF104", "the map would enlarge a constant")
    step.put(index, edit.scaled(left=m.scale).shifted(m.shift))
    step.absorbed()


# -- downward --------------------------------------------------------------------------------------


def travel_down(
    state: GraphState,
    plan: Plan,
    start: ir.Node,
    m: AffineMap,
    *,
    stop_at_maps: bool = False,
    at_last: bool = False,
    past_adds: bool = False,
    together: Mapping[ir.Node, AffineMap] | None = None,
) -> None:
    """Send ``m`` from the first output of ``start`` to every reader; Refused where one cannot take it.

    Args:
        state: the graph.
        plan: what is to change; it is filled in.
        start: the node whose first output lacks ``m`` from now on.
        m: the map.
        stop_at_maps: the next maps on the way take ``m`` and stay; else it takes them along.
        at_last: of maps in a row the last one stays.
        past_adds: a constant Add stays where a scale alone meets it, and its constant changes.
        together: further nodes, with the maps that their first outputs lack.
    """
    queue: list[int] = []
    for node, due in {start: m, **(together or {})}.items():
        _carry(state, plan, queue, node.outputs[0], due, node)
    while queue:
        node = state.nodes[heapq.heappop(queue)]
        if not stop_at_maps:  # such a journey is short
            state.step(node)
        stops = stop_at_maps and not (at_last and _is_map_next(state, node))
        for value, part in zip(node.outputs, _pass_down(state, plan, node, stops, past_adds), strict=False):
            if part is not None and not part.is_identity:
                _carry(state, plan, queue, value, part, node)


def _is_map_next(state: GraphState, node: ir.Node) -> bool:
    """Return True if one map, and nothing else, reads what ``node`` makes."""
    readers = [use.node for use in node.outputs[0].uses()]
    return len(readers) == 1 and readers[0] in state.maps and not node.outputs[0].is_graph_output()


def _pass_down(
    state: GraphState, plan: Plan, node: ir.Node, stop_at_maps: bool, past_adds: bool
) -> list[AffineMap | None]:
    ins = [None if value is None else plan.down.get(value) for value in node.inputs]
    own = state.maps.get(node)
    if own is not None:
        (arrived,) = [m for m in ins if m is not None]
        return [_meet(plan, node, own, arrived, stop_at_maps, past_adds)]
    row = row_of(state.view, node)
    if row is None or row.down is None:
        raise Refused(*(row.why if row else OPAQUE), node)
    carried = row.down(Step(state.view, node, plan), ins)
    if any(m is not None for m in carried):
        plan.through.append(node)
    return carried


def _meet(
    plan: Plan, node: ir.Node, own: AffineMap, arrived: AffineMap, stop_at_maps: bool, past_adds: bool
) -> AffineMap | None:
    """Return what goes on where ``arrived`` meets the map of ``node``.

    A shift alone ends in an Add: that one's turn to travel is yet to come.
    """
    if node in plan.remainders:
        raise Refused("NF011", "of the maps that would go together one lies behind the other", node)
    both = own.after(arrived)
    if stop_at_maps or (own.scales_nothing and arrived.scales_nothing):
        plan.remainders[node] = both
        return None
    if past_adds and own.scales_nothing:
        plan.remainders[node] = shift_first(both, node)
        return both.without_shift()
    plan.remainders[node] = None
    return both


def _carry(state: GraphState, plan: Plan, queue: list[int], value: ir.Value, m: AffineMap, node: ir.Node) -> None:
    """Let every reader of ``value`` meet ``m``."""
    if not m.is_finite:
        raise Refused("NF105", "the composed map is not finite", node)
    if value.is_graph_output():
        raise Refused("NF002", state.view.told_output(value), node)
    plan.down[value] = m
    for position in {state.position(use.node) for use in value.uses()}.difference(queue):
        heapq.heappush(queue, position)
