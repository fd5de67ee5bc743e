"""Activations that bend everywhere, as operators and as exporters spell them out."""

from __future__ import annotations

import itertools
import math

from graphs import Graph, Value
from onnx import TensorProto
from weighted import need

_SINCE = {"Gelu": 20, "HardSwish": 14, "Mish": 18}
_ORDERS = tuple(itertools.permutations(range(3)))


def curved(g: Graph) -> Value:
    """A GELU, spelled out by Erf or Tanh with its factors in any order or as an operator; SiLU, HardSwish or Mish."""
    d, v = g.d, g.pick()
    kind = d.one(["Erf", "Tanh", "Sigmoid", "Gelu", "HardSwish", "Mish"])
    if kind == "Sigmoid":
        return g.emit("Mul", [v, g.emit(kind, [v], v.shapes)], v.shapes)
    if kind in _SINCE:
        need(g.opset >= _SINCE[kind])
        approximate = d.one([None, "tanh"]) if kind == "Gelu" else None
        return g.emit(kind, [v], v.shapes, approximate=approximate)
    need(g.opset >= 9 and v.dtype != TensorProto.BFLOAT16)
    bent = g.emit(kind, [_of_erf(g, v) if kind == "Erf" else _of_tanh(g, v)], v.shapes)
    curve = g.emit("Add", [bent, g.scalar(1.0, v.dtype)], v.shapes)
    factors = [v, curve, g.scalar(0.5, v.dtype)]
    first, second, third = (factors[place] for place in d.one(_ORDERS))
    shapes = first.shapes if first is not factors[2] else second.shapes
    return g.emit("Mul", [g.emit("Mul", [first, second], shapes), third], v.shapes)


def _of_erf(g: Graph, v: Value) -> Value:
    return g.emit("Div", [v, g.scalar(math.sqrt(2.0), v.dtype)], v.shapes)


def _of_tanh(g: Graph, v: Value) -> Value:
    """√(2/π) x (1 + 0.044715 x²): a power would be none of negative numbers when its exponent is moved."""
    square = g.emit("Mul", [g.emit("Mul", [v, g.scalar(0.044715, v.dtype)], v.shapes), v], v.shapes)
    factor = g.emit("Add", [square, g.scalar(1.0, v.dtype)], v.shapes)
    return g.emit("Mul", [g.emit("Mul", [v, g.scalar(math.sqrt(2 / math.pi), v.dtype)], v.shapes), factor], v.shapes)
