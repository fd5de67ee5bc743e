"""Nodes that say what their operator can read: kinds and ranges of attributes, and how many inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.functions import all_nodes

_POSITIVE = frozenset({"strides", "dilations", "kernel_shape", "group", "num_groups"})
_WITHIN = 1 << 31
"""No axis, stride or pad of a tensor that fits into memory is beyond."""
_NONE = 0
"""What stands for no opset."""
_LONGEST = 1 << 16
"""Characters of a name: it is shown in tables, which take as many lines."""
_FIELDS = {
    onnx.AttributeProto.FLOAT: "f", onnx.AttributeProto.INT: "i", onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.TENSOR: "t", onnx.AttributeProto.GRAPH: "g",
}  # fmt: skip
_Schema = onnx.defs.OpSchema
_KINDS = {getattr(_Schema.AttrType, name, None): number for name, number in onnx.AttributeProto.AttributeType.items()}
"""The kinds of attributes, by the schemas' own names for them."""


def require_sound_nodes(model: onnx.ModelProto, where: str) -> None:
    """Refuse nodes that no runtime could read: without them, each reader of an attribute would have to expect anything.

    An operator that the installed onnx does not know is passed over, and so is an attribute that it has not.

    Raises:
        InputError: with the node's name.
    """
    # ONNX specification, IR: before version 3 there was one opset. Another model that names none is refused later.
    opsets = {"": 1} if model.ir_version < 3 else {"": _NONE}
    opsets |= {each.domain or "": each.version for each in model.opset_import}
    bodies: list[tuple[Sequence[onnx.NodeProto], Mapping[str, int]]] = [(model.graph.node, opsets)]
    bodies += [(each.node, opsets | {own.domain: own.version for own in each.opset_import}) for each in model.functions]
    for nodes, versions in bodies:
        opset = versions.get("ai.onnx", versions[""])
        for node in all_nodes(nodes):
            if (longest := max(map(len, (node.name, *node.output)), default=0)) > _LONGEST:
                what = f"the name of a node or a value has {longest:,} characters"
                raise InputError(
                    what, where=f"{where}: a {node.op_type[:80]}", fix="export it again, with shorter names"
                )
            for problem in _problems(node, opset):
                name = node.name or next(iter(node.output), "")
                what = f"the model is not valid ONNX: {problem}"
                raise InputError(what, where=f"{where}: {node.op_type} {name}", fix="export it again")


def _problems(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    schema = _schema(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
    known = schema.attributes if schema is not None else {}
    seen: set[str] = set()
    for attribute in node.attribute:
        name = attribute.name
        if name in seen:
            yield f"its attribute {name!r} is given twice"
        seen.add(name)
        if attribute.type == onnx.AttributeProto.UNDEFINED:
            yield f"its attribute {name!r} has no type"
        elif name in known and attribute.type != _KINDS.get(known[name].type):
            yield f"its attribute {name!r} is of another type than the operator reads"
        elif not attribute.ref_attr_name:
            yield from _wrong_value(attribute)
    if schema is None:
        return
    missing = [name for name, each in known.items() if each.required and name not in seen]
    yield from (f"its attribute {name!r} is missing" for name in missing)
    if not schema.min_input <= len(node.input) <= schema.max_input:
        yield f"it has {len(node.input)} inputs"
    if not schema.min_output <= len(node.output) <= schema.max_output:
        yield f"it has {len(node.output)} outputs"
    single = [each.option != _Schema.FormalParameterOption.Optional for each in schema.inputs]
    if any(needed and not given for needed, given in zip(single[: schema.min_input], node.input, strict=False)):
        yield "an input that it needs is left out"


def _wrong_value(attribute: onnx.AttributeProto) -> Iterator[str]:
    field = _FIELDS.get(attribute.type)
    if field is not None and not attribute.HasField(field):
        yield f"its attribute {attribute.name!r} has no value of its type"
    if attribute.type not in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
        return
    numbers = attribute.ints if attribute.type == onnx.AttributeProto.INTS else [attribute.i]
    low = 1 if attribute.name in _POSITIVE else -_WITHIN
    if attribute.name in _SIZES and any(not low <= number < _WITHIN for number in numbers):
        yield f"its attribute {attribute.name!r} is out of range"


_SIZES = _POSITIVE | {"pads", "output_padding", "output_shape", "axis", "axes", "perm", "split"}


@lru_cache(maxsize=1024)
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    if not _NONE < opset < _WITHIN:  # what is no opset is refused later
        return None
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
