"""ONNX files, read and written weight by weight: nothing is held but the weight that is in hand.

As one message of protobuf a model is in memory three times before it is written: itself, the message, and its bytes.
The wire format asks for none of that (protobuf, "Encoding"): a message is its fields in any order, and a field of
bytes is its number, its length and the bytes. So the weights, which are fields of the graph, follow the rest of it;
and when a file is read, they are left where they are, and mapped.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
"""Wire types: what follows the number of a field; those of a fixed size, by it."""
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
        ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64,
    }
)  # fmt: skip
"""What is stored as it is computed with, number by number."""
_MAPPED = 1 << 12
"""Bytes from which on a weight is mapped."""
_SOURCE = "normdeploy.source"
"""Where a model notes its files, among what is not written."""
_BESIDE = 256
"""Bytes above which a weight goes to the file beside, where there is one."""
_LARGEST = 2**31 - 1
"""The most bytes that a message can have."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model as ``onnx_ir.load`` does, but for its weights: they stay in the file, which must stay as it is.

    Raises what ``onnx_ir.load`` raises.
    """
    path = Path(path)
    state = _state(path)
    model, mapped = _loaded(path)
    model.meta[_SOURCE] = _Source(path, state if mapped else None, {file: _state(file) for file in _data_files(model)})
    return model


def _loaded(path: Path) -> tuple[ir.Model, bool]:
    """The model, and whether any of its weights are still in its own file."""
    if path.suffix != ".onnx":  # other formats have other ends, and nothing to map
        return ir.load(path), False
    try:
        return _mapped(path)
    except Exception:  # no such file, an empty one, or none of protobuf's: onnx_ir has the words for it
        return ir.load(path), False


State = tuple[int, int, int, int]
"""Device, inode, size and time of the last change (ns) of a file."""


def _state(path: Path) -> State | None:
    """What tells whether a file is what it was; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _data_files(model: ir.Model) -> set[Path]:
    """The files beside a model that have weights of it."""
    weights = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    named = {str(weight.path) for weight in weights if isinstance(weight, ir.ExternalTensor)}
    return {Path(name).resolve() for name in named}


@dataclass(frozen=True)
class _Source:
    """Where the weights of a loaded model lie.

    Attributes:
        path: the model's own file.
        state: of that file, before it was read; None where all of it was.
        data: the files beside it, which are opened by their names when a weight is asked for.
    """

    path: Path
    state: State | None
    data: dict[Path, State | None]

    def need_unchanged(self, but: Path | None = None) -> None:
        """Refuse files, ``but`` for one, that are not what they were; one with another in its place is still mapped."""
        now = _state(self.path)
        changed = [self.path] if now and self.state and now != self.state and now[:2] == self.state[:2] else []
        changed += [path for path, state in self.data.items() if path != but and _state(path) != state]
        if changed:
            raise InputError(
                "the model's file was changed while it was in use, and its weights are read from it",
                where=", ".join(map(str, changed)),
                fix="leave it as it is until the new model is saved, and begin again",
            )


def need_unchanged(model: ir.Model) -> None:
    """Refuse a model of :func:`load` whose file is not what it was: its weights would be of two models.

    Raises:
        InputError: the file, or one with its weights, was written to or taken away since it was loaded.
    """
    source = model.meta.get(_SOURCE)
    if source is not None:
        source.need_unchanged()


def _mapped(path: Path) -> tuple[ir.Model, bool]:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    light, weights = _split(data)
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(light))
    ir.external_data.set_base_dir(model.graph, path.parent)
    for name, array in weights.items():
        value = model.graph.initializers[name]
        described = value.const_value
        assert described is not None
        props = dict(described.metadata_props)
        value.const_value = ir.Tensor(
            array, described.dtype, name=name, doc_string=described.doc_string, metadata_props=props
        )
    return model, bool(weights)


def _split(data: memoryview) -> tuple[bytes, dict[str, np.ndarray]]:
    """The bytes of a model but for those of its large weights, and these by their names, where they lie."""
    rest, graph, weights = bytearray(), bytearray(), {}
    for number, start, body, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            rest += data[start:end]
            continue
        for inner, first, inside, last in _fields(data, body, end):
            found = _weight(data, inside, last) if inner == _INITIALIZER and last - inside > _MAPPED else None
            if found is None:
                graph += data[first:last]
            else:
                description, array = found
                weights[description.name] = array
                graph += _head(_INITIALIZER, description.ByteSize()) + description.SerializeToString()
    return bytes(rest + _head(_GRAPH, len(graph)) + graph), weights


def _weight(data: memoryview, start: int, end: int) -> tuple[onnx.TensorProto, np.ndarray] | None:
    """A tensor without its bytes, and these as an array; None where they are not stored as they are computed with."""
    description, raw = bytearray(), None
    for number, first, body, last in _fields(data, start, end):
        if number == _RAW_DATA:
            raw = (body, last)
        else:
            description += data[first:last]
    proto = onnx.TensorProto.FromString(bytes(description))
    if raw is None or proto.data_type not in _PLAIN or sys.byteorder != "little":
        return None
    dtype = ir.DataType(proto.data_type).numpy()
    if raw[1] - raw[0] != math.prod(proto.dims) * dtype.itemsize:
        return None
    return proto, np.frombuffer(data[raw[0] : raw[1]], dtype).reshape(tuple(proto.dims))


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, where it begins, where what it holds begins, where it ends."""
    while start < end:
        key, body = _number(data, start)
        wire = key & 7
        if wire == _VARINT:
            last = _number(data, body)[1]
        elif wire == _BYTES:
            length, body = _number(data, body)
            last = body + length
        elif wire in _FIXED:
            last = body + _FIXED[wire]
        else:
            raise ValueError(f"there is no wire type {wire}")
        if last > end:
            raise ValueError("a field is longer than what it is in")
        yield key >> 3, start, body, last
        start = last


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    number = shift = 0
    while True:
        digit = data[at]
        at += 1
        number |= (digit & 0x7F) << shift
        if digit < 0x80:
            return number, at
        shift += 7


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: str | None = None) -> None:
    """Write ``model``, which is not changed, to ``path``; with ``external_data`` its weights to that file beside it.

    Wherever the weights lie now, they are written: what is written reads no other file. It takes the place of an older
    one at once and whole.

    Raises:
        OSError: a file cannot be written.
        InputError: the weights are within the file, and it would have more than 2 GB; or they cannot go where they
            should; or the file that they are read from was changed.
    """
    path = Path(path)
    need_unchanged(model)
    data = None if external_data is None else (path.parent / external_data).resolve()
    if data is not None:
        _need_place(model, path, data)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.onnx")  # the model may have its weights in the old file
    source = model.meta.pop(_SOURCE, None)  # what is written may take the place of what was read
    try:
        if external_data is None:
            _write(model, temporary, path)
        else:
            ir.save(model, temporary, external_data=external_data, size_threshold_bytes=_BESIDE)
        if source is not None:
            source.need_unchanged(but=data)
        temporary.replace(path)
    finally:
        if source is not None:
            model.meta[_SOURCE] = source
        temporary.unlink(missing_ok=True)


def _need_place(model: ir.Model, path: Path, data: Path) -> None:
    """Refuse a file for the weights that is not free for them."""
    source = model.meta.get(_SOURCE)
    if data == path.resolve():
        raise InputError("the weights cannot go into the model's own file", where=str(path), fix="name another")
    if source is not None and data in source.data and path.resolve() != source.path.resolve():
        what = "the weights cannot go into the file that the given model has its own in"
        raise InputError(what, where=str(data), fix="name another")
    weights = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    if any(isinstance(weight, ir.StringTensor) and weight.nbytes > _BESIDE for weight in weights):
        raise InputError("a large text tensor cannot be stored beside a model", where=str(data), fix="store it within")


def _write(model: ir.Model, temporary: Path, path: Path) -> None:
    proto = _without_weights(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    parts = [_Part.of(value) for value in model.graph.initializers.values() if value.const_value is not None]
    size = len(graph) + sum(part.size for part in parts)
    if size > _LARGEST - proto.ByteSize():
        fix = "name a file for the weights: external_data"
        raise InputError(f"one ONNX file cannot hold {size:,} bytes", where=str(path), fix=fix)
    with temporary.open("xb") as file:
        file.write(proto.SerializeToString() + _head(_GRAPH, size) + graph)
        for part in parts:
            part.write(file)


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
            words = ir.to_proto(weight)
            words.name = str(value.name)
            return cls(words.SerializeToString(), None)
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

    def write(self, file: BinaryIO) -> None:
        file.write(_head(_INITIALIZER, self.length) + self.description)
        if self.weight is None:
            return
        start = file.tell()
        if isinstance(self.weight, ir.Tensor | ir.LazyTensor | ir.ExternalTensor):
            self.weight.tofile(file)  # from where it lies, without a copy
        else:
            file.write(self.weight.tobytes())
        if (written := file.tell() - start) != self.weight.nbytes:
            raise ValueError(f"{self.weight.name} has {written} bytes and not {self.weight.nbytes}")


def _head(number: int, length: int) -> bytes:
    """What stands before the bytes of field ``number``."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
