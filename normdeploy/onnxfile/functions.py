"""Model-local functions: how many nodes a model has once each call is replaced by what it calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.skeleton import NODES

_Name = tuple[str, str, str]


def require_bounded_calls(model: onnx.ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or each other so often that no library can inline them.

    Raises:
        InputError: with the function's name.
    """
    if not model.functions:
        return
    bodies = {(each.domain, each.name, each.overload): each.node for each in model.functions}
    calls = {name: _calls(body, bodies) for name, body in bodies.items()}
    sizes: dict[_Name, int] = {}
    for name in _callees_first(calls, where):
        sizes[name] = sum(sizes.get(each, 0) for each in calls[name]) + _count(bodies[name])
        if sizes[name] > NODES:
            what = f"the functions call each other so often that this one has more than {NODES:,} nodes"
            raise InputError(what, where=f"{where}: {_told(name)}", fix="export the model again")
    total = sum(sizes.get(each, 0) for each in _calls(model.graph.node, bodies)) + _count(model.graph.node)
    if total > NODES:
        what = f"the model calls its functions so often that it has more than {NODES:,} nodes"
        raise InputError(what, where=where, fix="export the model again")


def _callees_first(calls: dict[_Name, list[_Name]], where: str) -> Iterator[_Name]:
    """The functions in an order in which each stands behind those that it calls; InputError where there is none."""
    done: set[_Name] = set()
    open_: dict[_Name, Iterator[_Name]] = {}
    for start in calls:
        stack = [start] if start not in done else []
        while stack:
            name = stack[-1]
            rest = open_.setdefault(name, iter(calls[name]))
            following = next((each for each in rest if each not in done), None)
            if following is None:
                stack.pop()
                done.add(name)
                yield name
            elif following in open_:
                raise InputError(
                    "the model is not valid ONNX: a function calls itself",
                    where=f"{where}: {_told(following)}",
                    fix="export the model again",
                )
            else:
                stack.append(following)


def _calls(nodes: Sequence[onnx.NodeProto], bodies: dict[_Name, Sequence[onnx.NodeProto]]) -> list[_Name]:
    names = ((node.domain, node.op_type, node.overload) for node in all_nodes(nodes))
    return [name for name in names if name in bodies]


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph of ``model`` and every body in it, or in its functions."""
    yield model.graph
    stack = [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop():
            for body in _bodies(node):
                yield body
                stack.append(body.node)


def _count(nodes: Sequence[onnx.NodeProto]) -> int:
    return sum(1 for _ in all_nodes(nodes))


def all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes, and those of the bodies in them."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        stack += [iter(body.node) for body in _bodies(node)]


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in the attributes of ``node``; a field that is not there is not asked for what is in it."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.HasField("g") else ()
        found += attribute.graphs
    return [graph for graph in found if graph.node]


def _told(name: _Name) -> str:
    return "::".join(part for part in name if part)
