"""Sizes that travel: what is known of the elements of vectors that are made of shapes.

``Reshape(x, Concat(Shape(x)[0], [-1, 64]))`` is how an exporter spells a view of any batch. Each element of such a
vector is a number, the name of a size, or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normdeploy.clean.scope import Scope
from normdeploy.clean.shapes import Dims, Shapes

_KEEPS_ELEMENTS = ("Squeeze", "Unsqueeze", "Reshape", "Identity", "Flatten")
_MANY = 2**8
"""Elements above which a vector is no shape."""


class Sizes:
    """The vectors of one scope, entered node by node in order."""

    def __init__(self, scope: Scope, shapes: Shapes) -> None:
        self._scope, self._shapes = scope, shapes
        self._known: dict[ir.Value, Dims] = {}
        self._ranks: dict[ir.Value, int | None] = {}

    def enter(self, node: ir.Node) -> np.ndarray | None:
        """Note what ``node`` makes of sizes; return it as an int64 array where every element is a number."""
        made = self._made(node)
        if made is None:
            return None
        self._known[node.outputs[0]], self._ranks[node.outputs[0]] = made, self._rank_made(node)
        numbers = [element for element in made if isinstance(element, int)]
        if len(numbers) < len(made):
            return None
        if self._scope.operator(node) in ("Shape", "Concat"):
            return np.array(numbers, np.int64)
        shape = self._shapes.of(self._scope, node.outputs[0])
        if shape is None:  # a number or a vector of one: only who evaluates the operator knows
            return None
        fixed = [size for size in shape if isinstance(size, int)]
        fits = len(fixed) == len(shape) and math.prod(fixed) == len(numbers)
        return np.array(numbers, np.int64).reshape(fixed) if fits else None

    def of(self, value: ir.Value | None) -> Dims | None:
        """Return what is known of the elements of ``value``, in order; None where it is no vector of sizes."""
        if value in self._known:
            return self._known[value]
        tensor = self._scope.constant(value)
        if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > _MANY or len(tensor.shape) > 1:
            return None
        return tuple(tensor.numpy().reshape(-1).tolist())

    def _made(self, node: ir.Node) -> Dims | None:
        operator = self._scope.operator(node)
        if operator == "Shape":
            shape = self._shapes.of(self._scope, node.inputs[0])
            return None if shape is None else shape[_number(node, "start", 0) : _number(node, "end", None)]
        if operator in _KEEPS_ELEMENTS:
            return self.of(node.inputs[0])
        if operator not in ("Gather", "Concat") or not all(map(self._is_vector, _data(operator, node))):
            return None  # of a matrix, the elements would be taken in another order
        if operator == "Gather" and _number(node, "axis", 0) == 0:
            return self._gathered(node)
        if operator == "Concat" and _number(node, "axis", None) in (0, -1):
            parts = [self.of(value) for value in node.inputs]
            known = [part for part in parts if part is not None]
            return None if len(known) < len(parts) else tuple(size for part in known for size in part)
        return None

    def _is_vector(self, value: ir.Value | None) -> bool:
        if value in self._ranks:
            return self._ranks[value] == 1
        tensor = self._scope.constant(value)
        return tensor is not None and len(tensor.shape) == 1

    def _rank_made(self, node: ir.Node) -> int | None:
        """Return the rank of what ``node``, of which the elements are known, makes; None where it is not certain."""
        operator, rank = self._scope.operator(node), self._ranks.get(node.inputs[0]) if node.inputs[0] else None
        if operator in ("Shape", "Concat"):
            return 1
        if operator == "Identity":
            return rank
        second = self._scope.array(node.inputs[1]) if len(node.inputs) > 1 else None
        if operator == "Gather":
            return None if second is None else second.ndim
        if operator == "Reshape":
            return None if second is None else second.size
        axes = node.attributes.get("axes")
        count = len(axes.as_ints()) if axes is not None else None if second is None else second.size
        if operator not in ("Squeeze", "Unsqueeze") or rank is None or count is None:
            return None
        return rank + count if operator == "Unsqueeze" else rank - count

    def _gathered(self, node: ir.Node) -> Dims | None:
        sizes, indices = self.of(node.inputs[0]), self._scope.array(node.inputs[1])
        if sizes is None or indices is None or indices.size > _MANY:
            return None
        chosen = indices.reshape(-1).tolist()
        if not all(-len(sizes) <= index < len(sizes) for index in chosen):
            return None
        return tuple(sizes[index] for index in chosen)


def _data(operator: str, node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs if operator == "Concat" else node.inputs[:1]


def _number(node: ir.Node, name: str, default: int | None) -> int | None:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
