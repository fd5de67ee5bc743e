"""Norms in a graph: as one operator, or spelled out as mean of squares → root → division."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from normdeploy.graph import operator

NORMS = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
    }
)
"""Normalization operators of the standard domain."""

_AVERAGES = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
_ROOTS = frozenset({"Sqrt", "Reciprocal"})
_RESHAPING = frozenset({"Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity"})
_PASSING = _ROOTS | _RESHAPING | {"Add", "Sub", "Max", "Clip", "Pow"}
_LAST = frozenset({"Div", "Mul"})
_GUARDS = frozenset({"Add", "Max", "Clip"})


def norm_chains(model: ir.Model) -> tuple[tuple[ir.Node, ...], ...]:
    """Every norm spelled out in elementary operators: the nodes from its mean, or its square, to the division."""
    chains = (_chain(node) for node in model.graph.all_nodes())
    return tuple(chain for chain in chains if chain)


def guarded(guard: ir.Node) -> tuple[ir.Node, ...]:
    """``guard``, which keeps a divisor or a logarithm from zero by an epsilon, with all from there to the division."""
    if operator(guard) not in _GUARDS:
        return ()
    found, pending = {guard: None}, [guard]
    while pending:
        for node in pending.pop().successors():
            if node not in found and operator(node) in _ROOTS | _RESHAPING | _LAST | {"Pow", "Log"}:
                found[node] = None
                pending += [node] if operator(node) in _ROOTS | _RESHAPING | {"Pow"} else []
    return tuple(found)


def _chain(start: ir.Node) -> tuple[ir.Node, ...]:
    """The norm whose sum of squares ``start`` is; empty when it is none, or no root is taken of it."""
    source = start.inputs[0] if start.inputs else None
    squares = operator(start) in _AVERAGES and source is not None and _is_square(source.producer())
    if not squares and operator(start) not in ("ReduceL2", "ReduceSumSquare"):
        return ()
    found = dict.fromkeys([start, *_upstream(source)])
    pending = [start]
    while pending:
        for node in pending.pop().successors():
            if node not in found and operator(node) in _PASSING | _LAST:
                found[node] = None
                # the numerator's centring, and the other mean of E[x²] - E[x]²
                found.update(dict.fromkeys(part for value in node.inputs for part in _upstream(value)))
                if operator(node) in _PASSING:
                    pending.append(node)
    return tuple(found) if any(_is_root(node) for node in found) else ()


def _upstream(value: ir.Value | None) -> Iterator[ir.Node]:
    """The square, the centring and the mean that ``value`` was computed by, nearest first."""
    node = value.producer() if value is not None else None
    if node is None:
        return
    if _is_square(node):
        yield node
        yield from _upstream(node.inputs[0])
    elif operator(node) == "ReduceMean":
        yield node
    elif operator(node) == "Sub" and _is_mean_of(node.inputs[1], node.inputs[0]):
        yield node
        yield from _upstream(node.inputs[1])


def _is_mean_of(value: ir.Value | None, source: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and operator(node) == "ReduceMean" and node.inputs[0] is source


def _is_square(node: ir.Node | None) -> bool:
    if node is None or operator(node) not in ("Mul", "Pow"):
        return False
    if operator(node) == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return exponent is not None and bool((exponent.numpy() == 2).all())


def _is_root(node: ir.Node) -> bool:
    return operator(node) in _ROOTS | {"ReduceL2"} or (operator(node) == "Pow" and not _is_square(node))
