"""One operator of a graph as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Value = Any
"""An array, a list of arrays (a sequence), or None (an absent or empty optional value)."""


@dataclass(frozen=True)
class Step:
    """A node, ready to run.

    Attributes:
        op_type: the operator's name.
        domain: its domain; empty for ONNX's own.
        opset: the version of that domain in force.
        attributes: name → Python value; float tensors in float64, graphs as they are.
        outputs: how many outputs are wanted.
        body: runs a graph inside the node on its inputs, in the scope around the node.
    """

    op_type: str
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int
    body: Callable[[ir.Graph, Sequence[Value]], list[Value]]

    def attribute(self, name: str, default: Any) -> Any:
        """Return the attribute ``name``, ``default`` where the node has none."""
        return self.attributes.get(name, default)


class UnknownOperatorError(Exception):
    """Nobody here runs this operator in float64."""


def wide(array: Array) -> Array:
    """Return ``array`` with float64 for every narrower float, complex128 for complex64, anything else as it is."""
    name = array.dtype.name
    if name in ("float32", "float16", "bfloat16"):
        return array.astype(np.float64)
    return array.astype(np.complex128) if name == "complex64" else array
