"""A graph of plugins, proven: each plugin is, in float64, the operators that it stands for.

A plugin keeps the names of the values that it reads and writes. So what lies between these names in the graph before is
cut out and run beside it on the same numbers, and all that is no plugin must be there unchanged. Then one graph
computes what the other does, whatever their inputs are. The plugin runs by torch.ops.normdeploy, what it replaced by
the formulas of :mod:`normdeploy.runtime.float64`: neither knows the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normdeploy.engine.plugin_graph import PluginForm, Wanted, is_plugin, leak, tally, to_plugins
from normdeploy.errors import InputError, VerdictError
from normdeploy.fold import Note
from normdeploy.graph import label
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error
from normdeploy.runtime.float64.step import Array

_CLOSE = 1e-12
"""Largest error of a plugin beside the largest value; a proof of the fold asks for the same."""
_CONSTANTS = 4
"""The IR version from which on an initializer need not be an input, and is a constant then."""
_LEADING = 2
"""Most elements of an axis in front of those that a norm goes over: all its rows are computed alike."""
_SHARED = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSORS)
_SIZES = (1.0, 1e-3)
"""Of the numbers that a norm is tried on; beside the small ones epsilon counts."""


def where_faster(model: ir.Model, wanted: Wanted) -> tuple[ir.Model, tuple[Note, ...]]:
    """Return ``model`` with proven plugins for the norms that are ``wanted``, and a note; as it is where none is."""
    before = _prepared(model)
    graph = before.clone()
    try:
        to_plugins(graph, wanted=wanted)
        require_same(before, graph)
    except InputError:  # no norm of it is
        return model, ()
    except VerdictError as error:
        text = f"its norms stay native, though the plugin is recorded to be faster on this GPU: {error.what}"
        return model, (Note("NF416", text),)
    count = sum(is_plugin(node) for node in graph.graph)
    text = f"{count} of its norms run by the plugin, which is recorded to be faster on this GPU"
    return graph, (Note("NF418", text), *leak(graph))


def with_plugins(model: ir.Model, form: PluginForm = "aot", file: str = "") -> tuple[ir.Model, tuple[Note, ...]]:
    """Return a copy of ``model`` with plugins of ``form``, each of them proven, and what is to be said of them.

    Its functions are inlined, and it has IR version 4 at least. A norm that stays has a sentence with the reason, and
    the plugins are counted, by the name of the ``file`` that they are to be written to.

    Raises:
        InputError: no norm of it can be a plugin, or its operators have the plugins' domain.
        VerdictError: a plugin does not compute what it stands for, or another node has changed.
    """
    before = _prepared(model)
    graph = before.clone()
    left = to_plugins(graph, form)
    require_same(before, graph)
    return graph, (*left, tally(graph, file), *leak(graph))


def _prepared(model: ir.Model) -> ir.Model:
    """Return a copy without functions, of an IR version in which a constant is no input."""
    graph = model.clone()
    InlinePass()(graph)
    if graph.ir_version < _CONSTANTS:
        for value in [each for each in graph.graph.inputs if each.is_initializer()]:
            graph.graph.inputs.remove(value)
        graph.ir_version = _CONSTANTS
    return graph


def require_same(before: ir.Model, after: ir.Model) -> None:
    """Raise VerdictError unless ``after`` is ``before`` but for plugins that compute what stood in their place."""
    made = {str(value.name): node for node in before.graph for value in node.outputs if value.name}
    _require_kept(made, before, after)
    runners = Float64Runner(before), Float64Runner(after)
    for node in after.graph:
        if is_plugin(node):
            _require_plugin(node, made, runners)


def _require_kept(made: dict[str, ir.Node], before: ir.Model, after: ir.Model) -> None:
    """Hold every node that is no plugin, and the names of inputs and outputs, to what they were."""
    for values in ("inputs", "outputs"):
        names = [[value.name for value in getattr(model.graph, values)] for model in (before, after)]
        if names[0] != names[1]:
            raise VerdictError(f"the {values} of the graph of plugins are not those of the model", where=str(names[1]))
    weights = before.graph.initializers
    for name, value in after.graph.initializers.items():
        if name in weights and weights[name].const_value is not value.const_value:
            raise VerdictError("a weight has changed in the graph of plugins", where=name)
    for node in after.graph:
        first = next((made.get(str(value.name)) for value in node.outputs if value.name), None)
        if not is_plugin(node) and (first is None or _told(first) != _told(node)):
            raise VerdictError("a node that is no plugin has changed in the graph of plugins", where=label(node))


def _told(node: ir.Node) -> tuple[object, ...]:
    """Return what a node is; of attributes that are tensors or graphs their names alone, for a copy shares them."""
    names = [[None if value is None else value.name for value in values] for values in (node.inputs, node.outputs)]
    attributes = {name: attr.value for name, attr in node.attributes.items() if attr.type not in _SHARED}
    return node.domain, node.op_type, names, sorted(node.attributes), attributes


def _require_plugin(node: ir.Node, made: dict[str, ir.Node], runners: tuple[Float64Runner, Float64Runner]) -> None:
    wanted = [str(value.name) for value in node.outputs]
    read = {str(value.name): value for value in node.inputs if value is not None and value.const_value is None}
    where = f"{node.op_type} of {label(node)}"
    try:
        region = _between(wanted, set(read), made)
        for feeds in _feeds(node, list(read.values())):
            scope = _constants(region) | feeds
            for each in region:
                arrays = [None if value is None else scope[str(value.name)] for value in each.inputs]
                scope |= {str(v.name): a for v, a in zip(each.outputs, runners[0].run_node(each, arrays), strict=False)}
            given = _constants([node]) | feeds
            arrays = [None if value is None else given[str(value.name)] for value in node.inputs]
            for name, array in zip(wanted, runners[1].run_node(node, arrays), strict=True):
                _require_close(array, scope[name], where, name)
    except (NoFloat64Error, KeyError) as error:
        raise VerdictError(f"a plugin cannot be proven: {error}", where=where, fix="leave --plugin out") from error


def _require_close(array: Array, reference: Array, where: str, name: str) -> None:
    a, b = (np.asarray(each).astype(np.float64) for each in (array, reference))
    size = float(np.abs(b).max(initial=0.0))
    off = float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else np.inf
    if array.dtype != reference.dtype or not off <= _CLOSE * size:
        raise VerdictError(
            f"a plugin is not what it stands for: {name} is off by {off:.3g} beside {size:.3g} in float64",
            where=where,
            fix="leave --plugin out: the native norm is proven",
        )


def _between(wanted: Sequence[str], read: set[str], made: dict[str, ir.Node]) -> list[ir.Node]:
    """Return the nodes that make the values ``wanted`` of those that are ``read`` and of constants, in order."""
    found: dict[ir.Node, None] = {}

    def visit(name: str) -> None:
        node = made[name]
        for value in node.inputs:
            if value is not None and value.const_value is None and str(value.name) not in read:
                visit(str(value.name))
        found.setdefault(node)

    for name in wanted:
        visit(name)
    return list(found)


def _constants(nodes: Sequence[ir.Node]) -> dict[str, Array]:
    values = [value for node in nodes for value in node.inputs if value is not None]
    return {str(value.name): value.const_value.numpy() for value in values if value.const_value is not None}


def _feeds(node: ir.Node, read: Sequence[ir.Value]) -> Iterator[dict[str, Array]]:
    """Return arrays for the values that ``node`` reads: random ones, and small ones."""
    axis = node.attributes.get_int("axis", -1)
    random = np.random.default_rng(0)
    for size in _SIZES:
        yield {str(value.name): size * random.standard_normal(_shape(value, axis)) for value in read}


def _shape(value: ir.Value, axis: int) -> tuple[int, ...]:
    dims = () if value.shape is None else value.shape.dims
    leading = [min(dim, _LEADING) if isinstance(dim, int) else _LEADING for dim in dims[:axis]]
    return (*leading, *(int(str(dim)) for dim in dims[axis:]))
