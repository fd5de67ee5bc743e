"""A model's file without its large weights, and how much that is, before anything is built of it.

Wherever a tensor stands (an initializer, an attribute, the body of a function or of a loop), its bytes stay in the
file, and in their place stands where they lie. What is left is measured first: a few bytes can describe what takes
gigabytes, or what takes hours, to build.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.places import File
from normdeploy.onnxfile.wire import BYTES, VARINT, Field, fields, head, number

NODES = 100_000
"""The most nodes of a model, bodies and functions included; onnx_ir takes 50 µs and 1 kB for each."""
_MESSAGES, _FIELDS, _NUMBERS = 1_000_000, 2_000_000, 1 << 22
"""The most messages, fields, and bytes of numbers beside those of tensors, that a model may be made of."""
Descriptor = Any
"""Of a kind of message; protobuf has no types of its own."""
_OUTER = 500_000
"""The most fields of the messages that have something large in them: the graph's nodes, weights and values."""
_IN_TENSOR = 100
"""The most fields of a tensor whose bytes are left in the file; one of texts has more."""
_DEPTH = 90
"""How deep messages may lie in each other; protobuf gives up at 100."""
_LIGHT = 1 << 28
"""The most bytes of a model without its large weights."""
_WINDOW = 1 << 16
LARGE = 1 << 12
"""Bytes from which on a weight stays in its file."""

_NODE, _TENSOR = onnx.NodeProto.DESCRIPTOR, onnx.TensorProto.DESCRIPTOR
_RAW, _DIMS, _DTYPE, _PLACE, _EXTERNAL = (
    _TENSOR.fields_by_name[name].number for name in ("raw_data", "dims", "data_type", "data_location", "external_data")
)
_TYPED: dict[int, int] = {
    onnx.TensorProto.FLOAT: _TENSOR.fields_by_name["float_data"].number,
    onnx.TensorProto.DOUBLE: _TENSOR.fields_by_name["double_data"].number,
}
"""Fields whose packed numbers are the bytes that raw_data would hold."""


@dataclass
class Skeleton:
    """What a model's file holds but for its large weights.

    Attributes:
        light: a model whose large weights are named as external data.
        own: the location by which these are named: it is the file itself.
        tensors: where each tensor lies in ``light``.
    """

    light: bytes
    own: str
    tensors: list[tuple[int, int]] = field(default_factory=list)

    def protos(self) -> Iterator[onnx.TensorProto]:
        """Yield every tensor of the model, wherever it stands."""
        for start, end in self.tensors:
            yield onnx.TensorProto.FromString(self.light[start:end])


def skeleton(file: File, own: str) -> Skeleton:
    """Return the skeleton of the model in ``file``.

    Raises:
        ValueError: the file is no message of protobuf.
        InputError: the model is made of more, or deeper, than can be built.
    """
    window = _Window(file)
    found = Skeleton(b"".join(_rebuilt(window, onnx.ModelProto.DESCRIPTOR, 0, file.size, own, 0)), own)
    _measure(found, file)
    return found


class _Window:
    """The bytes of a file by their place, read a piece at a time; and how much of it was asked for."""

    def __init__(self, file: File) -> None:
        self.file, self._start, self._piece = file, 0, b""
        self.taken = self.fields = 0

    def __getitem__(self, at: int) -> int:
        place = at - self._start
        if not 0 <= place < len(self._piece):
            if at >= self.file.size:
                raise IndexError(at)
            self._start, place = at, 0
            self._piece = self.file.read(at, min(at + _WINDOW, self.file.size))
        return self._piece[place]

    def take(self, start: int, end: int) -> bytes:
        """The bytes ``[start:end]``, which become part of the skeleton."""
        self.taken += end - start
        if self.taken > _LIGHT:
            raise _too_large(self.file, f"more than {_LIGHT >> 20} MiB beside its large weights")
        return self.file.read(start, end)

    def outer(self, start: int, end: int) -> Iterator[Field]:
        """The fields of a message with something large in it."""
        for found in fields(self, start, end):
            self.fields += 1
            if self.fields > _OUTER:
                raise _too_large(self.file, f"more than {_OUTER:,} nodes, weights and values")
            yield found


def _rebuilt(data: _Window, kind: Descriptor, start: int, end: int, own: str, depth: int) -> Iterator[bytes]:
    """The message in ``data[start:end]`` piece by piece, its large weights left out."""
    if depth > _DEPTH:
        raise _too_deep(data.file)
    inner, kept = _messages(kind), start
    for key, first, body, last in data.outer(start, end):
        below = inner.get(key)
        if last - body <= LARGE or below is None:
            continue
        if below is _TENSOR:
            pieces = [_described(data, body, last, own)]
        else:
            pieces = list(_rebuilt(data, below, body, last, own, depth + 1))
        yield data.take(kept, first)
        yield head(key >> 3, sum(map(len, pieces)))
        yield from pieces
        kept = last
    yield data.take(kept, end)


def _described(data: _Window, start: int, end: int, own: str) -> bytes:
    """A tensor with the place of its bytes instead of these, where they are stored as they are computed with."""
    found = list(islice(fields(data, start, end), _IN_TENSOR))
    held = _held(data, found)
    if held is None or len(found) == _IN_TENSOR:
        return data.take(start, end)
    rest = b"".join(data.take(first, last) for key, first, _, last in found if key != held[0])
    beside = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for name, value in {"location": own, "offset": held[2], "length": held[3] - held[2]}.items():
        beside.external_data.add(key=name, value=str(value))
    place: bytes = beside.SerializeToString()
    return rest + place


def _held(data: _Window, found: list[Field]) -> Field | None:
    """The field with the numbers of a tensor; None where they are few, or elsewhere, or written otherwise."""
    dtype: int = next((number(data, body)[0] for key, _, body, _ in reversed(found) if key == _DTYPE << 3 | VARINT), 0)
    fitting = {_RAW << 3 | BYTES, _TYPED.get(dtype, _RAW) << 3 | BYTES}
    held = [each for each in found if each[0] in fitting]
    if len(held) != 1 or held[0][3] - held[0][2] <= LARGE or sys.byteorder != "little":
        return None
    return None if any(key >> 3 in (_PLACE, _EXTERNAL) for key, *_ in found) else held[0]


@cache
def _messages(kind: Descriptor) -> dict[int, Descriptor]:
    """The keys of the fields of ``kind`` that are messages, with what they are."""
    return {each.number << 3 | BYTES: each.message_type for each in kind.fields if each.message_type is not None}


@cache
def _packed(kind: Descriptor) -> frozenset[int]:
    """The keys of the fields of ``kind`` that are many numbers; those of a tensor are its own affair."""
    if kind is _TENSOR:
        return frozenset({_DIMS << 3 | BYTES})
    return frozenset(
        each.number << 3 | BYTES
        for each in kind.fields
        if each.cpp_type not in (each.CPPTYPE_STRING, each.CPPTYPE_MESSAGE)
    )


@cache
def _texts(kind: Descriptor) -> frozenset[int]:
    """The keys of the fields of ``kind`` that are text."""
    return frozenset(each.number << 3 | BYTES for each in kind.fields if each.type == each.TYPE_STRING)


@cache
def _roles(kind: Descriptor) -> tuple[dict[int, Descriptor], frozenset[int], frozenset[int]]:
    """The keys of the fields of ``kind`` that are messages, many numbers, and text."""
    return _messages(kind), _packed(kind), _texts(kind)


def _measure(found: Skeleton, file: File) -> None:
    """Enter the tensors; refuse a model that is more than can be built."""
    data, stack = found.light, [(onnx.ModelProto.DESCRIPTOR, 0, len(found.light), 0)]
    nodes = messages = counted = numbers = 0
    while stack:
        kind, start, end, depth = stack.pop()
        if depth > _DEPTH:
            raise _too_deep(file)
        messages += 1
        if kind is _NODE:
            nodes += 1
        elif kind is _TENSOR:
            found.tensors.append((start, end))
        inner, packed, texts = _roles(kind)
        for key, _, body, last in fields(data, start, end):
            counted += 1
            if key in texts:
                data[body:last].decode()  # protobuf would hand out bytes where it is no text
            elif key in inner:
                stack.append((inner[key], body, last, depth + 1))
                if len(stack) > _MESSAGES:
                    raise _too_large(file, f"more than {_MESSAGES:,} messages")
            elif key in packed:
                numbers += last - body
            if counted > _FIELDS:
                break
        if nodes > NODES or messages > _MESSAGES or counted > _FIELDS or numbers > _NUMBERS:
            found_and_most = {
                "nodes": (nodes, NODES),
                "messages": (messages, _MESSAGES),
                "fields": (counted, _FIELDS),
                "bytes of numbers": (numbers, _NUMBERS),
            }
            what, most = next((what, most) for what, (count, most) in found_and_most.items() if count > most)
            raise _too_large(file, f"more than {most:,} {what}")


def _too_large(file: File, what: str) -> InputError:
    return InputError(f"the model is made of {what}", where=str(file.path), fix="split the model into smaller ones")


def _too_deep(file: File) -> InputError:
    what = f"the model has messages that lie more than {_DEPTH} deep in each other"
    return InputError(what, where=str(file.path), fix="export it again, with fewer bodies in bodies")
