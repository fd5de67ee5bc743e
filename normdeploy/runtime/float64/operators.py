"""Who runs an operator in float64: one table by full name, then what other packages know of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from normdeploy.fold.operators import table
from normdeploy.runtime.float64.control import CONTROL
from normdeploy.runtime.float64.elementwise import ELEMENTWISE
from normdeploy.runtime.float64.heavy import HEAVY
from normdeploy.runtime.float64.indexing import INDEXING
from normdeploy.runtime.float64.plugins import PLUGINS
from normdeploy.runtime.float64.resize import RESIZE
from normdeploy.runtime.float64.step import Array, Step, UnknownOperatorError, Value, wide

_FOLD = (
    "BatchNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "GroupNormalization",
    "Pad",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
)
"""What the fold's proof has its own evaluator for."""

RANDOM = frozenset(
    {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"}
)
"""Operators that draw numbers: each runtime others, so there is no float64 of them."""


def _by_fold(step: Step, *inputs: Value) -> list[Array]:
    if step.op_type == "BatchNormalization" and (step.attribute("training_mode", 0) or step.outputs > 1):
        raise UnknownOperatorError("batch statistics")
    results: list[Array] = table.run(step.op_type, step.attributes, inputs, step.opset, step.outputs)
    return results


def _global_average_pool(step: Step, x: Array) -> Array:
    del step
    return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


def _dropout(step: Step, x: Array, ratio: Array | None = None, training: Array | None = None) -> tuple[Array, Array]:
    if training is not None and bool(np.asarray(training).reshape(())) and (ratio is None or float(ratio) > 0):
        raise UnknownOperatorError("random dropout")
    del step
    return x, np.ones(x.shape, bool)


_OWN: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE,
    **INDEXING,
    **HEAVY,
    **RESIZE,
    **CONTROL,
    **dict.fromkeys(_FOLD, _by_fold),
    "GlobalAveragePool": _global_average_pool,
    "Dropout": _dropout,
}
TABLE = {("", name): rule for name, rule in _OWN.items()} | PLUGINS
"""(Domain, operator) → its rule, called with the step and its inputs."""


def run(step: Step, inputs: list[Value]) -> list[Value]:
    """Return the outputs of one operator. Raises UnknownOperatorError where nobody runs it in float64."""
    rule = TABLE.get((step.domain, step.op_type))
    if rule is not None:
        with np.errstate(all="ignore"):
            result = rule(step, *inputs)
        return list(result) if isinstance(result, tuple) or rule is _by_fold else [result]
    if step.domain or step.op_type in RANDOM:
        raise UnknownOperatorError(f"{step.domain or 'ai.onnx'}::{step.op_type}")
    return _by_reference(step, inputs)


def _by_reference(step: Step, inputs: list[Value]) -> list[Value]:
    """Return what onnx.reference makes of it; UnknownOperatorError where that rounds on the way."""
    names = [f"i{index}" if item is not None else "" for index, item in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(step.outputs)]
    node = onnx.helper.make_node(step.op_type, names, outputs, **step.attributes)
    try:
        evaluator = _reference(node.SerializeToString(deterministic=True), step.opset)
    except Exception as error:  # it has no such operator
        raise UnknownOperatorError(step.op_type) from error
    with np.errstate(all="ignore"):
        results = evaluator.run(None, {name: item for name, item in zip(names, inputs, strict=True) if name})
    if any(isinstance(one, np.ndarray) and one.dtype != wide(one).dtype for one in results):
        raise UnknownOperatorError(f"{step.op_type}, which onnx.reference rounds to less")
    return list(results)


@lru_cache(maxsize=256)  # to make one takes longer than to run it, and a network repeats its operators
def _reference(serialized: bytes, opset: int) -> ReferenceEvaluator:
    node, info = onnx.NodeProto.FromString(serialized), onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([node], "one", [info(n) for n in node.input if n], [info(n) for n in node.output])
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))


@lru_cache(maxsize=256)
def definition(op_type: str, opset: int) -> ir.Function | None:
    """Return the function by which ONNX itself defines an operator, where that needs no types."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    body = schema.function_body
    return ir.serde.deserialize_function(body) if body.node else None
