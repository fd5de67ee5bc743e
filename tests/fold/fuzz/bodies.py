"""Draws If, Loop and Scan whose bodies read values around them: maps, weights, and sums of outer values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import movers
import numpy as np
import onnx
from graphs import Body, Graph, Shape, Shapes, Unfit, Value, broadcast, each
from journeys import ABSORBERS, MAPS, MOVERS, fitting, twins_of
from onnx import TensorProto, helper
from weighted import need

DEEPEST = 2


def conditional(g: Graph) -> Value:
    """If: one branch grows from a value around it, the other is its twin, or a sum of outer values of that shape."""
    need(g.ir_version >= 4 and g.depth < DEEPEST)
    d, v = g.d, g.pick()
    outer = twins_of(g, v) if d.odds(40) else []
    condition = g.input(((), ()), (), TensorProto.BOOL)
    with g.inside() as then:
        last = _sum(g, outer) if outer else _grown(g, v, then)
        if outer and d.odds(60):
            with g.following(last):
                last = fitting(g, MAPS)
    need(then.makes(last))
    with g.inside() as other:
        instead = _instead(g, then, last, other)
    order = [(then, last), (other, instead)]
    bodies = {key: _graph(g, *part) for key, part in zip(("then_branch", "else_branch"), order, strict=True)}
    return g.emit("If", [condition], last.shapes, dtypes=[last.dtype], **bodies)


def loop(g: Graph) -> Value:
    """Loop: a state that is mapped and added to, and what is gathered on the way."""
    need(g.ir_version >= 4 and g.opset >= 11 and g.depth < DEEPEST)
    d, v = g.d, g.pick()
    count = d.int(1, 3)
    trips = g.scalar(count, TensorProto.INT64)
    start = g.store(np.array(True), "s")
    names = [g.name(kind) for kind in ("i", "c", "state")]
    state = Value(names[2], v.shapes, v.dtype)
    with g.inside() as body:
        g.values.append(state)
        last = _same_shape(g, state, body)
        gathered = last if d.odds(30) else None
        more = g.name("c")
        body.nodes.append(helper.make_node("Identity", [names[1]], [more]))
    need(body.makes(last))
    ins = [helper.make_tensor_value_info(names[0], TensorProto.INT64, []), _info(names[1], TensorProto.BOOL, ())]
    outs = [_info(more, TensorProto.BOOL, ()), _told(g, last)]
    shapes: list[Shapes] = [v.shapes]
    if gathered is not None:
        twin = Value(g.name("v"), gathered.shapes, gathered.dtype)
        body.nodes.append(helper.make_node("Identity", [gathered.name], [twin.name]))
        outs.append(_told(g, twin))
        shapes.append(each(lambda s: (count, *s), gathered))
    graph = helper.make_graph(body.nodes, "loop", [*ins, _told(g, state)], outs, list(body.constants.values()))
    return g.emit("Loop", [trips, start, v], *shapes, dtypes=[v.dtype] * len(shapes), body=graph)


def scan(g: Graph) -> Value:
    """Scan over the first axis of a value, with a state."""
    need(g.ir_version >= 4 and g.opset >= 9 and g.depth < DEEPEST)
    d = g.d
    v = g.pick(lambda v: v.rank >= 2)
    first = d.one([u for u in g.values if u.dtype == v.dtype])
    state = Value(g.name("state"), first.shapes, first.dtype)
    part = Value(g.name("part"), each(lambda s: s[1:], v), v.dtype)
    with g.inside() as body:
        g.values += [state, part]
        last = _same_shape(g, state, body)
        piece = _grown(g, part, body)
    need(body.makes(last) and body.makes(piece) and last.name != piece.name)
    ins, outs = [_told(g, state), _told(g, part)], [_told(g, last), _told(g, piece)]
    graph = helper.make_graph(body.nodes, "scan", ins, outs, list(body.constants.values()))
    shapes = (first.shapes, each(lambda a, b: (a[0], *b), v, piece))
    kinds = [first.dtype, piece.dtype]
    return g.emit("Scan", [first, v], *shapes, dtypes=kinds, body=graph, num_scan_inputs=1)


# -- what stands in a body -------------------------------------------------------------------------


def _grown(g: Graph, v: Value, body: Body) -> Value:
    """One to three operators behind ``v``, and perhaps a sum with outer values."""
    d = g.d
    with g.following(v):
        for makers in [d.one([MAPS, ABSORBERS, MOVERS]) for _ in range(d.int(1, 3))]:
            last = fitting(g, makers)
    if g.depth < DEEPEST and d.odds(10):
        with g.following(last):
            last = conditional(g)
    if d.odds(60):
        last = _with_outer(g, last, body)
    return last


def _with_outer(g: Graph, last: Value, body: Body) -> Value:
    """``last`` and what two values around the body add up to."""
    fits = [u for u in body.around if u.dtype == last.dtype and movers.adds(u, last)]
    fits = [u for u in fits if broadcast(u, last) == last.shapes]
    if not fits:
        return last
    other = _sum(g, [g.d.one(fits), g.d.one(fits)]) if g.d.odds(60) else g.d.one(fits)
    return g.emit("Add", [last, other] if g.d.odds(50) else [other, last], last.shapes)


def _sum(g: Graph, values: Sequence[Value]) -> Value:
    return g.emit(g.d.one(["Add", "Sub"]), values, broadcast(*values))


def _same_shape(g: Graph, state: Value, body: Body) -> Value:
    """``state`` after a step that keeps its shape."""
    for _ in range(3):
        try:
            last = _grown(g, state, body)
        except Unfit:
            continue
        if (last.shapes, last.dtype) == (state.shapes, state.dtype):
            return last
    with g.following(state):
        last = fitting(g, MAPS)
    if last.shapes != state.shapes:
        last = g.emit("Neg", [state], state.shapes)
    return last


def _instead(g: Graph, then: Body, last: Value, body: Body) -> Value:
    """What the other branch gives: outer values of the shape of ``last``, or its own nodes with another end."""
    d = g.d
    fits = [u for u in body.around if (u.shapes, u.dtype) == (last.shapes, last.dtype)]
    if fits and d.odds(50):
        return _sum(g, [d.one(fits), d.one(fits)])
    mine = {name: g.name("v") for node in then.nodes for name in node.output if name}
    mine |= {name: g.name("w") for name in then.constants}
    for node in then.nodes:
        need(not any(attr.HasField("g") for attr in node.attribute))
        twin = copy.deepcopy(node)
        for names in (twin.input, twin.output):
            names[:] = [mine.get(name, name) for name in names]
        body.nodes.append(twin)
    for name, tensor in then.constants.items():
        body.constants[mine[name]] = copy.deepcopy(tensor)
        body.constants[mine[name]].name = mine[name]
    end = Value(mine[last.name], last.shapes, last.dtype)
    with g.following(end):
        for _ in range(3):
            other = fitting(g, MAPS)
            if other.shapes == last.shapes:
                return other
    return end


def _graph(g: Graph, body: Body, last: Value) -> onnx.GraphProto:
    return helper.make_graph(body.nodes, "branch", [], [_told(g, last)], list(body.constants.values()))


def _told(g: Graph, value: Value) -> onnx.ValueInfoProto:
    """How a body declares ``value``: with its shape, or with its type alone."""
    here, there = value.shapes
    dims: Any = [a if a == b else None for a, b in zip(here, there, strict=True)] if g.d.odds(50) else None
    return _info(value.name, value.dtype, dims)


def _info(name: str, dtype: int, dims: Shape | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)
