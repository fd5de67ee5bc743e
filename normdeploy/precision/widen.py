"""The way back: what a 16-bit graph would compute, if its numbers had room."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normdeploy.errors import InputError
from normdeploy.graph import is_of_onnx, label, operator
from normdeploy.precision.decide import LARGEST

_RUNTIME = "com.microsoft"


def widened(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` in which every 16-bit float is float32: constants as they were rounded, casts and all.

    Nodes and values are those of ``model``, in its order and by its names; calls of its functions become what is in
    them. A constant is widened when it is read. Raises InputError, by name, at operators of neither ONNX nor ONNX
    Runtime that take 16-bit floats: whether they take others is not known.
    """
    result = model.clone()
    if result.functions:
        InlinePass()(result)
    _require_known(result)
    for graph in (result.graph, *result.graph.subgraphs()):
        for value in _values(graph):
            if value.dtype in LARGEST:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                if value.const_value is not None:
                    value.const_value = _wide(value.const_value)
        for node in graph:
            _widen_attributes(node)
    return result


def _require_known(model: ir.Model) -> None:
    unknown = [
        f"{label(node)} ({operator(node)})"
        for node in model.graph.all_nodes()
        if not is_of_onnx(node) and node.domain != _RUNTIME
        if any(value is not None and value.dtype in LARGEST for value in (*node.inputs, *node.outputs))
    ]
    if unknown:
        raise InputError(
            "it is not known whether these custom operators take float32",
            where=", ".join(unknown[:10]),
            fix="leave --precision out, or export the model in float32",
        )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    yield from (value for node in graph for value in node.outputs)


def _widen_attributes(node: ir.Node) -> None:
    """Widen what names a dtype, as in a Cast, or holds a constant of it."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in ("to", "dtype", "output_dtype", "output_datatype"):
            if attribute.as_int() in LARGEST:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in LARGEST:
            node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))


def _wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
