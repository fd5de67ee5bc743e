"""Sizes that travel: what is known of the elements of vectors that are made of shapes.

``Reshape(x, Concat(Shape(x)[0], [-1, 64]))`` is how an exporter spells a view of any batch. Each element of such a
vector is a number, the name of a size, or None.
"""

from __future__ import annotations

import math

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

    def enter(self, node: ir.Node) -> np.ndarray | None:
        """Note what ``node`` makes of sizes; return it as an int64 array where every element is a number."""
        made = self._made(node)
        if made is None:
            return None
        self._known[node.outputs[0]] = made
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
        if operator == "Gather" and _number(node, "axis", 0) == 0:
            return self._gathered(node)
        if operator == "Concat" and _number(node, "axis", None) in (0, -1):
            parts = [self.of(value) for value in node.inputs]
            known = [part for part in parts if part is not None]
            return None if len(known) < len(parts) else tuple(size for part in known for size in part)
        return None

    def _gathered(self, node: ir.Node) -> Dims | None:
        sizes, indices = self.of(node.inputs[0]), self._scope.array(node.inputs[1])
        if sizes is None or indices is None or indices.size > _MANY:
            return None
        chosen = indices.reshape(-1).tolist()
        if not all(-len(sizes) <= index < len(sizes) for index in chosen):
            return None
        return tuple(sizes[index] for index in chosen)


def _number(node: ir.Node, name: str, default: int | None) -> int | None:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
