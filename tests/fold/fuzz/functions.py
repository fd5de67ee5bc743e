"""Turns runs of nodes into calls of local functions: nested, called twice, with parameters, under any name."""

from __future__ import annotations

import copy

import onnx
from graphs import Draw, reads
from onnx import AttributeProto, helper

NAMES = ("Block", "BatchNormalization", "Conv", "Relu", "Add", "LayerNormalization", "Reshape")
"""A function in a domain of its own may bear any name."""

DOMAINS = ("local", "local", "blocks", "")
"""ONNX's own domain is not forbidden, though the checker and ONNX Runtime do not look for functions there."""

_PLAIN = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)


def with_functions(d: Draw, proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with one to three runs of nodes outlined, the later ones around the earlier now and then."""
    for _ in range(d.int(1, 3)):
        _outline(d, proto)
    return proto


def _outline(d: Draw, proto: onnx.ModelProto) -> None:
    graph = proto.graph
    first = d.int(0, len(graph.node) - 1)
    run = list(graph.node[first : first + d.int(1, 6)])
    inside = {name for node in run for name in node.output if name}
    beyond = reads([*graph.node[:first], *graph.node[first + len(run) :]]) | {info.name for info in graph.output}
    outputs = [name for node in run for name in node.output if name and name in beyond]
    inputs = [name for name in _in_order(run) if name not in inside]
    if not outputs:
        return
    constants = _taken_in(d, graph, inputs, beyond)
    inputs = [name for name in inputs if name not in {tensor.name for tensor in constants}]
    domain = d.one(DOMAINS)
    name = f"{d.one(NAMES) if domain else 'Block'}{len(proto.functions) or ''}"
    body = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants]
    body += [copy.deepcopy(node) for node in run]
    given = _parameters(d, body)
    function = helper.make_function(domain, name, inputs, outputs, body, list(proto.opset_import), list(given))
    proto.functions.append(function)
    calls = [helper.make_node(name, inputs, outputs, name=f"call{len(proto.functions)}", domain=domain)]
    if d.odds(35):
        calls.append(_again(graph, calls[0], outputs, f"_again{len(proto.functions)}"))
    for call in calls:
        call.attribute.extend(given.values())
    if domain and domain not in {item.domain for item in proto.opset_import}:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
        for other in proto.functions:
            other.opset_import.append(helper.make_opsetid(domain, 1))
    rest = [*graph.node[:first], *calls, *graph.node[first + len(run) :]]
    del graph.node[:]
    graph.node.extend(rest)


def _in_order(nodes: list[onnx.NodeProto]) -> list[str]:
    return list(
        dict.fromkeys(name for node in nodes for name in sorted(reads([node])) if name and name not in _local(node))
    )


def _local(node: onnx.NodeProto) -> set[str]:
    """The names that the bodies of ``node`` make or hold."""
    found: set[str] = set()
    for attr in node.attribute:
        if attr.HasField("g"):
            found |= {info.name for info in attr.g.input} | {tensor.name for tensor in attr.g.initializer}
            for inner in attr.g.node:
                found |= set(inner.output) | _local(inner)
    return found


def _taken_in(d: Draw, graph: onnx.GraphProto, names: list[str], beyond: set[str]) -> list[onnx.TensorProto]:
    """The weights that nothing else reads, with the function or not."""
    if not d.odds(60):
        return []
    kept = beyond | {info.name for info in graph.input}
    taken = [tensor for tensor in graph.initializer if tensor.name in names and tensor.name not in kept]
    for tensor in taken:
        graph.initializer.remove(tensor)
    return taken


def _parameters(d: Draw, body: list[onnx.NodeProto]) -> dict[str, AttributeProto]:
    """Attributes of ``body`` that become parameters, with what the call gives."""
    given: dict[str, AttributeProto] = {}
    for node in body:
        for attr in node.attribute:
            if attr.type in _PLAIN and not attr.ref_attr_name and d.odds(15):
                name = f"p{len(given)}"
                given[name] = copy.deepcopy(attr)
                given[name].name = name
                attr.CopyFrom(AttributeProto(name=attr.name, type=attr.type, ref_attr_name=name))
    return given


def _again(graph: onnx.GraphProto, call: onnx.NodeProto, outputs: list[str], suffix: str) -> onnx.NodeProto:
    """A second call with the same inputs, its results outputs of the model."""
    twin = copy.deepcopy(call)
    twin.name += suffix
    told = {info.name: info for info in graph.output}
    twin.output[:] = [f"{name}{suffix}" for name in outputs]
    for name in outputs:
        if name in told:
            info = graph.output.add()
            info.CopyFrom(told[name])
            info.name = f"{name}{suffix}"
    return twin
