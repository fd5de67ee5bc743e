"""A model as a message without its weights, for the libraries that ask for messages: its size is that of its graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.clean.inference import pairs
from normdeploy.onnxfile import maps

_SMALL = 1000
"""Bytes up to which a constant is kept: shapes, axes and indices, which inference reads."""


def light(model: ir.Model) -> onnx.ModelProto:
    """Return ``model`` as a message in which every weight is an input of its type and shape, at the cost of its graph.

    Names, types, shapes, nodes and small constants are those of the model. Weights in the bodies of nodes become inputs
    of the main graph, where no other value has their name; those in attributes of nodes stay.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    values = [value for graph in graphs for value in graph.initializers.values()]
    held = [(value, value.const_value) for value in values if value.const_value is not None]
    large = [(value, tensor) for value, tensor in held if tensor.nbytes > _SMALL]
    try:
        for value, _ in large:
            value.const_value = ir.Tensor(np.empty(0, np.float32))
        proto = ir.to_proto(model)
    finally:
        for value, tensor in large:
            value.const_value = tensor
    weights = {id(value): tensor for value, tensor in large}
    for graph, message in pairs(model.graph, proto.graph):
        _declare(graph, message, weights, proto.graph)
    return maps.put_back(model, proto)


def _declare(
    graph: ir.Graph, message: onnx.GraphProto, weights: dict[int, ir.TensorProtocol], main: onnx.GraphProto
) -> None:
    """Declare the ``weights`` of ``graph`` as inputs of ``main``."""
    given = {info.name for info in main.input}
    found = {str(v.name): weights[id(v)] for v in graph.initializers.values() if id(v) in weights}
    kept = [tensor for tensor in message.initializer if tensor.name not in found]
    infos = [info for info in message.value_info if info.name not in found]
    del message.initializer[:], message.value_info[:]
    message.initializer.extend(kept)
    message.value_info.extend(infos)
    for name, tensor in found.items():
        if name not in given:
            main.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, list(tensor.shape.numpy())))
