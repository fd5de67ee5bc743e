"""Norms in a graph: as one operator, or spelled out as averages → root → division.

A norm that is spelled out is known by its root: one that is taken of averages, through whatever elementwise operators
(an epsilon, a correction of n / (n - 1), the square of another average), divides what it is a norm of. To its
statistics belong the squares that are averaged, the centring before these, and that of the numerator. A
BatchNormalization whose statistics are computed takes a root itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from normdeploy.graph import operator

_AVERAGES = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "LpPool"}
    | {"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"}
)
_ROOTS = frozenset({"Sqrt", "Reciprocal", "Pow", "ReduceL2", "GlobalLpPool", "LpPool"})
_RESHAPING = frozenset({"Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Flatten", "Pad", "Cast"})
_GUARDS = frozenset({"Add", "Max", "Clip"})
_SCALING = frozenset({"Sub", "Pow", "Sqrt", "Reciprocal", "BatchNormalization"})
"""Of them the last one is what the fold makes of a correction and an epsilon."""
_ELEMENTWISE = _GUARDS | _SCALING | {"Mul", "Div", "Min", "Abs", "Neg", "Relu", "Where", "Exp"}
_PASSING = _RESHAPING | _GUARDS | _SCALING | _AVERAGES
_LAST = frozenset({"Div", "Mul"})


def norm_chains(model: ir.Model) -> tuple[tuple[ir.Node, ...], ...]:
    """Return every norm spelled out in elementary operators: the nodes from its averages to the division."""
    chains: list[tuple[ir.Node, ...]] = []
    known: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        chain = () if node in known else _chain(node)
        known.update(chain)
        chains += [chain] if chain else []
    return tuple(chains)


def averaging(chain: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """Return the nodes of a norm that average or square: those that 16 bits have no room for."""
    return tuple(node for node in chain if operator(node) in _AVERAGES or _is_square(node))


def guarded(guard: ir.Node) -> tuple[ir.Node, ...]:
    """Return ``guard``, which keeps a divisor or a logarithm from zero by an epsilon, with all from there to the
    division.
    """
    if operator(guard) not in _GUARDS:
        return ()
    found, pending = {guard: None}, [guard]
    on_the_way = _RESHAPING | {"Sqrt", "Reciprocal", "Pow"}
    while pending:
        for node in pending.pop().successors():
            if node not in found and operator(node) in on_the_way | _LAST | {"Log"}:
                found[node] = None
                pending += [node] if operator(node) in on_the_way else []
    return tuple(found)


def _chain(root: ir.Node) -> tuple[ir.Node, ...]:
    """Return the norm whose root ``root`` takes; empty where that is no root, or none of averages."""
    if operator(root) == "BatchNormalization":
        return tuple(_statistics(root.inputs[3:5]))
    if not _is_root(root):
        return ()
    found = _statistics([root.outputs[0]])
    squares = any(_is_square(value.producer()) for node in found for value in node.inputs if value is not None)
    if not found or (operator(root) == "Reciprocal" and not squares):
        return ()
    return tuple(found | _division(root))


def _division(root: ir.Node) -> dict[ir.Node, None]:
    """Return what follows ``root`` up to the divisions by it, with the centring of what is divided."""
    found, pending = {root: None}, [root]
    while pending:
        for node in pending.pop().successors():
            if node not in found and operator(node) in _PASSING | _LAST:
                found[node] = None
                for value in node.inputs:
                    found |= _centred(value)
                pending += [node] if operator(node) in _PASSING else []
    return found


def _statistics(values: Iterable[ir.Value | None]) -> dict[ir.Node, None]:
    """Return the averages that ``values`` are made of, what leads from there to them, and what is averaged."""
    above: dict[ir.Node, None] = {}
    pending = [value.producer() for value in values if value is not None]
    while pending:
        node = pending.pop()
        if node is not None and node not in above and operator(node) in _AVERAGES | _ELEMENTWISE | _RESHAPING:
            above[node] = None
            if operator(node) not in _AVERAGES:
                pending += [value.producer() for value in node.inputs if value is not None]
    averages = [node for node in above if operator(node) in _AVERAGES]
    found, pending = dict.fromkeys(averages), list(averages)
    while pending:
        made = pending.pop()
        below = [node for node in made.successors() if node in above and node not in found] if made else []
        found.update(dict.fromkeys(below))
        pending += below
    for average in averages:
        found |= _centred(average.inputs[0])
    return found


def _centred(value: ir.Value | None) -> dict[ir.Node, None]:
    """Return the squares and the centring that ``value`` was computed by; empty where it was by neither."""
    found: dict[ir.Node, None] = {}
    pending = [value.producer() if value is not None else None]
    while pending:
        node = pending.pop()
        moved, path = node, dict[ir.Node, None]()
        while moved is not None and operator(moved) in _RESHAPING and moved.inputs[0] is not None:
            path[moved] = None
            moved = moved.inputs[0].producer()
        if moved is None or moved in found:
            continue
        factors = [each for each in moved.inputs if each is not None]
        if _is_square(moved) or operator(moved) == "Abs":
            found |= path | {moved: None}
            pending += [each.producer() for each in factors]
        elif operator(moved) == "Mul" and any(_is_square(each.producer()) for each in factors):  # weighted
            found |= path | {moved: None}
            pending += [each.producer() for each in factors if _is_square(each.producer())]
        elif operator(moved) == "Sub" and (mean := _statistics_of_mean(factors[-1])):
            found |= path | {moved: None} | mean
    return found


def _statistics_of_mean(value: ir.Value) -> dict[ir.Node, None]:
    """Return the average that ``value`` is, with what moved and scaled it; empty where it is none."""
    found: dict[ir.Node, None] = {}
    pending = [value.producer()]
    averaged = False
    while pending:
        node = pending.pop()
        if node is None or node in found:
            continue
        if operator(node) in _AVERAGES:
            found[node], averaged = None, True
        elif operator(node) in _RESHAPING | _LAST:
            found[node] = None
            pending += [each.producer() for each in node.inputs if each is not None]
    return found if averaged else {}


def _is_square(node: ir.Node | None) -> bool:
    if node is None or operator(node) not in ("Mul", "Pow"):
        return False
    if operator(node) == "Mul":
        return _is_same(node.inputs[0], node.inputs[1])
    exponent = _exponent(node)
    return exponent is not None and bool((exponent == 2).all())


def _is_same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Return True if both are one value, or made by two nodes of one operator from the same values."""
    if one is other:
        return one is not None
    made, again = (value.producer() if value is not None else None for value in (one, other))
    if made is None or again is None or operator(made) != operator(again) or operator(made) not in _ELEMENTWISE:
        return False
    pairs = zip(made.inputs, again.inputs, strict=False)
    return all(a is b or (a is not None and b is not None and _same_mean(a, b)) for a, b in pairs)


def _same_mean(one: ir.Value, other: ir.Value) -> bool:
    made, again = one.producer(), other.producer()
    if made is None or again is None or operator(made) not in _AVERAGES:
        return False
    return operator(made) == operator(again) and made.inputs[0] is again.inputs[0]


def _is_root(node: ir.Node) -> bool:
    if operator(node) != "Pow":
        return operator(node) in _ROOTS
    exponent = _exponent(node)
    return exponent is not None and bool(((exponent != np.round(exponent)) | (exponent < 0)).all())


def _exponent(node: ir.Node) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return None if tensor is None else tensor.numpy()
