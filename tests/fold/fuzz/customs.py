"""Draws operators of other domains that bear names of ONNX's and compute something else.

Some are known to nobody but the truth here; some are functions of the model, which any runtime can run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from graphs import Graph, Value
from onnx import helper
from onnx.reference.op_run import OpRun

DOMAIN, FUNCTIONS = "my.operators", "my.functions"

NAMES = (
    "BatchNormalization", "Conv", "Relu", "Add", "Mul", "MatMul", "Gemm", "Identity", "Reshape", "Transpose", "Concat",
    "LayerNormalization", "MaxPool", "Cast", "ConvTranspose", "Sub", "Div", "Shape", "Dropout", "DequantizeLinear",
    "PRelu", "Einsum", "Sum", "Flatten", "AveragePool", "InstanceNormalization", "Neg", "LSTM", "Split", "Constant",
)  # fmt: skip


def twin(g: Graph) -> Value:
    """An operator that bears a name of ONNX's, of a value and perhaps of weights that others read too."""
    d, v = g.d, g.pick()
    name = d.one(NAMES)
    constants = [d.one(g.weights) if g.weights and d.odds(50) else g.weight((2,), v.dtype) for _ in range(d.int(0, 2))]
    is_function = g.ir_version >= 8 and d.odds(50)
    inputs = [v] if is_function else [v, *constants]
    domain = FUNCTIONS if is_function else DOMAIN
    if is_function:
        g.functions[f"{domain}::{name}"] = _function(g, name)
    g.domains.add(domain)
    result = g.emit(name, inputs, v.shapes, domain=domain)
    if not g.depth and d.odds(60):
        g.declared.append(result)
    return result


def _function(g: Graph, name: str) -> Any:
    nodes = [helper.make_node("Tanh", ["a"], ["b"]), helper.make_node("Add", ["b", "b"], ["c"])]
    return helper.make_function(FUNCTIONS, name, ["a"], ["c"], nodes, [helper.make_opsetid("", g.opset)])


class _Twin(OpRun):  # type: ignore[misc]  # onnx has no annotations
    """tanh(x) and a tenth of the mean of every weight."""

    op_domain, op_schema = DOMAIN, None  # or it would be asked for the attributes of ONNX's operator

    def _run(self, x: Any, *weights: Any, **_: Any) -> tuple[np.ndarray]:
        return (np.tanh(x) + 0.1 * sum(float(np.mean(w)) for w in weights),)


TWINS = [type(name, (_Twin,), {"op_domain": DOMAIN}) for name in NAMES]
