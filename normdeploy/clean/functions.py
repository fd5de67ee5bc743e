"""Local functions are inlined where their border stands between a norm and the weights that could take it.

No map passes the border of a function. Where it meets one, on the way from a norm to the nearest weights, the function
is inlined, by onnx_ir's pass, and then the next one on the way. A batch norm goes upward first, so what is below it
matters only without weights above. Inlining needs one opset for both, no graphs as parameters, no recursion, outputs
that are made in the function itself, and a model that does not explode: what lacks any of it stays a call.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from functools import partial

import onnx_ir as ir
from onnx_ir.passes import common

from normdeploy.clean.scope import Scope, bodies, scopes

Identifier = ir.OperatorIdentifier

NORMS = frozenset(
    {
        "BatchNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
    }
)  # fmt: skip
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What takes a map in: the way to the nearest weights ends here."""

LARGEST = 100_000
"""Nodes up to which a model may grow."""


def inline_functions(model: ir.Model, keep: Callable[[ir.Node], bool]) -> tuple[str, ...]:
    """Inline every function at whose border a norm is stopped, and return their names.

    Args:
        keep: True for a node that must be found again by its name: a function with one stays.
    """
    taken: list[str] = []
    while model.functions:
        chosen = {name for name in _blocking(model) if _can_be_inlined(model, name, keep)}
        if not chosen or _size(model, chosen) > LARGEST:
            break
        common.InlinePass(criteria=partial(_is_among, chosen))(model)
        common.NameFixPass()(model)  # what is inlined may bear a name of a body's value
        taken += [name for _, name, _ in chosen]  # behind these are the next
    return tuple(sorted(taken))


def _is_among(chosen: Container[Identifier], function: ir.Function) -> bool:
    return function.identifier() in chosen


def _blocking(model: ir.Model) -> set[Identifier]:
    """Return the functions whose border is met on the way from a norm, to either side, and those that call them."""
    found: set[Identifier] = set()
    for scope in scopes(model):
        for node in scope.graph:
            kind = scope.operator(node)
            if kind not in NORMS and not _is_deviation(scope, node):
                continue
            above, has_weights = _borders(scope, node, _upward)
            found |= above
            if kind != "BatchNormalization" or not (above or has_weights):
                found |= _borders(scope, node, _downward)[0]
    return _with_callers(model, found)


def _is_deviation(scope: Scope, node: ir.Node) -> bool:
    """Return True for the root of a mean and something: every norm that is spelled out divides by one."""
    total = scope.made_by(node.inputs[0], "Add") if scope.operator(node) in ("Sqrt", "Pow") and node.inputs else None
    return total is not None and any(scope.made_by(value, "ReduceMean") for value in total.inputs)


def _with_callers(model: ir.Model, functions: set[Identifier]) -> set[Identifier]:
    """Return ``functions`` and all that call them: once they are inlined the next border is theirs."""
    found = set(functions)
    while True:
        calling = {
            name
            for name, function in model.functions.items()
            if name not in found and any(node.op_identifier() in found for node in _all(function))
        }
        if not calling:
            return found
        found |= calling


def _borders(
    scope: Scope, norm: ir.Node, step: Callable[[ir.Node], Iterator[ir.Node | None]]
) -> tuple[set[Identifier], bool]:
    """Return the functions met between ``norm`` and the nearest weights, and True where there are any weights.

    None of ``step`` is the end of the graph: the border of the function whose graph that is. Weights that are given to
    a function are behind its border too.
    """
    found: set[Identifier] = set()
    has_weights = False
    seen, ways = {norm}, [norm]
    while ways:
        for node in step(ways.pop()):
            if node is None:
                found |= set() if scope.function is None else {scope.function}
            elif node.op_identifier() in scope.functions:
                found.add(node.op_identifier())
            elif scope.operator(node) in WEIGHTED:
                has_weights = True
                given = any(value is not None and value.is_graph_input() for value in node.inputs[1:])
                found |= {scope.function} if given and scope.function is not None else set()
            elif node not in seen:
                seen.add(node)
                ways.append(node)
    return found, has_weights


def _upward(node: ir.Node) -> Iterator[ir.Node | None]:
    for value in node.inputs:
        if value is not None and value.producer() is not None:
            yield value.producer()
        elif value is not None and value.is_graph_input():
            yield None


def _downward(node: ir.Node) -> Iterator[ir.Node | None]:
    for value in node.outputs:
        for use in value.uses():
            yield use.node
        if value.is_graph_output():
            yield None


def _can_be_inlined(model: ir.Model, name: Identifier, keep: Callable[[ir.Node], bool]) -> bool:
    function = model.functions[name]
    imports = model.opset_imports
    if any(imports.get(domain, version) != version for domain, version in function.opset_imports.items()):
        return False
    if any(keep(node) for node in _all(function)) or _is_recursive(model, name):
        return False
    outputs = list(function.outputs)
    if len(set(outputs)) != len(outputs) or any(output.producer() is None for output in outputs):
        return False
    return all(_call_can_be_inlined(call, function) for call in _calls(model, name))


def _call_can_be_inlined(call: ir.Node, function: ir.Function) -> bool:
    attributes = [*function.attributes.values(), *call.attributes.values()]
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in attributes):
        return False
    return len(call.inputs) <= len(function.inputs) and len(call.outputs) <= len(function.outputs)


def _calls(model: ir.Model, name: Identifier) -> Iterator[ir.Node]:
    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for graph in graphs:
        yield from (node for node in _all(graph) if node.op_identifier() == name)


def _all(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for body in bodies(node):
            yield from _all(body)


def _is_recursive(model: ir.Model, name: Identifier) -> bool:
    seen, ways = set(), [name]
    while ways:
        for node in _all(model.functions[ways.pop()]):
            called = node.op_identifier()
            if called == name:
                return True
            if called in model.functions and called not in seen:
                seen.add(called)
                ways.append(called)
    return False


def _size(model: ir.Model, chosen: set[Identifier]) -> int:
    """Return the nodes that the model's graph would have; a function is counted once, not walked anew for each call."""
    sizes: dict[Identifier, int] = {}

    def count(graph: ir.Graph | ir.Function) -> int:
        return sum(1 if node.op_identifier() not in chosen else size(node.op_identifier()) for node in _all(graph))

    def size(name: Identifier) -> int:
        if name not in sizes:
            sizes[name] = count(model.functions[name])
        return sizes[name]

    return count(model.graph) + sum(count(function) for name, function in model.functions.items() if name not in chosen)
