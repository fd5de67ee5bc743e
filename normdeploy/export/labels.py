"""The names a graph carries: on nodes their PyTorch module, on initializers their state-dict key, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence

import onnx_ir as ir
import torch

from normdeploy.clean.scope import bodies
from normdeploy.export.trace import PREFIX
from normdeploy.graph import MODULE_KEY

_SCOPES = "pkg.torch.onnx.name_scopes"
_REPEATED_CALL = re.compile(r"@\d+$")  # torch marks a module's second call as "conv@1"


def label_nodes(model: ir.Model, modules: Collection[str]) -> None:
    """Write on every node the name in ``modules`` that it came from, and drop torch's metadata everywhere.

    What torch writes holds stack traces, so paths of the machine that exported.
    """
    for function in model.functions.values():
        _label(function, modules, None)
    _label(model.graph, modules, "")
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.name = "model"


def _label(graph: ir.Graph | ir.Function, modules: Collection[str], enclosing: str | None) -> None:
    """Label one graph; nodes that name no module get the ``enclosing`` one, or none (then a call site gives it)."""
    graph.metadata_props.clear()
    graph.doc_string = None
    values = [*graph.inputs, *(graph.initializers.values() if isinstance(graph, ir.Graph) else ())]
    for value in [*values, *(output for node in graph for output in node.outputs)]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        name = _module(node.metadata_props.get(_SCOPES, ""), modules) or enclosing
        node.metadata_props.clear()
        node.doc_string = None
        if name is not None:
            node.metadata_props[MODULE_KEY] = name
        for body in bodies(node):
            _label(body, modules, name)


def _module(scopes: str, modules: Collection[str]) -> str | None:
    """The innermost module of torch's ``repr([module, …, fx node])``; None where it names none."""
    names = [_REPEATED_CALL.sub("", scope) for scope in (ast.literal_eval(scopes) if scopes else ())]
    found = [name.removeprefix(PREFIX) for name in names[:-1] if name.removeprefix(PREFIX) in modules]
    return found[-1] if found else None


def merge_tied(model: ir.Model) -> None:
    """Let tied parameters, which are one tensor of torch, be one initializer."""
    by_tensor: dict[tuple[object, ...], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        first = by_tensor.setdefault(_storage(value), value) if _storage(value) else value
        if first is not value:
            value.replace_all_uses_with(first, replace_graph_outputs=True)
            del model.graph.initializers[str(value.name)]


def _storage(value: ir.Value) -> tuple[object, ...]:
    """Return what two views of the same memory have in common; empty where it is not torch's."""
    raw = value.const_value.raw if isinstance(value.const_value, ir.Tensor) else None
    if not isinstance(raw, torch.Tensor) or raw.numel() == 0:
        return ()
    return raw.data_ptr(), raw.dtype, raw.shape, raw.stride()


def own_outputs(graph: ir.Graph) -> None:
    """Make each output a value of its own that a node makes: not an input, an initializer, or twice the same."""
    for index, value in enumerate(list(graph.outputs)):
        if value in graph.outputs[:index] or value.producer() is None:
            copy = ir.node("Identity", [value], metadata_props={MODULE_KEY: ""})
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]


def name_values(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs the names that were asked for, and initializers their state-dict keys.

    Where two want one name, an input or output has it before an initializer, and that before any other value.
    """
    claims = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True))
    made = [out for node in ir.traversal.RecursiveGraphIterator(graph) for out in node.outputs]
    taken = {*claims.values(), *(str(value.name) for value in [*graph.initializers.values(), *made])}
    for value in list(graph.initializers.values()):
        name = str(value.name).removeprefix(PREFIX)
        claims[value] = _fresh(name, taken) if name in claims.values() else name
    claimed = set(claims.values())
    for value in made:
        if value not in claims and value.name in claimed:
            value.name = _fresh(str(value.name), taken)
    for index, value in enumerate(claims):  # in two steps: a name may still be that of another value
        value.name = f"{PREFIX}{PREFIX}{index}"
    for value, name in claims.items():
        value.name = name


def _fresh(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    taken.add(f"{name}_{count}")
    return f"{name}_{count}"
