"""What float64 loses in a graph: each number that an operator computes is moved by up to a unit in its last place.

By the standard model of rounding a computed number is the exact one times 1 + d, |d| ≤ 2^-53, so what a few runs with
random d differ by is what the order of sums and products may change (Parker, Monte Carlo Arithmetic, UCLA 1997). Moved
weights do not show it: the next number from 100 shifts a whole row of sums by the same, which a variance takes off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference.op_run import OpRun

_DOMAIN = "rounding64"
_UNIT = 2.0**-52

COMPUTES = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Sum", "Mean", "Sqrt", "Pow", "Exp", "Softmax", "MatMul", "Gemm", "Einsum",
        "ReduceMean", "ReduceSum", "Conv", "ConvTranspose", "AveragePool", "GlobalAveragePool", "BatchNormalization",
        "InstanceNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization", "Resize", "Upsample",
        "Erf", "Tanh", "Sigmoid", "Gelu", "HardSwish", "Mish",
    }
)  # fmt: skip
"""Operators whose results are rounded; the others hand on numbers, or are left as they are, which asks for more."""


class Rounded(OpRun):  # type: ignore[misc]  # onnx has no annotations
    """Floats moved by half of so many units in their last place to all of them, up or down."""

    op_domain = _DOMAIN

    def _run(self, x: Any, seed: Any = None, units: Any = None) -> tuple[Any]:
        if not isinstance(x, np.ndarray | np.floating) or x.dtype.kind != "f":
            return (x,)
        rng = np.random.default_rng(seed)
        unit = float(units) * _UNIT
        return (np.asarray(x * (1.0 + unit * rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.0, x.shape))),)


class RoundedNorm(OpRun):  # type: ignore[misc]
    """The result of an InstanceNormalization, moved by what ``a x + (b - a mean)`` rounds, as runtimes compute it.

    Far from zero both terms are large and cancel, and the bias is lost between them.
    """

    op_domain = _DOMAIN

    def _run(self, y: Any, x: Any, scale: Any, epsilon: Any = None, seed: Any = None, units: Any = None) -> tuple[Any]:
        cells, channels = tuple(range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        mean, var = x.mean(axis=cells, keepdims=True), x.var(axis=cells, keepdims=True)
        a = np.reshape(scale, channels) / np.sqrt(var + epsilon)
        rng = np.random.default_rng(seed)
        unit = float(units) * _UNIT * rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.0, x.shape)
        return (np.asarray(y + unit * np.maximum(np.abs(a * x), np.abs(a * mean))),)


def round_each(graph: onnx.GraphProto, seed: int, units: float = 1.0) -> None:
    """Put a :class:`Rounded` behind every operator of ``graph`` that computes, and in front of one that chooses.

    What is chosen from may be one number twice, where another graph computes it in two ways.
    """
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        moved = {"seed": seed * len(nodes) + index, "units": units}
        if not node.domain and node.op_type in COMPUTES:
            made, exact = node.output[0], f"{node.output[0]}/exact"
            node.output[0] = exact
            graph.node.extend([node, _rounding(node, exact, made, moved)])
            continue
        if not node.domain and node.op_type == "MaxPool" and len(node.output) > 1:
            near = f"{node.output[1]}/near"
            graph.node.append(helper.make_node("Rounded", [node.input[0]], [near], domain=_DOMAIN, **moved))
            node.input[0] = near
        graph.node.append(node)


def _rounding(node: onnx.NodeProto, exact: str, made: str, moved: dict[str, float]) -> onnx.NodeProto:
    if node.op_type != "InstanceNormalization":
        return helper.make_node("Rounded", [exact], [made], domain=_DOMAIN, **moved)
    epsilon = next((attr.f for attr in node.attribute if attr.name == "epsilon"), 1e-5)
    return helper.make_node("RoundedNorm", [exact, *node.input[:2]], [made], domain=_DOMAIN, epsilon=epsilon, **moved)


def imported() -> onnx.OperatorSetIdProto:
    """The domain of :class:`Rounded`."""
    return helper.make_opsetid(_DOMAIN, 1)
