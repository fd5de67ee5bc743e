"""Walks a graph in float64, node by node; a value is forgotten once nobody needs it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normdeploy.errors import InputError
from normdeploy.graph import label
from normdeploy.runtime.float64 import operators
from normdeploy.runtime.float64.decisions import Decisions
from normdeploy.runtime.float64.step import Array, Step, UnknownOperatorError, Value, wide
from normdeploy.runtime.runner import check_names, first_line

Watch = Callable[[ir.Node, Sequence[Value], Sequence[Value]], None]
"""Called behind each node of the main graph with its inputs and outputs."""


class NoFloat64Error(InputError):
    """The graph, or what it is given, cannot be run in float64; ``where`` names the node."""


class Float64Runner:
    """``model`` with every real value in float64.

    Args:
        model: a graph; it is not changed.

    Raises NoFloat64Error, when called, at an operator that nobody here runs in float64, and where one cannot run.
    """

    name = "float64"

    def __init__(self, model: ir.Model) -> None:
        if model.functions:
            model = model.clone()
            InlinePass()(model)
        self.model = model
        self.inputs = tuple(str(value.name) for value in _fed(model.graph))
        self.outputs = tuple(str(value.name) for value in model.graph.outputs)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; real outputs are float64."""
        return self.run(feeds)

    def run(
        self, feeds: Mapping[str, np.ndarray], *, watch: Watch | None = None, wanted: Collection[str] = ()
    ) -> dict[str, Value]:
        """Return the outputs, and the values named in ``wanted``; ``watch`` sees each node of the main graph."""
        check_names(feeds, self.inputs, self.name)
        scope = {value: _widened(feeds[str(value.name)]) for value in _fed(self.model.graph)}
        walk = _Walk(self.model.opset_imports)
        kept: dict[str, Value] = {}

        def see(node: ir.Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
            names = [str(value.name) for value in node.outputs]
            kept.update((name, array) for name, array in zip(names, outputs, strict=False) if name in wanted)
            if watch is not None:
                watch(node, inputs, outputs)

        results = walk.graph(self.model.graph, scope, see)
        kept |= {str(value.name): feeds_value for value, feeds_value in scope.items() if value.name in wanted}
        return kept | dict(zip(self.outputs, map(_array, results), strict=True))

    def run_node(self, node: ir.Node, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of one node of the main graph on ``inputs``, whose narrow floats are widened."""
        walk = _Walk(self.model.opset_imports)
        return walk.node(node, [_widened(item) for item in inputs], {})


def _fed(graph: ir.Graph) -> Iterator[ir.Value]:
    """The inputs without a value of their own: below IR version 4 every initializer is listed among them."""
    return (value for value in graph.inputs if value.name not in graph.initializers)


def _array(value: Value) -> Value:
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else value


def _widened(value: Value) -> Value:
    if isinstance(value, list):
        return [_widened(item) for item in value]
    return None if value is None else wide(np.asarray(value))


class _Walk:
    """One run; scopes nest as graphs do."""

    def __init__(self, versions: Mapping[str, int]) -> None:
        self.versions = versions
        self._decisions = Decisions()

    def graph(
        self, graph: ir.Graph, scope: dict[ir.Value, Value], watch: Watch | None = None, free: bool = True
    ) -> list[Value]:
        """Return the outputs of ``graph``, whose inputs are in ``scope`` already."""
        left = _uses(graph)
        for node in graph:
            inputs = [None if value is None else self._value(value, scope) for value in node.inputs]
            outputs = self.node(node, inputs, scope)
            if watch is not None:
                watch(node, inputs, outputs)
            for value, array in zip(node.outputs, outputs, strict=False):
                if left[value]:
                    scope[value] = array
            del inputs, outputs
            for value in _read(node) if free else ():
                left[value] -= 1
                if (not left[value] and value.producer() is not None) or (not left[value] and value.is_initializer()):
                    scope.pop(value, None)
        return [self._value(value, scope) for value in graph.outputs]

    def _value(self, value: ir.Value, scope: dict[ir.Value, Value]) -> Value:
        if value not in scope:
            tensor = value.const_value
            if tensor is None:
                raise NoFloat64Error("a value has no maker", where=str(value.name), fix="check the model")
            scope[value] = wide(np.asarray(tensor.numpy()))
        return scope[value]

    def node(self, node: ir.Node, inputs: list[Value], scope: Mapping[ir.Value, Value]) -> list[Value]:
        """Return the outputs of ``node``."""
        domain = "" if node.domain == "ai.onnx" else node.domain

        def body(graph: ir.Graph, given: Sequence[Value]) -> list[Value]:
            inner = dict(scope)
            inner.update(zip(graph.inputs, given, strict=False))
            return self.graph(graph, inner)

        version = node.version or self.versions.get(domain, 1)
        step = Step(node.op_type, domain, version, _attributes(node), len(node.outputs), body)
        while inputs and inputs[-1] is None and not node.op_type.startswith(("Optional", "Loop")):
            inputs = inputs[:-1]
        try:
            outputs = self._run(step, inputs)
            return self._decisions.taken(node, inputs, outputs, partial(self._run, step))
        except NoFloat64Error:
            raise
        except UnknownOperatorError as error:
            fix = "it is judged by the runtime alone"
            raise NoFloat64Error(f"{error} has no float64 here", where=_place(node), fix=fix) from error
        except Exception as error:  # whatever NumPy, PyTorch and onnx.reference raise
            told = f"{type(error).__name__}: {first_line(error)}"
            raise NoFloat64Error(f"{node.op_type} does not run in float64: {told}", where=_place(node)) from error

    def _run(self, step: Step, inputs: list[Value]) -> list[Value]:
        if (step.domain, step.op_type) not in operators.TABLE and not step.domain:
            function = operators.definition(step.op_type, step.opset)
            if function is not None:
                return self._function(function, step, inputs)
        return operators.run(step, inputs)

    def _function(self, function: ir.Function, step: Step, inputs: list[Value]) -> list[Value]:
        """Run the function that defines an operator, with the attributes of this one."""
        defaults = {name: _plain(attr) for name, attr in function.attributes.items() if attr.value is not None}
        given = {**_schema_defaults(step), **defaults, **step.attributes}
        scope: dict[ir.Value, Value] = dict.fromkeys(function.inputs)
        scope.update(zip(function.inputs, inputs, strict=False))
        walk = _Walk({**self.versions, **function.opset_imports})

        def body(graph: ir.Graph, arguments: Sequence[Value]) -> list[Value]:
            return walk.graph(graph, {**scope, **dict(zip(graph.inputs, arguments, strict=False))})

        for node in function:
            arguments = [None if value is None else scope[value] for value in node.inputs]
            attributes = {
                name: given[str(attr.ref_attr_name)] if attr.is_ref() else _plain(attr)
                for name, attr in node.attributes.items()
                if not attr.is_ref() or attr.ref_attr_name in given
            }
            version = walk.versions.get(node.domain, step.opset)
            inner = Step(node.op_type, node.domain, version, attributes, len(node.outputs), body)
            while arguments and arguments[-1] is None:
                arguments.pop()
            scope.update(zip(node.outputs, walk._run(inner, arguments), strict=False))
        return [scope.get(value) for value in function.outputs][: step.outputs]


def _schema_defaults(step: Step) -> dict[str, Any]:
    import onnx

    schema = onnx.defs.get_schema(step.op_type, step.opset, "")
    return {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }


def _uses(graph: ir.Graph) -> Counter[ir.Value]:
    """How often each value of ``graph`` is read, by bodies inside it and as an output too."""
    uses = Counter(value for node in graph for value in _read(node))
    uses.update(graph.outputs)
    return uses


def _read(node: ir.Node) -> list[ir.Value]:
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        for graph in bodies:
            for inner in graph.all_nodes():
                found += [value for value in inner.inputs if value is not None]
            found += list(graph.outputs)
            found += [value for sub in graph.subgraphs() for value in sub.outputs]
    return found


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: _plain(attribute) for name, attribute in node.attributes.items()}


def _plain(attribute: ir.Attr) -> Any:
    """The attribute as Python knows it: arrays for tensors, in float64 where they are real."""
    if attribute.type == ir.AttributeType.TENSOR:
        return wide(np.asarray(attribute.as_tensor().numpy()))
    if attribute.type == ir.AttributeType.GRAPH:
        return attribute.as_graph()
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value


def _place(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or ''} of {label(node)}".replace("  ", " ")


__all__ = ["Array", "Float64Runner", "NoFloat64Error", "Watch"]
