"""The names that graph nodes carry: which PyTorch module a node came from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

MODULE_KEY = "normdeploy.module"
_ONNX = ("", "ai.onnx")
"""Both names of the domain of ONNX's own operators."""
_FUNCTION = "function"
_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
_LONGEST = 1 << 13
"""Characters of what torch writes; Python's parser does not take kindly to more of anything."""


def module_name(node: ir.Node) -> str:
    """Return the dotted PyTorch module name of ``node``, or ``""`` when it carries none (or is the root's)."""
    if MODULE_KEY in node.metadata_props:
        return node.metadata_props[MODULE_KEY]
    scopes = node.metadata_props.get(_TORCH_SCOPES)
    if scopes is None:
        return ""
    return _enclosing(scopes)


@lru_cache(maxsize=1 << 16)
def _enclosing(scopes: str) -> str:
    """The innermost module: torch writes repr(list[str]), every enclosing module from the root, then the fx node."""
    try:
        found = ast.literal_eval(scopes) if len(scopes) < _LONGEST else []
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the file may say anything there
        return ""
    return found[-2] if isinstance(found, list) and len(found) > 1 and isinstance(found[-2], str) else ""


class Call(Protocol):
    """A node, of onnx_ir or a message."""

    @property
    def domain(self) -> str:
        """Return whose operator it is."""

    @property
    def op_type(self) -> str:
        """Return what it is called there."""


def operator(node: Call) -> str:
    """Return the full name of the operator that ``node`` calls: ``Conv`` where it is ONNX's own, else ``domain::Conv``.

    Whoever looks for an operator of ONNX asks here, and so takes no operator of a runtime, no custom operator and no
    function of the model for it, whatever it is called.
    """
    is_function = isinstance(node, ir.Node) and node.meta.data.get(_FUNCTION)  # a UserDict's own get is slow
    domain = _FUNCTION if is_function else node.domain
    return str(node.op_type) if domain in _ONNX else f"{domain}::{node.op_type}"


def is_of_onnx(node: ir.Node) -> bool:
    """Return whether ``node`` calls an operator of ONNX itself."""
    return "::" not in operator(node)


def note_functions(model: ir.Model) -> set[str]:
    """Note on each node that calls a function of ``model`` in ONNX's own domain that it calls no operator of ONNX.

    By the specification such a function takes the place of the operator; the runtimes at hand run the operator. What it
    computes is therefore not known.

    Returns:
        The names of those functions.
    """
    names = {(name, overload) for domain, name, overload in model.functions if domain in _ONNX}
    for node in _all_nodes(model) if names else ():
        if node.domain in _ONNX and (node.op_type, node.overload) in names:
            node.meta[_FUNCTION] = True
    return {name for name, _ in names}


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def label(node: ir.Node) -> str:
    """Return what to call ``node`` before a user: its module name, else its own name, else its output's."""
    return module_name(node) or node.name or next((str(out.name) for out in node.outputs), node.op_type)


_MAKES_SEQUENCES = {
    "SplitToSequence",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceInsert",
    "SequenceErase",
    "SequenceMap",
}
_READS_SEQUENCES = {
    "SequenceAt",
    "SequenceInsert",
    "SequenceErase",
    "SequenceLength",
    "SequenceMap",
    "ConcatFromSequence",
}


def infer_types(model: ir.Model) -> None:
    """Give each value the shape and type that follow from the graph's inputs.

    onnx_ir takes a sequence or an optional without a type for a tensor of its elements, which makes the model invalid.
    """
    untyped = [value for value in _values(model.graph) if value.type is None]
    sequences = [value for value in untyped if _is_sequence(value)]
    optionals = [value for value in untyped if _is_optional(value)]
    ShapeInferencePass()(model)
    for value in sequences:
        if value.dtype is not None:
            value.type, value.shape = ir.SequenceType(ir.TensorType(value.dtype)), None
    for value in optionals:
        producer = value.producer()
        held = None if producer is None or not producer.inputs else producer.inputs[0]
        if held is not None and isinstance(held.type, ir.TensorType | ir.SequenceType):
            value.type, value.shape = ir.OptionalType(held.type), None


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph.all_nodes():
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs


def _is_optional(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and is_of_onnx(producer) and producer.op_type == "Optional"


def _is_sequence(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and is_of_onnx(producer) and producer.op_type in _MAKES_SEQUENCES:
        return True
    readers = [use.node for use in value.uses() if use.idx == 0]
    return any(is_of_onnx(reader) and reader.op_type in _READS_SEQUENCES for reader in readers)
