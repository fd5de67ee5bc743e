"""What is asked of a model as a message: its nodes, its float type, what depends on what."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
import onnx.inliner
from reals import FLOATS

EPS = {1: 2.0**-23, 10: 2.0**-10, 11: 2.0**-52, 16: 2.0**-7}
"""Spacing of the numbers at 1.0, by ONNX element type."""


def flattened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with all its functions inlined."""
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, bodies and functions included."""
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:
            yield from inside(node)


def inside(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """``node``, and the nodes of its bodies."""
    yield node
    for attr in node.attribute:
        for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
            for inner in body.node:
                yield from inside(inner)


def coarsest(proto: onnx.ModelProto) -> int:
    """The float element type with the fewest bits among what is stored, read or cast to."""
    kinds = {info.type.tensor_type.elem_type for info in proto.graph.input}
    kinds |= {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {attr.t.data_type for node in nodes(proto) for attr in node.attribute if attr.HasField("t")}
    kinds |= {attr.i for node in nodes(proto) for attr in node.attribute if node.op_type == "Cast"}
    return max(kinds & FLOATS or {onnx.TensorProto.DOUBLE}, key=lambda kind: EPS[kind])


def depending(proto: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """``names`` and all values of the main graph of ``proto``, which has no functions, that depend on them."""
    found = set(names)
    for node in proto.graph.node:
        if any(name in found for inner in inside(node) for name in inner.input):
            found.update(node.output)
    return found
