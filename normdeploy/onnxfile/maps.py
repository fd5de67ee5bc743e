"""Types that onnx_ir has no class for, maps and what has maps in it: taken off before a model is read, and put back.

They are the types of what classifiers of other libraries take and make; no weight has one, and no norm.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

_TYPE = "normdeploy.type"
"""Where a value notes its type, among what is not written."""


def has_map(told: onnx.TypeProto) -> bool:
    """Return True for a map, and for a sequence or optional that has one in it."""
    kind = told.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        told = getattr(told, kind).elem_type
        kind = told.WhichOneof("value")
    return bool(kind == "map_type")


def take_off(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Return the types with maps that ``graph`` declares, by name, and let it declare them no more."""
    found: dict[str, onnx.TypeProto] = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        if has_map(info.type):
            found[info.name] = onnx.TypeProto()
            found[info.name].CopyFrom(info.type)
            info.ClearField("type")
    return found


def note(model: ir.Model, types: dict[str, onnx.TypeProto]) -> None:
    """Note ``types``, which were taken off, on the inputs and outputs of ``model``."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in types:
            value.meta[_TYPE] = types[str(value.name)]


def has_noted(model: ir.Model) -> bool:
    """Return True if an input or output of ``model`` has a type that onnx_ir has no class for."""
    return any(_TYPE in value.meta for value in (*model.graph.inputs, *model.graph.outputs))


def put_back(model: ir.Model, message: onnx.ModelProto) -> onnx.ModelProto:
    """Declare in ``message``, which was made of ``model``, the types that were noted; return it."""
    _declare(model.graph.inputs, message.graph.input)
    _declare(model.graph.outputs, message.graph.output)
    return message


def _declare(values: Iterable[ir.Value], infos: Iterable[onnx.ValueInfoProto]) -> None:
    noted = {str(value.name): value.meta[_TYPE] for value in values if _TYPE in value.meta}
    for info in infos:
        if info.name in noted:
            info.type.CopyFrom(noted[info.name])
