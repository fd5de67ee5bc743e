"""ONNX's shape inference, as far as it goes: on models that it fails on, and on models that would fill the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from normdeploy.clean.apart import apart, graphs, put_back
from normdeploy.clean.uncertain import hide_uncertain
from normdeploy.limits import more_memory

_MEMORY = 2**30
"""Bytes that shape inference may take."""
_LEVELS = 8
"""How many uncertain nodes may stand one behind another before no sizes are told of what they make."""
_MOST = 300
"""Characters of what the library says."""

MADE_UP = "unk__"
"""How the names begin that inference gives to sizes that it does not know."""

Pair = tuple[ir.Graph, onnx.GraphProto]


def inferred(given: onnx.ModelProto) -> tuple[onnx.ModelProto | None, list[str]]:
    """Return ``given`` with the types and shapes that ONNX infers, and notes on what failed.

    Where it finds a type that it does not expect, it does not look at types; None where it fails all the same.
    """
    said = ""
    # To follow the values of a large vector takes 150 bytes for each.
    for checks_types, follows_values in ((True, True), (True, False), (False, True), (False, False)):
        try:
            with more_memory(_MEMORY):
                found = certain(given, check_type=checks_types, data_prop=follows_values)
        except Exception as error:  # it raises its own, and what its C++ has
            said = said or " ".join(str(error).split())[:_MOST]
            continue
        _forget_sizes_of_elements(found.graph)
        note = f"the types of the model are not what its opset lists, so shapes were inferred without: {said}"
        return found, [] if checks_types else [note]
    return None, [f"ONNX's shape inference fails on the model, so less can be folded: {said}"]


def certain(given: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """Return ``given`` with what is inferred, without the sizes that inference computes otherwise than runtimes."""
    model, names = apart(given)
    found = onnx.shape_inference.infer_shapes(model, **options)
    for tells_sizes in (*[True] * _LEVELS, False):
        if not hide_uncertain(model, found, tells_sizes=tells_sizes):
            break
        found = onnx.shape_inference.infer_shapes(model, **options)
    return put_back(given, found, names)


def forget_shapes(infos: Iterable[onnx.ValueInfoProto]) -> None:
    """Take the shapes off what is declared of tensors."""
    for info in infos:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _forget_sizes_of_elements(graph: onnx.GraphProto) -> None:
    """Take back the names that inference made up for sizes of the elements of sequences.

    All elements bear the name, whatever their sizes are, and a runtime takes values of one name to be of one size.
    """
    told = [info.type for message in graphs(graph) for info in (*message.input, *message.value_info, *message.output)]
    elements = [kind for kind in map(_element, told) if kind is not None]
    sizes = (dim.dim_param for kind in elements for dim in kind.tensor_type.shape.dim)
    names = {name for name in sizes if name.startswith(MADE_UP)}
    for kind in (*told, *elements) if names else ():
        for dim in kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ():
            if dim.dim_param in names:
                dim.ClearField("dim_param")


def _element(kind: onnx.TypeProto) -> onnx.TypeProto | None:
    """Return the type of the elements of a sequence, in an optional too; None for what is no sequence."""
    if kind.HasField("optional_type"):
        kind = kind.optional_type.elem_type
    return kind.sequence_type.elem_type if kind.HasField("sequence_type") else None


def pairs(graph: ir.Graph, message: onnx.GraphProto) -> Iterator[Pair]:
    """Yield ``graph`` with the message that is it, and so for every body in it."""
    yield graph, message
    for node, spelled in zip(graph, message.node, strict=True):
        yield from _bodies(node, spelled)


def _bodies(node: ir.Node, spelled: onnx.NodeProto) -> Iterator[Pair]:
    messages = {attribute.name: attribute for attribute in spelled.attribute}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield from pairs(attribute.as_graph(), messages[name].g)
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body, message in zip(attribute.as_graphs(), messages[name].graphs, strict=True):
                yield from pairs(body, message)
