"""Draws what a map can travel through from end to end: a map, operators that pass it, and weights that take it.

Operators that are drawn one by one seldom line up so; here each reads what the one before it made, alone, or all
the branches of a fork do. Which of these maps really goes all the way is up to the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import curves
import movers
import numpy as np
import products
import recurrent
import sequences
import weighted
from graphs import Graph, Unfit, Value, broadcast, each, numpy_dtype
from weighted import need

Maker = Callable[[Graph], Value]
Makers = Sequence[Maker]

MAPS: Makers = (
    *(weighted.batch_norm,) * 6,
    *(weighted.constant_map,) * 7,
    weighted.negate,
    weighted.decomposed_norm,
)
ABSORBERS: Makers = (
    *(weighted.conv,) * 4,
    *(weighted.conv_transpose,) * 3,
    *(weighted.gemm,) * 3,
    *(weighted.matmul,) * 3,
    recurrent.recurrent,
    products.einsum,
    products.deform_conv,
)
PLAIN: Makers = (
    movers.unchanged,
    movers.cast,
    *(movers.reshape,) * 2,
    movers.flatten,
    movers.unsqueeze,
    movers.squeeze,
    *(movers.transpose,) * 2,
    movers.expand,
    movers.tile,
    movers.cut,
    *(movers.split,) * 2,
    movers.concat,
    movers.gather,
    *(movers.depth_to_space,) * 2,
    *(movers.space_to_depth,) * 2,
    *(movers.pool,) * 4,
    *(movers.global_pool,) * 2,
    movers.reduce_mean,
    *(movers.resize,) * 4,
    *(movers.pad,) * 3,
    movers.total,
    *(movers.bent,) * 2,
    *(curves.curved,) * 2,
    *(movers.kinked,) * 4,
    *(movers.gate,) * 2,
    *(movers.normalized,) * 2,
    products.grid_sample,
)
MOVERS: Makers = (*PLAIN, *(sequences.sequence,) * 3, sequences.optional)


def journey(g: Graph) -> Value:
    """Weights and a map, in either order, and up to three operators between them."""
    ends = [(*ABSORBERS, weighted.embedding), MAPS] if g.d.odds(60) else [MAPS, ABSORBERS]
    with g.following(fitting(g, ends[0])):
        _steps(g, g.d.one([1, 2, 0, 1, 3]))
        return fitting(g, ends[1])


def fork(g: Graph) -> Value:
    """A map that several branches read, or the parts of a Split, each ending in weights."""
    d, start = g.d, fitting(g, MAPS)
    branches = [start] * d.int(2, 3)
    if d.odds(40):
        with g.following(start):
            before = len(g.values)
            movers.split(g)
            branches = g.values[before:]
    for branch in branches:
        with g.following(branch):
            _steps(g, d.int(0, 2))
            last = fitting(g, ABSORBERS)
    return last


def join(g: Graph) -> Value:
    """Twin weights whose results are added up or laid side by side, then a map."""
    v = g.pick(lambda v: v.rank >= 2 and v.fixed(1) and v.fixed(v.rank - 1))
    with g.following(_joined(g, twins_of(g, v))):
        _steps(g, g.d.int(0, 2))
        return fitting(g, MAPS)


def diamond(g: Graph) -> Value:
    """Weights whose result two branches read, which come together before a map."""
    start = fitting(g, ABSORBERS)
    branches = []
    for _ in range(2):
        with g.following(start):
            _steps(g, g.d.int(0, 1))
            branches.append(g.newest)
    with g.following(_joined(g, branches)):
        return fitting(g, MAPS)


def twins(g: Graph) -> Value:
    """Weights whose result is split, and the same map behind every part, or behind all but one."""
    d = g.d
    with g.following(fitting(g, ABSORBERS)):
        before = len(g.values)
        movers.split(g)
        parts = g.values[before:]
    rank, axis = parts[0].rank, d.int(0, 1) if parts[0].rank > 1 else 0
    need(len({part.fixed(axis) for part in parts}) == 1 and parts[0].fixed(axis))
    constant = g.weight((parts[0].shapes[0][axis], *[1] * (rank - axis - 1)), parts[0].dtype)
    op = d.one(["Mul", "Add", "Div"])
    if op == "Div" and not g.plain:  # by no zero
        constant = g.store((np.abs(g.numbers(constant.shapes[0])) + 0.25).astype(numpy_dtype(parts[0].dtype)))
    for part in parts[int(d.odds(15)) :]:
        last = g.emit(op, [part, constant], broadcast(part, constant))
    return last


def partners(g: Graph) -> Value:
    """Maps on two values that come together before weights."""
    start = g.pick()
    bent = g.emit("Relu", [start], start.shapes)
    branches = []
    for value in (start, bent):
        with g.following(value):
            branches.append(fitting(g, MAPS))
    with g.following(_joined(g, branches)):
        _steps(g, g.d.int(0, 1))
        return fitting(g, ABSORBERS)


def fitting(g: Graph, makers: Makers) -> Value:
    """What the first of a few drawn ``makers`` that fits makes."""
    for _ in range(5):
        try:
            return g.d.one(makers)(g)
        except Unfit:
            continue
    raise Unfit


def _steps(g: Graph, count: int) -> None:
    for _ in range(count):
        fitting(g, PLAIN if g.plain else MOVERS)


def twins_of(g: Graph, v: Value) -> list[Value]:
    """Convolutions, or linear layers, of one value and one shape; none where it can have none."""
    if v.rank < 2 or not v.fixed(1) or not v.fixed(v.rank - 1):
        return []
    return _twins(g, v) if v.rank > 2 else [_linear(g, v, 3) for _ in range(2)]


def _twins(g: Graph, v: Value) -> list[Value]:
    """Convolutions, or linear layers, of one shape."""
    d, outs, count = g.d, g.d.int(2, 4), v.rank - 2
    if d.odds(30) or not weighted.is_image(v):
        return [_linear(g, v, outs) for _ in range(2)]
    kernel = d.ints(count, 1, 3)
    found = weighted.window(d, kernel)
    return [weighted.convolved(g, v, kernel, dict(found), groups=1, outs=outs) for _ in range(2)]


def _linear(g: Graph, v: Value, outs: int) -> Value:
    weight = weighted.matrix(g, (v.shapes[0][-1], outs), v.dtype)
    return g.emit("MatMul", [v, weight], each(lambda s: (*s[:-1], outs), v))


def _joined(g: Graph, branches: list[Value]) -> Value:
    first, second = branches
    need(first.dtype == second.dtype)
    op = g.d.one(["Concat", "Add", "Sub", "Sum"])
    if op != "Concat" and movers.adds(first, second):
        need(op != "Sum" or g.opset >= 8 or first.shapes == second.shapes)
        return g.emit(op, branches, broadcast(*branches))
    fits = [axis for axis in range(first.rank) if first.rank == second.rank and movers.beside(first, second, axis)]
    need(fits)
    return movers.side_by_side(g, branches, 1 if 1 in fits and g.d.odds(50) else g.d.one(fits))
