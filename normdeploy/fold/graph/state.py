"""The state of one graph while it is folded, and the only ways in which it is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View

_STEPS, _STEPS_PER_NODE = 20_000, 20
"""How many operators all journeys in a graph may visit: norms in a long row would each pass all the others."""


@dataclass
class GraphState:
    """One graph as the search sees it: its order, the maps in it, the edits made so far."""

    view: View
    graph: ir.Graph | ir.Function
    nodes: list[ir.Node]
    order: dict[ir.Node, int]
    maps: dict[ir.Node, AffineMap]
    committed: Mapping[tuple[ir.Node, int], Edit]
    successors: dict[ir.Node, ir.Node] = field(default_factory=dict)
    partners: dict[ir.Node, ir.Node] = field(default_factory=dict)
    steps: int = 0

    @classmethod
    def of(cls, view: View, graph: ir.Graph | ir.Function) -> GraphState:
        """Return the state of ``graph`` as it is, no map in it looked for yet."""
        nodes = list(graph)
        return cls(view, graph, nodes, {node: i for i, node in enumerate(nodes)}, {}, {})

    def insert(self, new: ir.Node, m: AffineMap, *, before: ir.Node) -> None:
        """Enter a new node, the map ``m``, in front of another."""
        self.nodes.insert(self.order[before], new)
        self.order = {node: position for position, node in enumerate(self.nodes)}
        self.maps[new] = m

    def maps_in_order(self) -> list[ir.Node]:
        """Return the maps as they are to travel: what changes nothing goes first."""
        return sorted(self.maps, key=lambda node: not self.maps[node].is_identity)

    @property
    def is_given_up(self) -> bool:
        """Return True if all journeys together have been too long."""
        return self.steps > _STEPS + _STEPS_PER_NODE * len(self.nodes)

    def step(self, node: ir.Node) -> None:
        """Count an operator that a journey visits; Refused where all journeys together have been too long."""
        self.steps += 1
        if self.is_given_up:
            raise Refused(
                "NF007", "the search was given up: the maps of this graph have too many operators to pass", node
            )

    def position(self, node: ir.Node) -> int:
        """Return the topological index of ``node``; a refusal when it lies in another graph."""
        if node not in self.order:
            raise Refused("NF004", "the value crosses the border of a subgraph", node)
        return self.order[node]


def take_over(value: ir.Value, output: ir.Value) -> None:
    """Let ``value`` be what ``output`` was: outputs of the model keep their names, and must have a type."""
    value.name = output.name
    value.shape = value.shape if output.shape is None else output.shape
    value.type = output.type or value.type


def may_be_renamed(value: ir.Value, node: ir.Node) -> bool:
    """Return whether ``value`` can take the name of the output of ``node``: it has no name that anyone counts on."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and not value.is_graph_output()


def remove(node: ir.Node) -> None:
    """Take ``node`` out of its graph, and what only it needed."""
    inputs = [value for value in node.inputs if value is not None]
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    remove_unused(inputs)


def remove_unused(values: Iterable[ir.Value]) -> None:
    """Drop constants that nothing reads any more, with the subgraph that made them; inputs stay, whatever they hold."""
    waiting = list(values)  # no recursion: what made a constant can be a long chain
    while waiting:
        value = waiting.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            if not any(out.uses() or out.is_graph_output() for out in producer.outputs):
                waiting += [item for item in producer.inputs if item is not None]
                producer.graph.remove(producer, safe=True)
        elif producer is None and value.is_initializer() and value.graph is not None:
            value.graph.initializers.pop(str(value.name))


def all_names(model: ir.Model) -> set[str]:
    """Return every value and node name in ``model``."""
    names: set[str] = set()
    outermost: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in (graph for outer in outermost for graph in (outer, *outer.subgraphs())):
        names.update(str(value.name) for value in graph.inputs)
        names.update(str(name) for name in getattr(graph, "initializers", ()))
        for node in graph:
            names.add(str(node.name))
            names.update(str(value.name) for value in node.outputs)
    return names
