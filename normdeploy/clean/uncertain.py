"""Sizes that ONNX's shape inference computes otherwise than runtimes do, taken back before anything is made of them.

Found by comparing both on random attributes: windows that begin behind the input where sizes are rounded up, padding to
the same size with dilations, transposed convolutions of a given size, scales whose product a float32 rounds up to an
integer, and slices that run backward to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from normdeploy.graph import operator

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_WINDOWED = _POOLS | {"ConvTranspose"}
_SCALED = {"Resize": 2, "Upsample": 1}
"""Where the scales are, which were input 1 of Resize at opset 10."""
_END = 2**31 - 1
_EXACT = 2.0**4
"""Multiples of its reciprocal are scales by which float32 multiplies sizes exactly."""
_HIDDEN = "normdeploy.hidden"

Arrays = Mapping[str, np.ndarray]


def hide_uncertain(given: onnx.ModelProto, found: onnx.ModelProto) -> bool:
    """Take the nodes of ``given`` whose sizes are uncertain from shape inference; return whether there were any.

    Args:
        given: the model to infer anew; of what such nodes make it is told the type, and the sizes that are certain.
        found: the same model, with the shapes that were inferred.
    """
    pairs = list(zip(graphs(given.graph), graphs(found.graph), strict=True))
    arrays = {name: array for graph, _ in pairs for name, array in _constants(graph)}
    hidden = [_hide(node, *pair) for pair in pairs for node in pair[0].node if _is_uncertain(node, arrays)]
    if any(hidden):
        given.opset_import.append(helper.make_opsetid(_HIDDEN, 1))
    return any(hidden)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and every body in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(body)


def _constants(graph: onnx.GraphProto) -> list[tuple[str, np.ndarray]]:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if operator(node) == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors.append((node.output[0], node.attribute[0].t))
    small = [(name, tensor) for name, tensor in tensors if len(tensor.dims) < 2 and sum(tensor.dims) < 9]
    return [(name, numpy_helper.to_array(tensor)) for name, tensor in small if not tensor.external_data]


def _is_uncertain(node: onnx.NodeProto, arrays: Arrays) -> bool:
    kind = operator(node)
    if kind == "Slice" and len(node.input) > 4:
        ends, steps = (arrays.get(node.input[index]) for index in (2, 4))
        return ends is not None and steps is not None and bool(np.any((steps < 0) & (ends >= _END)))
    if kind in _SCALED:
        return _rounds(node, kind, arrays)
    if kind not in _WINDOWED:
        return False
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    same = told.get("auto_pad", b"NOTSET").startswith(b"SAME")
    if kind == "ConvTranspose":
        return "output_shape" in told or (same and any(told.get("output_padding", [])))
    return (same and any(size != 1 for size in told.get("dilations", []))) or _begins_outside(told)


def _rounds(node: onnx.NodeProto, kind: str, arrays: Arrays) -> bool:
    names = list(node.input[1 : 1 + _SCALED[kind]])
    found = [arrays[name] for name in names if name in arrays]
    listed = [attribute.floats for attribute in node.attribute if attribute.name == "scales"]
    scales = np.concatenate([np.ravel(each) for each in (*found, *listed)] or [np.zeros(0)])
    return bool(np.any(scales.astype(np.float64) * _EXACT % 1))


def _begins_outside(told: Mapping[str, list[int]]) -> bool:
    """Return True where the last window may begin behind the input: its size is not above the stride and the pad."""
    kernel = np.array(told.get("kernel_shape", []))
    if not told.get("ceil_mode", 0) or not kernel.size:
        return False
    ones = [1] * kernel.size
    reach = (kernel - 1) * np.array(told.get("dilations", ones)) + 1
    behind = np.array(told.get("pads", [0] * 2 * kernel.size))[kernel.size :]
    return bool(np.any(reach < np.array(told.get("strides", ones)) + behind))


def _hide(node: onnx.NodeProto, given: onnx.GraphProto, found: onnx.GraphProto) -> bool:
    types = {info.name: info.type.tensor_type for info in (*found.input, *found.value_info, *found.output)}
    declared = {info.name: info for info in (*given.value_info, *given.output)}
    own = declared.get(node.output[0])
    if node.output[0] not in types or (own is not None and own.type.tensor_type.HasField("shape")):
        return False  # what is declared stays
    kind, data, made = operator(node), types.get(node.input[0]), types[node.output[0]]
    if own is None:
        own = given.value_info.add(name=node.output[0])
    own.type.tensor_type.elem_type = made.elem_type
    before = data.shape.dim if data is not None and data.HasField("shape") else []
    after = made.shape.dim
    for axis, dim in enumerate(before):
        new = own.type.tensor_type.shape.dim.add()
        certain = axis < 2 if kind in _WINDOWED else axis < len(after) and after[axis] == dim
        if certain and axis < len(after):
            new.CopyFrom(after[axis])
    node.domain = _HIDDEN
    return True
