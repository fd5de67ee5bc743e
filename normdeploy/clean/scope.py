"""The graphs of a model, each with the opset in force, and what is constant in it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normdeploy.graph import operator

OLDEST = 7
"""The opset from which on operators broadcast as they do today (ONNX changelog, version 7)."""


@dataclass(frozen=True)
class Scope:
    """One graph, body or function body.

    Attributes:
        graph: the graph itself.
        opset: version of ONNX's own operators that is in force in it.
        ir_version: of the model.
        functions: identifiers of the model's local functions.
        is_main: True for the model's own graph.
        function: identifier of the function whose nodes these are; None in a graph or body.
        names: of all values of the model; names that are made up are added.
    """

    graph: ir.Graph | ir.Function
    opset: int
    ir_version: int
    functions: Container[ir.OperatorIdentifier]
    is_main: bool
    function: ir.OperatorIdentifier | None
    names: set[str]

    def operator(self, node: ir.Node) -> str:
        """Return the full name of the operator that ``node`` calls; "" where the opset is older than ``OLDEST``."""
        return operator(node) if self.opset >= OLDEST else ""

    def made_by(self, value: ir.Value | None, *operators: str) -> ir.Node | None:
        """Return the node that makes ``value`` where it runs one of ``operators``."""
        node = None if value is None else value.producer()
        return node if node is not None and self.operator(node) in operators else None

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """Return the tensor that ``value`` always holds: of an initializer that no caller can override, or a Constant.

        From IR version 4 on, an initializer that is also an input is a default (ONNX IR specification).
        """
        if value is None or (value.is_graph_input() and self.ir_version >= 4):
            return None
        if value.is_initializer():
            return value.const_value
        node = self.made_by(value, "Constant")
        return None if node is None else _tensor(node)

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the constant in its own dtype, or None."""
        tensor = self.constant(value)
        return None if tensor is None else tensor.numpy()

    def fresh(self, name: str) -> str:
        """Return ``name``, with a number where a value of the model has it, and take it."""
        found, count = name, 0
        while found in self.names:
            count += 1
            found = f"{name}_{count}"
        self.names.add(found)
        return found

    def hand_on(self, node: ir.Node, value: ir.Value) -> bool:
        """Let what reads the output of ``node`` read ``value``, and take ``node`` out; return False where it must stay.

        An output of a graph is made by a node of it, once, and stays as it is declared: ``value`` takes over its name
        and its type, where it is free to.
        """
        old = node.outputs[0]
        name, shape, kind, is_output = old.name, old.shape, old.type, old.is_graph_output()
        maker = value.producer()
        if is_output and (maker is None or maker.graph is not node.graph or value.is_graph_output()):
            return False
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        if is_output:
            value.name, value.shape, value.type = name, shape, kind
        return True

    def replace(self, node: ir.Node, made: ir.Node) -> None:
        """Put ``made`` in the place of ``node``; its output takes over the name and the type."""
        old, new = node.outputs[0], made.outputs[0]
        self.graph.insert_before(node, made)
        new.shape, new.type, name = old.shape, old.type, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        new.name = name


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Yield every graph of ``model``, outer ones first; the opset is 0 where none is told."""
    functions, names = model.functions, _names(model)

    def nested(graph: ir.Graph | ir.Function, opset: int) -> Iterator[Scope]:
        function = graph.identifier() if isinstance(graph, ir.Function) else None
        yield Scope(graph, opset, model.ir_version, functions, graph is model.graph, function, names)
        for body in (body for node in graph for body in bodies(node)):
            yield from nested(body, opset)

    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *functions.values())
    for graph in graphs:
        yield from nested(graph, graph.opset_imports.get("", 0))


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs inside an If, Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _names(model: ir.Model) -> set[str]:
    """Return the names of all values: inputs, initializers and what nodes make, of every graph."""
    found: set[str] = set()
    outermost: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for graph in (graph for outer in outermost for graph in (outer, *outer.subgraphs())):
        values = [*graph.inputs, *(graph.initializers.values() if isinstance(graph, ir.Graph) else ())]
        values += [output for node in graph for output in node.outputs]
        found.update(str(value.name) for value in values)
    return found


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor of a Constant, whichever attribute it is in; None for text and parameters of functions."""
    if len(node.attributes) != 1:
        return None
    attribute = next(iter(node.attributes.values()))
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int":
            return ir.Tensor(np.array(attribute.as_int(), np.int64))
        case "value_ints":
            return ir.Tensor(np.array(attribute.as_ints(), np.int64))
        case "value_float":
            return ir.Tensor(np.array(attribute.as_float(), np.float32))
        case "value_floats":
            return ir.Tensor(np.array(attribute.as_floats(), np.float32))
    return None
