"""Sparse weights, which are read as the dense ones that they stand for: no runtime at hand computes with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from normdeploy.errors import InputError
from normdeploy.graph import operator
from normdeploy.onnxfile.functions import all_nodes, graphs

_LARGEST = 2**30
"""The most bytes that a sparse tensor may be made dense with: a few bytes of a file can ask for any number."""

Read = Callable[[onnx.TensorProto], np.ndarray]


def is_sparse(model: onnx.ModelProto) -> bool:
    """Return whether ``model`` has a sparse initializer or a Constant with a sparse value."""
    return any(graph.sparse_initializer for graph in graphs(model)) or any(True for _ in _constants(model))


def densify(model: onnx.ModelProto, where: str, read: Read) -> None:
    """Make all sparse initializers and Constants of ``model`` dense, in place.

    Args:
        model: the model.
        where: its file, for errors.
        read: the numbers in one of its tensors.

    Raises:
        InputError: one is too large, or its indices are not within its shape.
    """
    for graph in graphs(model):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, where, read))
        del graph.sparse_initializer[:]
    for attribute in list(_constants(model)):
        tensor = _dense(attribute.sparse_tensor, where, read)
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _constants(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in all_nodes(nodes):
            if operator(node) == "Constant":
                yield from (item for item in node.attribute if item.name == "sparse_value" and not item.ref_attr_name)


def _dense(sparse: onnx.SparseTensorProto, where: str, read: Read) -> onnx.TensorProto:
    """ONNX specification, SparseTensorProto: indices are places in the flattened tensor, or a row of places each."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    values, places = read(sparse.values), read(sparse.indices)
    if math.prod(shape) * values.dtype.itemsize > _LARGEST:
        raise InputError(f"the sparse tensor {name!r} is too large to be made dense: {list(shape)}", where=where)
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape, mode="clip")
    inside = places.ndim == 1 or bool(np.all((places >= 0) & (places < np.array(shape))))
    if not inside or flat.shape != values.shape or (flat.size and not 0 <= flat.min() <= flat.max() < math.prod(shape)):
        raise InputError(f"the sparse tensor {name!r} has values outside of its shape {list(shape)}", where=where)
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    return onnx.numpy_helper.from_array(dense.reshape(shape), name)
