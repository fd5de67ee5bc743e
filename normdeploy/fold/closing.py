"""What a fold may not change: before a model is handed out, it is valid, and is to others what it was.

The checker sees the graph with weights as inputs of their types and shapes, so what it costs does not grow with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from normdeploy.clean.apart import graphs
from normdeploy.clean.inference import forget_shapes, inferred
from normdeploy.errors import NormdeployError
from normdeploy.fold.graph.light import light
from normdeploy.fold.opening import require_fitting
from normdeploy.fold.operators.basics import UNKNOWN_TO_ONNX
from normdeploy.graph import operator
from normdeploy.limits import more_memory

_MEMORY = 2**30
"""Bytes that the checker may take."""
_MOST = 500
"""Characters of what the checker says."""
_ANY = "normdeploy.unknown"

Declared = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Interface:
    """What a model declares to others.

    Attributes:
        inputs, outputs: names, types and shapes of the main graph's inputs and outputs, in order.
        functions: of each function, by its full name, the names of its inputs and outputs.
        bodies: how many inputs and outputs bodies have.
    """

    inputs: Declared
    outputs: Declared
    functions: dict[tuple[str, str, str], tuple[Any, ...]]
    bodies: set[tuple[int, int]]


def interface(model: ir.Model) -> Interface:
    """Return what ``model`` declares to others now."""
    return Interface(
        tuple(_declared(value) for value in model.graph.inputs if not _is_constant(value, model.ir_version)),
        tuple(map(_declared, model.graph.outputs)),
        {key: (_names(body.inputs), _names(body.outputs)) for key, body in model.functions.items()},
        {(len(body.inputs), len(body.outputs)) for body in _bodies(model)},
    )


def require_sound(
    model: ir.Model,
    before: Interface,
    given: Callable[[], ir.Model],
    *,
    constants: frozenset[str] = frozenset(),
    believed: bool = True,
) -> None:
    """Refuse to hand out what a fold made of a model, where it is not valid or not what it was to others.

    Args:
        model: what was made of it.
        before: its interface, as it was.
        given: the model as it was given; what the checker has against that is not the fold's.
        constants: inputs that went, as was asked for.
        believed: False where the sizes that the model declares are known to be wrong.

    Raises:
        InputError: the given model cannot run, as its constants show once they are evaluated.
        NormdeployError: a mistake of the fold; nothing may be written.
    """
    _require_interface(model, before, constants)
    problem = _new_problem(model, given)
    if problem and not believed:  # of what is evaluated the inference finds sizes that it did not find before
        problem = _problem(_without_sizes(light(model)))
    if problem:
        require_fitting(given())
        raise _mistake(f"the model is not valid any more: {problem}")


def require_converted(model: ir.Model, folded: ir.Model) -> None:
    """Refuse to hand out what a conversion to another precision made of a ``folded`` model, where it is not valid.

    Raises:
        NormdeployError: a mistake of the conversion; nothing may be written.
    """
    if problem := _new_problem(model, lambda: folded):
        raise NormdeployError(
            f"the conversion made a mistake, and nothing is written: the model is not valid any more: {problem}",
            fix="report it with the model; without --precision it folds",
        )


def _require_interface(model: ir.Model, before: Interface, constants: frozenset[str]) -> None:
    after = interface(model)
    inputs = tuple(item for item in before.inputs if item[0] not in constants)
    for what, old, new in (
        ("inputs", inputs, after.inputs),
        ("outputs", before.outputs, after.outputs),
    ):
        if len(old) != len(new) or not all(map(_extends, old, new)):
            changed = next((pair for pair in zip(old, new, strict=False) if not _extends(*pair)), (old, new))
            raise _mistake(f"the declared {what} of the model changed: {changed[0]} became {changed[1]}")
    for name, signature in after.functions.items():  # one that is not there any more was inlined
        if before.functions.get(name) != signature:
            raise _mistake(f"the function {name[1]} has other inputs or outputs")
    if after.bodies - before.bodies:
        raise _mistake("the inputs or outputs of a body changed")


def _extends(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Return True if ``new`` declares what ``old`` does, and perhaps more."""
    if len(old) != len(new):
        return False
    return all(
        _extends(before, after) if isinstance(before, tuple) and isinstance(after, tuple) else before in (None, after)
        for before, after in zip(old, new, strict=True)
    )


def _mistake(what: str) -> NormdeployError:
    return NormdeployError(
        f"the fold made a mistake, and nothing is written: {what}",
        fix="report it with the model; --keep '*' leaves all norms as they are",
    )


def _is_constant(value: ir.Value, ir_version: int) -> bool:
    """Return True for a constant: below IR version 4 every initializer is listed as an input."""
    return ir_version < 4 and value.is_initializer()


def _declared(value: ir.Value) -> tuple[Any, ...]:
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return (value.name, value.type, shape)


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values)


def _bodies(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _new_problem(model: ir.Model, given: Callable[[], ir.Model]) -> str | None:
    """Return what the full checker has against ``model``; None where it has something against ``given`` too."""
    problem = _problem(light(model))
    return None if problem is None or _problem(light(given())) is not None else problem


def _without_sizes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``proto`` with no size but those that follow from its inputs; an output must have some."""
    told = {info.name: info.type for info in copy.deepcopy(proto.graph.output)}
    for graph in graphs(proto.graph):
        forget_shapes((*graph.value_info, *graph.output, *(() if graph is proto.graph else graph.input)))
    for function in proto.functions:
        forget_shapes(function.value_info)
    found = inferred(proto)[0] or proto
    for info in found.graph.output:
        if not info.type.tensor_type.HasField("shape"):
            info.type.CopyFrom(told[info.name])
    return found


def _problem(proto: onnx.ModelProto) -> str | None:
    """Return what the full checker has against ``proto``; None where it has nothing."""
    renamed = [_rename(node) for node in _nodes(proto)]
    if any(renamed):
        proto.opset_import.append(onnx.helper.make_opsetid(_ANY, 1))
    try:
        with more_memory(_MEMORY):
            onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # it raises of its own, and of protobuf's and of shape inference's
        return " ".join(str(error).split())[:_MOST]
    return None


def _rename(node: onnx.NodeProto) -> bool:
    if operator(node) in UNKNOWN_TO_ONNX:
        node.domain = _ANY
        return True
    return False


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    stack = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            stack += [*attribute.g.node, *(inner for graph in attribute.graphs for inner in graph.node)]
