"""Sizes that a model declares of values in between, held against those that follow from its inputs.

What a file declares may be from before its inputs were made dynamic, or from another graph. A size that no inference
confirms, as behind an operator that only its runtime knows, is believed while nothing in the model contradicts its
inputs; else none is, and only what follows from the inputs is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from normdeploy.clean.misfit import misfits
from normdeploy.clean.shapes import Dims, is_made_up
from normdeploy.fold.graph.shapes import filled

Graph = ir.Graph | ir.Function


@dataclass
class Declared:
    """What a model declares and is not believed while the model is folded.

    Attributes:
        shapes: by graph and name.
        notes: what contradicts the inputs.
    """

    shapes: dict[tuple[Graph, str], ir.Shape] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put_back(self, model: ir.Model) -> None:
        """Let ``model`` declare it again."""
        for graph in (*_graphs(model), *_functions(model)) if self.shapes else ():
            for value in _values(model, graph):
                shape = self.shapes.get((graph, str(value.name)))
                if shape is not None and (value.const_value is None or value.is_graph_output()):
                    value.shape = filled(shape, value.shape, names=not value.is_graph_output())


def put_aside(
    model: ir.Model, follows: Mapping[ir.Value, Dims], supposed: Iterable[tuple[ir.Value, Dims]] = ()
) -> Declared:
    """Let each value of ``model`` have the shape that is believed of it; return what was declared instead.

    Args:
        model: changed in place. What it declares in a function is not believed: it follows from nothing.
        follows: the shapes that follow from the inputs, None for sizes that do not.
        supposed: what shapes would be if others were as they are declared: it may contradict, and is not known.
    """
    graphs, declared = _graphs(model), Declared()
    follows = {**follows, **_stored(graphs)}
    told = {value: _dims(value.shape) for graph in graphs for value in _values(model, graph) if value.shape is not None}
    known = [(value, shape, follows[value]) for value, shape in told.items() if value in follows]
    others = [(value, told[value], shape) for value, shape in supposed if value in told]
    wrong = [each for each in (*known, *others) if _contradicts(*each[1:])]
    doubtful = _doubtful(model, known)
    sure = {**_promised(model), **follows}
    joined = {value: _joined(shape, follows.get(value), doubtful) for value, shape in told.items() if not wrong}
    declared.notes = [_note(*each) for each in wrong[:1]] or [
        f"{what}: no size in between is believed that does not follow from the inputs"
        for what in itertools.islice(misfits(model, {**sure, **joined}, sure), 1)
    ]
    for graph in graphs:
        for value in _values(model, graph):
            shape = None if declared.notes else told.get(value)
            _believe(declared, graph, value, _joined(shape, follows.get(value), doubtful))
    for function in _functions(model):
        for value in _values(model, function):
            _believe(declared, function, value, None)
    return declared


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return [model.graph, *model.graph.subgraphs()]


def _functions(model: ir.Model) -> Iterator[Graph]:
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _values(model: ir.Model, graph: Graph) -> Iterator[ir.Value]:
    """Yield all values of ``graph`` but the inputs of the model, which are promises."""
    if graph is not model.graph:
        yield from graph.inputs
    if isinstance(graph, ir.Graph):
        held = graph.initializers.values()
        yield from (value for value in held if model.ir_version < 4 or not value.is_graph_input())
    for node in graph:
        yield from node.outputs


def _stored(graphs: Iterable[ir.Graph]) -> dict[ir.Value, Dims]:
    """Return the shapes of the weights: those of their numbers."""
    values = (value for graph in graphs for value in graph.initializers.values())
    return {value: _dims(value.const_value.shape) for value in values if value.const_value is not None}


def _promised(model: ir.Model) -> dict[ir.Value, Dims]:
    return {value: _dims(value.shape) for value in model.graph.inputs if value.shape is not None}


def _dims(shape: ir.ShapeProtocol) -> Dims:
    """Return the sizes of ``shape``, names, and None for what is not known."""
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _contradicts(told: Dims, found: Dims) -> bool:
    """Return whether numbers are declared that others were found for; names are anyone's choice."""
    pairs = zip(told, found, strict=False)
    return len(told) != len(found) or any(isinstance(a, int) and a >= 0 and b not in (None, a) for a, b in pairs)


def _doubtful(model: ir.Model, known: Collection[tuple[ir.Value, Dims, Dims]]) -> set[str]:
    """Return the names that are declared of sizes of which two were found."""
    promised = _promised(model).values()
    stands: dict[str, int | str] = {size: size for shape in promised for size in shape if isinstance(size, str)}
    pairs = (pair for _, told, found in known for pair in zip(told, found, strict=False))
    return {a for a, b in pairs if isinstance(a, str) and b is not None and stands.setdefault(a, b) != b}


def _joined(told: Dims | None, found: Dims | None, doubtful: Collection[str]) -> Dims | None:
    """Return what is known of a shape: what was found, else what is declared."""
    if told is None:
        return found
    return tuple(
        (None if a in doubtful else a) if b is None else b
        for a, b in zip(told, found or (None,) * len(told), strict=True)
    )


def _believe(declared: Declared, graph: Graph, value: ir.Value, shape: Dims | None) -> None:
    if value.type is None or (value.shape is not None and _dims(value.shape) == shape):
        return
    if value.shape is not None:
        declared.shapes[graph, str(value.name)] = value.shape
    value.shape = None if shape is None else ir.Shape(shape)


def _note(value: ir.Value, told: Dims, found: Dims) -> str:
    return (
        f"{value.name} is declared as {_spelled(told)}, and the inputs make it {_spelled(found)}: no size in between "
        "is believed that does not follow from them"
    )


def _spelled(shape: Dims) -> str:
    return f"[{', '.join('?' if is_made_up(size) else str(size) for size in shape)}]"
