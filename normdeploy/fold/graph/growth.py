"""How much constants may grow when they are evaluated: a model of 500 bytes can ask for 2^40 of one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.fold.operators import basics
from normdeploy.graph import operator
from normdeploy.limits import more_memory

FREE = 1 << 28
"""Bytes that may be evaluated out of nothing."""
_TIMES = 4
"""Bytes that may be evaluated of each byte that is stored."""
_SMALL = 1 << 20
"""Elements that are no matter; an operator whose size is in no value makes at most the product of its inputs' sizes."""
_NUMBERS = 1 << 12
"""Elements of an input that can say how large the output is: a shape, not data."""


@dataclass
class Allowance:
    """What may still be evaluated: a multiple of what is stored, and something more."""

    bytes_left: int = FREE
    stored: set[ir.Value] = field(default_factory=set)

    def allows(self, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], inputs: list[ir.Value]) -> bool:
        """Return True if the node of ``model``, on ``feeds``, makes no more than what is left, which it then takes.

        ``inputs`` are the values behind the feeds; of those that are stored in the model, each counts once.
        """
        for value in inputs:
            if value.const_value is not None and value not in self.stored:
                self.stored.add(value)
                self.bytes_left += _TIMES * value.const_value.nbytes
        made = _largest(model, feeds)
        if made is None or made * 8 > self.bytes_left:
            return False
        self.bytes_left -= made * 8
        return True


def _largest(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int | None:
    """Return the most elements that the one node of ``model`` makes of ``feeds``; None where nobody knows."""
    (node,) = model.graph.node
    product = math.prod(max(1, array.size) for array in feeds.values())
    if operator(node) not in basics.SIZED_BY_VALUE and product <= _SMALL:
        return product
    if operator(node) in basics.NO_LARGER:
        return 8 * sum(array.size for array in feeds.values())
    return _inferred(model, feeds)


def _inferred(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int | None:
    """Return what ONNX's shape inference says, given the inputs that can be shapes."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    del known.graph.input[:]
    for name, array in feeds.items():
        tensor = onnx.helper.np_dtype_to_tensor_dtype(array.dtype) if array.dtype.kind != "V" else None
        if tensor is None:
            return None
        known.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor, array.shape))
        if array.size <= _NUMBERS:
            known.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    try:
        with more_memory(FREE):
            inferred = onnx.shape_inference.infer_shapes(known, data_prop=True)
    except Exception:  # it raises of its own, and of protobuf's
        return None
    sizes = 0
    for value in inferred.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            return None
        dims = value.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        sizes += math.prod(max(dim.dim_value, 0) for dim in dims)
    return sizes
