"""Cleaning of a graph: any exporter's file as if it had no operator that only computes constants.

Only what is exact is done, and nothing that could touch a norm. ``export`` and ``fold`` begin with it: an exporter that
does not optimize spells a missing bias ``Expand(CastLike(0, x), Shape(w))``, a bound of a Clip ``CastLike(6, x)`` and a
split as a sequence, and no runtime fuses across those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from normdeploy.clean.constants import Budget, evaluate_constants, keep_parameter_names
from normdeploy.clean.defaults import spell_defaults
from normdeploy.clean.functions import NORMS, inline_functions
from normdeploy.clean.gelu import order_gelus
from normdeploy.clean.identities import Known, remove_dead_ends, remove_identities, remove_needless_expands, write_casts
from normdeploy.clean.reductions import keep_reduced_axes
from normdeploy.clean.scope import Scope, scopes
from normdeploy.clean.sequences import open_sequences
from normdeploy.clean.shapes import Shapes, is_made_up
from normdeploy.clean.sizes import Sizes
from normdeploy.clean.weights import remove_zero_biases, transpose_weights

__all__ = ["Cleaned", "clean", "store_as_read"]


@dataclass(frozen=True)
class Cleaned:
    """What was cleaned.

    Attributes:
        done: a sentence for each kind of what was done.
        unknown: a sentence for each way in which the shapes of the model could not be inferred.
        gelus: the nodes of every GELU that is spelled out as runtimes know it.
        shapes: those that follow from the inputs of the model.
    """

    done: tuple[str, ...]
    unknown: tuple[str, ...]
    gelus: frozenset[ir.Node]
    shapes: Shapes


def clean(
    model: ir.Model, *, keep: Callable[[ir.Node], bool] = lambda node: False, declared_shapes: bool = False
) -> Cleaned:
    """Clean ``model`` in place; inputs and outputs stay as they are declared, norms as they are written.

    Args:
        model: its graphs are sorted.
        keep: True for a node that must be found again by its name, so is not inlined.
        declared_shapes: True where every declared shape is right; else only those of the inputs are trusted.
    """
    done: dict[str, Counter[str]] = {kind: Counter() for kind in _WORDS}
    inlined = inline_functions(model, keep)
    known, budget = list(scopes(model)), Budget()
    for scope in known:
        spell_defaults(scope)
    shapes = Shapes(model, declared=declared_shapes)
    given = {value for scope in known for value in _constants(scope)}
    unread = {value for value in given if not value.uses()}
    for scope in reversed(known):  # what a body does not read any more may be dead around it
        done["unread"] += remove_dead_ends(scope)
    for scope in known:
        _clean(scope, shapes, budget, done)
        if any(_tells_nothing(scope, node, shapes) for node in scope.graph):
            shapes.renew()
            _clean(scope, shapes, budget, done)
        done["bias"] += remove_zero_biases(scope, given)
    for scope in reversed(known):
        gone = remove_dead_ends(scope)  # what only the evaluated read, or nothing any more in a sequence
        done["unread"] += Counter({operator: count for operator, count in gone.items() if operator in NORMS})
        _drop_unread(scope, unread)
    gelus: set[ir.Node] = set()
    for scope in known:
        found, moved = order_gelus(scope)
        gelus |= found
        done["gelu"] += Counter({"GELU": moved})
    keep_parameter_names(model.graph, budget)
    notes = [_WORDS[kind].format(_counted(found)) for kind, found in done.items() if found]
    taken = [f"inlined, as a norm meets their border: {', '.join(inlined)}"] if inlined else []
    return Cleaned((*taken, *notes), tuple(shapes.notes), frozenset(gelus), shapes)


def _clean(scope: Scope, shapes: Shapes, budget: Budget, done: dict[str, Counter[str]]) -> None:
    opened = True
    while opened:  # what was read through a sequence may be a constant, or in a sequence again
        sizes = Sizes(scope, shapes)
        done["constant"] += transpose_weights(scope)
        done["constant"] += evaluate_constants(scope, shapes, sizes, budget)
        done["identity"] += remove_identities(scope, Known(shapes, sizes))  # of sequences too
        found = open_sequences(scope, shapes)
        done["sequence"] += found
        if opened := bool(found):
            shapes.renew()
    done["cast"] += write_casts(scope)
    done["expand"] += remove_needless_expands(scope, shapes)
    done["axes"] += keep_reduced_axes(scope, shapes)


def _tells_nothing(scope: Scope, node: ir.Node, shapes: Shapes) -> bool:
    """Return True for a Shape or Expand of what inference did not know in full before there were more constants."""
    if not scope.is_main or scope.operator(node) not in ("Shape", "Expand"):
        return False
    shape = shapes.of(scope, node.inputs[0])
    return shape is None or any(is_made_up(size) for size in shape)


def store_as_read(model: ir.Model) -> None:
    """Store each weight that is only ever transposed in that form, as :func:`clean` does."""
    for scope in scopes(model):
        transpose_weights(scope)


_WORDS = {
    "unread": "taken out, as nothing reads their results: {}",
    "constant": "evaluated, as they only compute constants: {}",
    "sequence": "opened, as their elements are read one by one: {}",
    "identity": "taken out, as they change nothing: {}",
    "cast": "written as Cast, as the type is known: {}",
    "expand": "taken out, as what reads them broadcasts to the same sizes: {}",
    "axes": "taken out, as the reductions before them can keep the axes: {}",
    "gelu": "multiplied in the order that runtimes fuse: {}",
    "bias": "taken out, the zero biases that were computed for: {}",
}


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in sorted(found.items()))


def _constants(scope: Scope) -> list[ir.Value]:
    """Return what the graph itself holds: initializers and outputs of Constants."""
    made = [node.outputs[0] for node in scope.graph if scope.operator(node) == "Constant"]
    return [*(scope.graph.initializers.values() if isinstance(scope.graph, ir.Graph) else ()), *made]


def _drop_unread(scope: Scope, unread: set[ir.Value]) -> None:
    """Drop the initializers that nothing reads any more; those that nothing read before stay."""
    if not isinstance(scope.graph, ir.Graph):
        return
    for name, value in list(scope.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input() and value not in unread:
            scope.graph.initializers.pop(name)
