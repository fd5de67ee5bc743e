"""A model as shape inference can read it: no name made twice, constants in the bodies too, and no functions to enter.

ONNX's inference keeps the sizes that it follows by name, for all graphs together: those of one branch it takes for what
another branch or a loop calls by that name. Of a constant around a body it knows no numbers in there. Where sizes are
uncertain is seen in graphs, so functions are inlined for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx.inliner

from normdeploy.errors import InputError
from normdeploy.graph import operator
from normdeploy.onnxfile.functions import all_nodes, require_bounded_calls

_ONNX = ("", "ai.onnx")
_SMALL = 9
"""Elements from which on a constant is no axes and no shape."""
_NO_GRAPHS = frozenset(onnx.AttributeProto.AttributeType.values()) - {
    onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS,
}  # fmt: skip
"""Kinds of attributes that hold none; most are, and to ask for one field is what it costs."""

Names = list[dict[str, str]]
"""For each graph of a model the names that it bears elsewhere, by its own; those that stay the same are left out."""


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and every body in it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs that ``node`` itself holds."""
    return [
        body
        for attribute in node.attribute
        if attribute.type not in _NO_GRAPHS
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def apart(given: onnx.ModelProto) -> tuple[onnx.ModelProto, Names]:
    """Return a copy of ``given`` in which no two graphs make one name and functions are inlined, and the names in it.

    A function stays where it has another opset, where it bears the name of an operator of ONNX, which runtimes run in
    its place, and where the model would grow too large. What a body reads of small constants around it, it holds too.
    """
    model, names = onnx.ModelProto(), Names()
    model.CopyFrom(given)
    _tell_apart(model.graph, {}, set(), names)
    inlined = [function for function in model.functions if function.domain not in _ONNX]
    if inlined and _is_bounded(model):
        kept = [function for function in model.functions if function.domain in _ONNX]
        del model.functions[:]
        model.functions.extend(inlined)
        model = onnx.inliner.inline_local_functions(model)
        model.functions.extend(kept)
    _hand_in(model.graph, {})
    return model, names


def _hand_in(graph: onnx.GraphProto, around: Mapping[str, onnx.TensorProto]) -> None:
    """Give each body in ``graph`` the small constants that it reads."""
    inner = [body for node in graph.node for body in bodies(node)]
    known = {**around, **_constants(graph)} if inner else {}
    for body in inner:
        read = dict.fromkeys(name for node in all_nodes(body.node) for name in node.input if name in known)
        body.initializer.extend(known[name] for name in read)
        _hand_in(body, known)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if operator(node) == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
            held[node.output[0]] = onnx.TensorProto()
            held[node.output[0]].CopyFrom(node.attribute[0].t)
            held[node.output[0]].name = node.output[0]
    return {name: tensor for name, tensor in held.items() if sum(tensor.dims) < _SMALL}


def put_back(given: onnx.ModelProto, found: onnx.ModelProto, names: Names) -> onnx.ModelProto:
    """Return a copy of ``given`` that declares what is ``found`` of it, where its graphs bear ``names``."""
    model = onnx.ModelProto()
    model.CopyFrom(given)
    kinds = types(found.graph)
    for graph, own in zip(graphs(model.graph), names, strict=True):
        infos = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
        for name in _made(graph):
            kind = kinds.get(own.get(name, name))
            if kind is not None:
                (infos[name] if name in infos else graph.value_info.add(name=name)).type.CopyFrom(kind)
    return model


def types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Return what ``graph`` and the bodies in it declare of types, by name."""
    infos = (info for each in graphs(graph) for info in (*each.input, *each.value_info, *each.output))
    return {info.name: info.type for info in infos if info.HasField("type")}


def _made(graph: onnx.GraphProto) -> dict[str, None]:
    """Return the names of what comes into ``graph`` and of what its nodes make, in order."""
    held = [tensor.name for tensor in graph.initializer] + [tensor.values.name for tensor in graph.sparse_initializer]
    made = [name for node in graph.node for name in node.output if name]
    return dict.fromkeys([*(info.name for info in graph.input), *held, *made])


def _tell_apart(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str], found: Names) -> None:
    names = dict(outer)
    for name in _made(graph):
        new = name
        while new in taken:
            new = f"{name}:{len(taken)}" if new == name else f"{new}:"
        taken.add(new)
        if new != name:
            names[name] = new
    found.append(names)
    if names:
        _rename(graph, names)
    for node in graph.node:
        for body in bodies(node):
            _tell_apart(body, names, taken, found)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    held = (*graph.initializer, *(tensor.values for tensor in graph.sparse_initializer))
    for each in (*graph.input, *graph.value_info, *graph.output, *held):
        each.name = names.get(each.name, each.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _is_bounded(model: onnx.ModelProto) -> bool:
    """Return False where the functions of ``model`` call each other without end, or make too many nodes of it."""
    try:
        require_bounded_calls(model, "")
    except InputError:
        return False
    return True


def full_name(function: onnx.FunctionProto) -> str:
    """Return what ``operator`` gives of a node that calls ``function``."""
    return function.name if function.domain in _ONNX else f"{function.domain}::{function.name}"
