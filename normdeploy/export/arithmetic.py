"""Numbers that a network computes of its sizes come out in the graph as they do in Python.

Python multiplies a size by 0.7 in float64 and divides integers to the floor. torch.onnx writes float32, where 90 * 0.7
is 63 and not 62.99999999999999, and ONNX's Div, which goes to zero. So what torch wrote for such a number is written
anew from the trace: an integer is exact, and a float is rounded once, where a tensor meets it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

_TO_INTEGER: Mapping[Any, str] = {math.trunc: "", math.floor: "Floor", math.ceil: "Ceil", round: "Round"}
"""From a float to an integer: the operator before the cast, which cuts off as trunc does; Round goes to even."""
_DIVIDED = (operator.floordiv, operator.mod)
_IN_FLOAT64: Mapping[Any, str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    operator.pow: "Pow",
    operator.neg: "Neg",
    torch.sym_max: "Max",
    torch.sym_min: "Min",
    torch._sym_sqrt: "Sqrt",  # type: ignore[attr-defined]  # what math.sqrt of a size is traced as
}


class _Unknown(Exception):
    """A step that is not known here: what torch wrote stays."""


def write_sizes(model: ir.Model, program: ExportedProgram) -> None:
    """Write each number of ``model`` that comes of floats or of floor division on sizes as Python computes it.

    Args:
        model: what torch.onnx made of ``program``: its values are called as the nodes of the trace.
        program: the trace as it was translated.
    """
    values = {str(value.name): value for each in model.graph for value in each.outputs}
    for node in program.graph.nodes:
        written = values.get(node.name)
        if written is None or written.producer() is None or not (_is_delicate(node) or _is_float(node)):
            continue
        writer = _Writer(model.graph, values, written)
        try:
            value = writer.integer(node) if _is_delicate(node) else writer.rounded(node)
        except _Unknown:
            continue
        value.shape, value.type = written.shape, written.type
        written.replace_all_uses_with(value, replace_graph_outputs=True)
        written.name, value.name = None, node.name
        values[node.name] = value


def _is_delicate(node: torch.fx.Node) -> bool:
    return _is_whole(node) and (node.target in _TO_INTEGER or node.target in _DIVIDED)


def _is_whole(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.SymInt)


def _is_float(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.SymFloat)


class _Writer:
    """Writes the steps to one number, before what torch had ``written`` for it."""

    def __init__(self, graph: ir.Graph, values: Mapping[str, ir.Value], written: ir.Value) -> None:
        self._graph, self._values, self._written = graph, values, written

    def integer(self, node: Any) -> ir.Value:
        """Return an integer of the trace."""
        if isinstance(node, int):
            return self._constant(np.array(node, np.int64))
        if not _is_whole(node):
            raise _Unknown
        if node.target in _TO_INTEGER:
            given, *further = node.args
            if not _is_float(given) or any(each is not None for each in further):  # of an integer, or to decimals
                raise _Unknown
            exact, step = self.float64(given), _TO_INTEGER[node.target]
            return self._cast(self._made(step, exact) if step else exact, ir.DataType.INT64)
        if node.target in _DIVIDED:
            a, b = map(self.integer, node.args)
            rest = self._made("Mod", a, b)  # of the sign of b, as in Python
            return rest if node.target is operator.mod else self._made("Div", self._made("Sub", a, rest), b)
        if node.name not in self._values:
            raise _Unknown
        return self._values[node.name]

    def rounded(self, node: torch.fx.Node) -> ir.Value:
        """Return a float of the trace in the type that torch wrote it in."""
        if self._written.dtype is None:
            raise _Unknown
        return self._cast(self.float64(node), self._written.dtype)

    def float64(self, node: Any) -> ir.Value:
        """Return a number of the trace in float64, as Python's floats are."""
        if isinstance(node, int | float):
            return self._constant(np.array(node, np.float64))
        if _is_whole(node):
            return self._cast(self.integer(node), ir.DataType.DOUBLE)
        if node.target is torch.sym_float:
            return self.float64(node.args[0])
        if not _is_float(node) or node.target not in _IN_FLOAT64:
            raise _Unknown
        return self._made(_IN_FLOAT64[node.target], *map(self.float64, node.args))

    def _constant(self, array: np.ndarray) -> ir.Value:
        return self._made("Constant", attributes=[ir.AttrTensor("value", ir.tensor(array))])

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self._made("Cast", value, attributes=[ir.AttrInt64("to", dtype)])

    def _made(self, operator: str, *inputs: ir.Value, attributes: list[ir.Attr] | None = None) -> ir.Value:
        node, written = ir.Node("", operator, inputs, attributes or ()), self._written.producer()
        assert written is not None
        node.metadata_props.update(written.metadata_props)
        self._graph.insert_before(written, node)
        return node.outputs[0]
