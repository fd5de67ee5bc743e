"""Decisions of a graph in float64 that no real input has a part in, taken in the graph's own types.

``Floor(Range(60) / 1.7)`` may round to another cell in float64 than in float32, in which a runtime computes it, and the
module did. So of each real value that a decision reads, and that follows from sizes, whole numbers and constants alone,
there is a twin: the same in the type that the graph gives it, each operator computed in float64 and rounded once, as
IEEE 754 rounds sums, products, quotients and roots. Where an operator jumps (:data:`JUMPS`, or a whole number made of
real ones), it is run on the twins. But not on a size: PyTorch computes those in Python's float64, and a graph that
rounds one otherwise in float64 is wrong at some size, if not at this one.

:mod:`normdeploy.runtime.decisions` does the same for the module, and says why that hides no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from normdeploy.graph import operator
from normdeploy.runtime.float64.step import Value, wide

JUMPS = frozenset({"Floor", "Ceil", "Round", "Mod", "Sign"})
"""Operators of real results that jump where their inputs do not."""
_DECIDE = JUMPS | {
    "Cast", "CastLike", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin", "TopK",
    "Range",
}  # fmt: skip
_SIZES = ("Shape", "Size")
_PLACES = ("Range", "ConstantOfShape", "NonZero", "Expand", "Tile", "CumSum")
"""Operators that make places of sizes, which PyTorch has as tensors."""
Run = Callable[[list[Value]], list[Value]]


class Decisions:
    """The twins of one run."""

    def __init__(self) -> None:
        self._twins: dict[ir.Value, Value] = {}
        self._sizes: set[ir.Value | None] = set()
        self._read: dict[ir.Graph | ir.GraphView, frozenset[ir.Value]] = {}

    def taken(self, node: ir.Node, inputs: Sequence[Value], outputs: list[Value], run: Run) -> list[Value]:
        """Return ``outputs``, which ``run`` makes of ``inputs`` in float64, as the twins of the inputs decide them."""
        for value in node.outputs:
            self._twins.pop(value, None)
        by_sizes = self._by_sizes(node, inputs, outputs)
        if by_sizes and operator(node) not in _PLACES:
            self._sizes.update(node.outputs)
        graph = node.graph
        if graph is None or _has_body(node) or not any(map(_is_real, (*inputs, *outputs))):
            return outputs
        if graph not in self._read:
            self._read[graph] = _read_by_decisions(graph)
        decides = operator(node) in _DECIDE
        if not decides and self._read[graph].isdisjoint(node.outputs):
            return outputs
        twins = [
            self._twin(value, array) if _is_real(array) else array
            for value, array in zip(node.inputs, inputs, strict=False)
        ]
        if any(twin is None and array is not None for twin, array in zip(twins, inputs, strict=True)):
            return outputs
        found = outputs if (decides and by_sizes) or all(map(_same, twins, inputs)) else run(twins)
        for value, array in zip(node.outputs, found, strict=False):
            if _is_real(array) and value.dtype is not None and value.dtype.is_floating_point():
                with np.errstate(all="ignore"):
                    self._twins[value] = wide(array.astype(value.dtype.numpy()))
        if operator(node) in JUMPS:
            return found
        return [own if _is_real(own) else other for own, other in zip(outputs, found, strict=True)]

    def _by_sizes(self, node: ir.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> bool:
        """Return True if ``node`` makes numbers of as many sizes, and of stored numbers: not of stored places."""
        if operator(node) in _SIZES:
            return True
        made = [
            (value, array)
            for value, array in zip(node.inputs, inputs, strict=False)
            if value is not None and ir.convenience.get_const_tensor(value) is None
        ]
        if not made or not self._sizes.issuperset(value for value, _ in made):
            return False
        return all(np.size(array) <= max(np.size(size) for _, size in made) for array in outputs)

    def _twin(self, value: ir.Value | None, array: Value) -> Value:
        """Return what ``value`` holds in its own type; None where a real input has a part in it."""
        if value is not None and value.const_value is not None:
            return array  # a stored number is what it is
        return None if value is None else self._twins.get(value)


def _has_body(node: ir.Node) -> bool:
    """Return True for a node whose results follow from more than its inputs."""
    return any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())


def _same(twin: Value, array: Value) -> bool:
    return twin is array or np.array_equal(twin, array)


def _is_real(value: Value) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc"


def _read_by_decisions(graph: ir.Graph | ir.GraphView) -> frozenset[ir.Value]:
    """Return the values of ``graph``, and of those around it, that a decision in it follows from."""
    found: set[ir.Value | None] = set()
    for node in reversed(list(graph)):
        if operator(node) not in _SIZES and (operator(node) in _DECIDE or not found.isdisjoint(node.outputs)):
            found.update(node.inputs)
    return frozenset(value for value in found if value is not None)
