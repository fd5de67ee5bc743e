"""ONNX files, written weight by weight: nothing is held but the weight that is just written.

As one message of protobuf a model is in memory three times before it is written: itself, the message, and its bytes.
The wire format asks for none of that (protobuf, "Encoding"): a message is its fields in any order, and a field of
bytes is its number, its length and the bytes. So the weights, which are fields of the graph, follow the rest of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_LARGEST = 2**31 - 1
"""The most bytes that a message can have."""


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: str | None = None) -> None:
    """Write ``model``, which is not changed, to ``path``; with ``external_data`` its weights to that file beside it.

    Wherever the weights lie now, they are written: what is written reads no other file.

    Raises:
        OSError: a file cannot be written.
        InputError: the weights are within the file, and it would have more than 2 GB; or both files are one.
    """
    if external_data is not None:
        if (Path(path).parent / external_data).resolve() == Path(path).resolve():
            raise InputError("the weights cannot go into the model's own file", where=str(path), fix="name another")
        ir.save(model, path, external_data=external_data)
        return
    proto = _without_weights(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    parts = [_Part.of(value) for value in model.graph.initializers.values() if value.const_value is not None]
    size = len(graph) + sum(part.size for part in parts)
    if size > _LARGEST - proto.ByteSize():
        raise InputError(
            f"one ONNX file cannot hold {size:,} bytes",
            where=str(path),
            fix="name a file for the weights: external_data",
        )
    with Path(path).open("wb") as file:
        file.write(proto.SerializeToString() + _head(_GRAPH, size) + graph)
        for part in parts:
            file.writelines(part.pieces())


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    light = model.clone()
    for value in light.graph.initializers.values():  # without any, types that were written would be left out
        value.const_value = None if value.const_value is None else ir.Tensor(np.empty(0, np.float32))
    proto = ir.to_proto(light)
    del proto.graph.initializer[:]
    return proto


@dataclass(frozen=True)
class _Part:
    """One weight as a field of the graph: its description, and behind that its bytes."""

    description: bytes
    weight: ir.TensorProtocol | None
    """None where the description has all of it."""

    @classmethod
    def of(cls, value: ir.Value) -> _Part:
        weight = value.const_value
        assert weight is not None
        if isinstance(weight, ir.StringTensor):
            return cls(ir.to_proto(weight).SerializeToString(), None)
        proto = onnx.TensorProto(name=value.name, data_type=weight.dtype.value, dims=weight.shape.numpy())
        if weight.doc_string:
            proto.doc_string = weight.doc_string
        for key, text in weight.metadata_props.items():
            proto.metadata_props.add(key=key, value=text)
        return cls(proto.SerializeToString() + _head(_RAW_DATA, weight.nbytes), weight)

    @property
    def length(self) -> int:
        return len(self.description) + (self.weight.nbytes if self.weight is not None else 0)

    @property
    def size(self) -> int:
        return len(_head(_INITIALIZER, self.length)) + self.length

    def pieces(self) -> Iterator[bytes]:
        yield _head(_INITIALIZER, self.length) + self.description
        if self.weight is not None:
            data = self.weight.tobytes()
            if len(data) != self.weight.nbytes:
                raise ValueError(f"{self.weight.name} has {len(data)} bytes and not {self.weight.nbytes}")
            yield data


def _head(number: int, length: int) -> bytes:
    """What stands before the bytes of field ``number``."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
