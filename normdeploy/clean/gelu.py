"""GELUs that an exporter spelled out (Hendrycks and Gimpel 2016, arXiv 1606.08415), in an order that runtimes fuse.

    GELU(x) = ½ x (1 + erf(x / √2))  ≈  ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

½, x and the curve are three factors, and exporters multiply them in each order. ONNX Runtime makes one operator of the
first where ½ meets x, or the product of the others; of the second where ½ meets x. torch.onnx lets ½ meet the curve.
To halve a number changes its exponent only, so the order changes no result but of subnormal numbers and overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import ml_dtypes
import onnx_ir as ir

from normdeploy.clean.scope import Scope

Formula: TypeAlias = "tuple[str, Formula, Formula] | tuple[str, Formula] | float | str"
"""An operator with its operands, a number, or ``x``; the operands of a sum or product may be the other way round."""

_X = "x"
_ERF: Formula = ("Add", ("Erf", ("Div", _X, math.sqrt(2))), 1.0)
_TANH: Formula = (
    "Add", ("Tanh", ("Mul", ("Add", _X, ("Mul", ("Pow", _X, 3.0), 0.044715)), math.sqrt(2 / math.pi))), 1.0,
)  # fmt: skip
_TANH_FACTORED: Formula = (
    "Add",
    ("Tanh", ("Mul", ("Mul", _X, math.sqrt(2 / math.pi)), ("Add", ("Mul", ("Mul", _X, 0.044715), _X), 1.0))),
    1.0,
)
_CURVES = {"Erf": (_ERF,), "Tanh": (_TANH, _TANH_FACTORED)}
_CLOSE = 1e-6
"""How far a number may be from that of the formula, relative to it, where its dtype is not coarser than that."""


@dataclass(frozen=True)
class _Gelu:
    """The two products of ``x``, the curve and ½, the second of which gives the GELU, and every node of it."""

    first: ir.Node
    last: ir.Node
    x: ir.Value
    curve: ir.Value
    half: ir.Value
    nodes: frozenset[ir.Node]

    def meet_first(self, one: ir.Value, other: ir.Value) -> bool:
        """Return True if the first product is that of ``one`` and ``other``."""
        return set(self.first.inputs) == {one, other}


def order_gelus(scope: Scope) -> tuple[frozenset[ir.Node], int]:
    """Let ½ meet x in every GELU of ``scope`` that no runtime would fuse; return the nodes of all, and how many these
    were.
    """
    nodes: set[ir.Node] = set()
    moved = 0
    for curve in [node for node in scope.graph if scope.operator(node) in _CURVES]:
        gelu = _around(scope, curve)
        if gelu is None:
            continue
        nodes |= gelu.nodes
        is_fused = scope.operator(curve) == "Erf" and gelu.meet_first(gelu.x, gelu.curve)
        if not is_fused and not gelu.meet_first(gelu.x, gelu.half):
            _let_half_meet_x(gelu)
            moved += 1
    if moved:
        scope.graph.sort()  # ½ may be made behind what reads it now
    return frozenset(nodes), moved


def _let_half_meet_x(gelu: _Gelu) -> None:
    product = gelu.first.outputs[0]
    for index, value in enumerate((gelu.x, gelu.half)):
        gelu.first.replace_input_with(index, value)
    for index, value in enumerate((product, gelu.curve)):
        gelu.last.replace_input_with(index, value)


# -- finding them ----------------------------------------------------------------------------------


def _around(scope: Scope, curve: ir.Node) -> _Gelu | None:
    """Return the GELU whose Erf or Tanh is ``curve``."""
    plus_one = _only_reader(scope, curve)
    product = plus_one and _only_reader(scope, plus_one)
    for last in (product, product and _only_reader(scope, product)):
        for first in _factors(scope, last):
            gelu = _with(scope, first, last, _CURVES[scope.operator(curve)])
            if gelu is not None and curve in gelu.nodes:
                return gelu
    return None


def _factors(scope: Scope, last: ir.Node | None) -> Iterator[ir.Node]:
    """Yield what may be the first product of three factors, of which ``last`` is the second."""
    if last is None or scope.operator(last) != "Mul":
        return
    for value in last.inputs:
        first = scope.made_by(value, "Mul")
        if first is not None and _only_reader(scope, first) is last:
            yield first


def _with(scope: Scope, first: ir.Node, last: ir.Node | None, curves: Iterable[Formula]) -> _Gelu | None:
    assert last is not None, "a first product has a reader"
    rest = [value for value in last.inputs if value is not first.outputs[0]]
    factors = [value for value in (*first.inputs, *rest) if value is not None]
    halves = [value for value in factors if _is_number(scope, value, 0.5)]
    if len(factors) != 3 or len(halves) != 1:
        return None
    one, other = (value for value in factors if value is not halves[0])
    for x, curve in ((one, other), (other, one)):
        for formula in curves:
            nodes = _matched(scope, curve, formula, x)
            if nodes is not None:
                return _Gelu(first, last, x, curve, halves[0], frozenset({first, last, *nodes}))
    return None


def _matched(scope: Scope, value: ir.Value | None, formula: Formula, x: ir.Value) -> list[ir.Node] | None:
    """Return the nodes by which ``value`` is ``formula`` of ``x``, each with no other reader; None where it is not."""
    if not isinstance(formula, tuple):
        found = value is x if formula == _X else _is_number(scope, value, float(formula))
        return [] if found else None
    kind, *operands = formula
    node = scope.made_by(value, str(kind))
    if node is None or _only_reader(scope, node) is None or len(node.inputs) != len(operands):
        return None
    orders = [node.inputs, node.inputs[::-1]] if kind in ("Add", "Mul") else [node.inputs]
    for inputs in orders:
        parts = [_matched(scope, item, operand, x) for item, operand in zip(inputs, operands, strict=True)]
        if all(part is not None for part in parts):
            return [node, *(each for part in parts for each in part or ())]
    return None


def _is_number(scope: Scope, value: ir.Value | None, number: float) -> bool:
    tensor = scope.constant(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return False
    array = tensor.numpy()
    rounding = float(ml_dtypes.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]  # it has no annotations
    return math.isclose(float(array.reshape(())), number, rel_tol=max(_CLOSE, rounding))


def _only_reader(scope: Scope, node: ir.Node) -> ir.Node | None:
    """Return the node of the same graph that alone reads what ``node`` makes, once."""
    made = node.outputs[0]
    uses = tuple(made.uses())
    if len(uses) != 1 or made.is_graph_output() or uses[0].node.graph is not scope.graph:
        return None
    return uses[0].node
