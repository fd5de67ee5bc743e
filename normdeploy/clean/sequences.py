"""Sequences that are taken apart at once: SplitToSequence and SequenceAt become Split, or Gather.

torch.onnx.export(optimize=False) spells ``split`` and ``unbind`` so. A runtime then keeps a sequence where there could
be tensors, and no map passes it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from normdeploy.clean.scope import Scope
from normdeploy.clean.shapes import Dims, Shapes

_DTYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64})
"""What both operators take in every opset."""

_SPLIT_BY_INPUT = 13
"""The opset in which the sizes of Split became an input."""


def open_sequences(scope: Scope, shapes: Shapes) -> Counter[str]:
    """Replace sequences of ``scope`` that are only read at constant positions; return how many, by what made them."""
    done: Counter[str] = Counter()
    for node in list(scope.graph):
        operator = scope.operator(node)
        if operator == "SequenceConstruct":
            done[operator] += _take_from_construct(scope, node)
        elif operator == "SplitToSequence":
            done[operator] += _split(scope, node, shapes)
    return +done


def _take_from_construct(scope: Scope, node: ir.Node) -> bool:
    readers = _readers(scope, node, len(node.inputs))
    if readers is None:
        return False
    for reader, position in readers:
        element = node.inputs[position]
        assert element is not None
        _take_over(scope, reader, element)
    scope.graph.remove(node, safe=True)
    return True


def _split(scope: Scope, node: ir.Node, shapes: Shapes) -> bool:
    data = node.inputs[0]
    if data is None or data.dtype not in _DTYPES or any(attr.is_ref() for attr in node.attributes.values()):
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    keeps = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return not keeps and _gather(scope, node, data, axis, shapes)
    if not keeps:  # ONNX ignores it where sizes are given, and ONNX Runtime does not
        return False
    sizes = _sizes(scope, node, data, axis, shapes)
    readers = None if sizes is None else _readers(scope, node, len(sizes))
    if sizes is None or readers is None:
        return False
    made = _split_node(scope, node, data, axis, sizes)
    for reader, position in readers:
        part, old = made.outputs[position], reader.outputs[0]
        if part.shape is None:
            part.shape, part.type = old.shape, old.type
        _take_over(scope, reader, part)
    scope.graph.remove(node, safe=True)
    return True


def _sizes(scope: Scope, node: ir.Node, data: ir.Value, axis: int, shapes: Shapes) -> tuple[int, ...] | None:
    """Return the sizes of all parts. A number stands for parts of that size, the last of what is left."""
    split = scope.array(node.inputs[1])
    if split is None or split.size == 0:
        return None
    if split.ndim == 1:
        return tuple(split.tolist())
    shape, size = shapes.of(scope, data), int(split.item())
    length = _length(shape, axis)
    if not length or size <= 0:
        return None
    whole, rest = divmod(length, size)
    return (size,) * whole + ((rest,) if rest else ())


def _length(shape: Dims | None, axis: int) -> int | None:
    """Return the size of ``axis`` where it is a number."""
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def _readers(scope: Scope, node: ir.Node, length: int) -> list[tuple[ir.Node, int]] | None:
    """Return all that reads the sequence, with the position in it; None where any takes the sequence itself."""
    sequence, readers = node.outputs[0], []
    if sequence.is_graph_output():
        return None
    for use in sequence.uses():
        reader = use.node
        if reader.graph is not node.graph or scope.operator(reader) != "SequenceAt" or use.idx != 0:
            return None
        position = scope.array(reader.inputs[1])
        if position is None or position.size != 1 or not -length <= position.item() < length:
            return None
        readers.append((reader, int(position.item()) % length))
    return readers


def _split_node(scope: Scope, node: ir.Node, data: ir.Value, axis: int, sizes: tuple[int, ...]) -> ir.Node:
    inputs, attributes = [data], [ir.AttrInt64("axis", axis)]
    if scope.opset >= _SPLIT_BY_INPUT:
        inputs.append(_constant(scope, node, np.array(sizes, np.int64)))
    else:
        attributes.append(ir.AttrInt64s("split", sizes))
    name, metadata = node.name, dict(node.metadata_props)
    made = ir.Node("", "Split", inputs, attributes, num_outputs=len(sizes), name=name, metadata_props=metadata)
    for index, part in enumerate(made.outputs):
        part.name = scope.fresh(f"{node.outputs[0].name}_{index}")
        part.type = data.type
    scope.graph.insert_before(node, made)
    return made


def _gather(scope: Scope, node: ir.Node, data: ir.Value, axis: int, shapes: Shapes) -> bool:
    """Replace parts of size 1 without the axis: SequenceAt(SplitToSequence(x), i) = Gather(x, i)."""
    length = _length(shapes.of(scope, data), axis)
    readers = None if length is None else _readers(scope, node, length)
    if readers is None:
        return False
    for reader, position in readers:
        index = _constant(scope, reader, np.array(position, np.int64))
        attributes, metadata = [ir.AttrInt64("axis", axis)], dict(reader.metadata_props)
        made = ir.Node("", "Gather", [data, index], attributes, name=reader.name, metadata_props=metadata)
        part, old = made.outputs[0], reader.outputs[0]
        part.name, part.shape, part.type = scope.fresh(str(old.name)), old.shape, old.type
        scope.graph.insert_before(reader, made)
        _take_over(scope, reader, part)
    scope.graph.remove(node, safe=True)
    return True


def _constant(scope: Scope, before: ir.Node, array: np.ndarray) -> ir.Value:
    """Return the output of a new Constant that stands in front of ``before``."""
    metadata = dict(before.metadata_props)
    made = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.Tensor(array))], metadata_props=metadata)
    value = made.outputs[0]
    value.name = scope.fresh(f"{before.outputs[0].name}_sizes")
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.INT64)
    scope.graph.insert_before(before, made)
    return value


def _take_over(scope: Scope, reader: ir.Node, part: ir.Value) -> None:
    """Let ``part`` stand for what ``reader`` made; a second output of the same part is a copy."""
    if not scope.hand_on(reader, part):
        copy = ir.Node("", "Identity", [part], name=reader.name, metadata_props=dict(reader.metadata_props))
        copy.outputs[0].name = scope.fresh(f"{part.name}_copy")
        scope.graph.insert_before(reader, copy)
        scope.hand_on(reader, copy.outputs[0])
