"""One call of an operator, and what its inputs depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Mask = npt.NDArray[np.uint8]
"""Of each element of a value: bit i where it depends on row i of the batch, ``COUNT`` where on how many rows it has."""
COUNT = 1 << 7
ROWS = COUNT - 1


def operator(node: onnx.NodeProto) -> str:
    """Return the full name of the operator that ``node`` calls, as :func:`normdeploy.graph.operator` does.

    A server has no onnx_ir, which that function is made for.
    """
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


@dataclass(frozen=True)
class Call:
    """A node of the graph.

    Attributes:
        masks: of each input; None where one is left out.
        values: of the inputs that are shapes, indices or axes, by their place.
        shapes: of the outputs, where the operator's rule asks for them.
        opset: of ONNX's own operators.
        computed: the places of the inputs that are not constants.
        counts: those that are sizes of other values as they are.
        own_row: the first coordinate of each index is the number of its row.
    """

    node: onnx.NodeProto
    masks: Sequence[Mask | None]
    values: Mapping[int, npt.NDArray[Any]]
    shapes: Mapping[int, tuple[int, ...]]
    opset: int
    computed: frozenset[int] = frozenset()
    counts: frozenset[int] = frozenset()
    own_row: bool = False

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Return name → value."""
        return {each.name: onnx.helper.get_attribute_value(each) for each in self.node.attribute}

    def mask(self, index: int) -> Mask:
        """Return the mask of an input; that of a constant where it is left out."""
        found = self.masks[index] if index < len(self.masks) else None
        return np.zeros((), np.uint8) if found is None else found

    def rest(self, *but: int) -> np.uint8:
        """Return all that the inputs but ``but`` depend on."""
        return everything(*(mask for index, mask in enumerate(self.masks) if index not in but and mask is not None))

    def axes(self, name: str = "axes", index: int = 1) -> tuple[int, ...] | None:
        """Return the axes that an attribute, or in later opsets an input, names; None where neither does."""
        found = self.attributes.get(name, self.values.get(index))
        return None if found is None else tuple(np.atleast_1d(np.asarray(found)).tolist())


def everything(*masks: Mask) -> np.uint8:
    """Return all that any element of ``masks`` depends on."""
    return reduce(np.bitwise_or, (np.bitwise_or.reduce(mask, axis=None) for mask in masks), np.uint8(0))


def mixed_along(mask: Mask, axes: tuple[int, ...]) -> Mask:
    """Return the mask of elements that depend on all others along ``axes``, of which each keeps size 1."""
    found: Mask = np.bitwise_or.reduce(mask, axis=axes, keepdims=True)
    return found


def together(*masks: Mask) -> Mask:
    """Return the mask of what is computed from elements at the same place, broadcast as NumPy does."""
    found: Mask = reduce(np.bitwise_or, masks)
    return found
