"""Writing a model weight by weight: as one message of protobuf it would be in memory three times."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.disk import room
from normdeploy.errors import InputError
from normdeploy.onnxfile import maps
from normdeploy.onnxfile.read import require_unchanged, source_of
from normdeploy.onnxfile.tensors import FileTensor
from normdeploy.onnxfile.wire import head

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_BESIDE = 256
"""Bytes above which a weight goes to the file beside, where there is one."""
_LARGEST = 2**31 - 1
"""The most bytes that a message can have."""


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: str | None = None) -> None:
    """Write ``model``, which is not changed, to ``path``; with ``external_data`` its weights to that file beside it.

    Wherever the weights lie now, they are written: what is written reads no other file. It takes the place of an older
    one at once and whole; the file of weights takes no other's place, whose model would be read with these.

    Raises:
        OSError: a file cannot be written.
        InputError: the weights are within the file, and it would have more than 2 GB; or they cannot go where they
            should; or the file that they are read from was changed.
    """
    path = Path(path)
    require_unchanged(model)
    if external_data is not None:
        _require_place(model, path, external_data)
    with room(path) as place:
        place.new.mkdir()
        new = place.new / path.name
        if external_data is None:
            _write(model, new)
        else:
            ir.save(model, new, external_data=external_data, size_threshold_bytes=_BESIDE)
            _put_types_back(model, new)
        require_unchanged(model)
        beside = external_data if external_data and (place.new / external_data).exists() else None
        place.settle_pair(path, beside, replace=True)


def _require_place(model: ir.Model, path: Path, external_data: str) -> None:
    """Refuse a file for the weights that cannot be one."""
    if Path(external_data).name != external_data:
        raise InputError("the weights go into the model's own folder", where=external_data, fix="give a name alone")
    data, source = path.with_name(external_data), source_of(model)
    if data == path:
        raise InputError("the weights cannot go into the model's own file", where=str(path), fix="name another")
    if source is not None and source.is_beside(data) and source.own.path.resolve() != path.resolve():
        what = "the weights cannot go into the file that the given model has its own in"
        raise InputError(what, where=str(data), fix="name another")
    weights = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    if any(isinstance(weight, ir.StringTensor) and weight.nbytes > _BESIDE for weight in weights):
        raise InputError("a large text tensor cannot be stored beside a model", where=str(data), fix="store it within")


def _write(model: ir.Model, path: Path) -> None:
    proto = _without_weights(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    parts = [_Part.of(value) for value in model.graph.initializers.values() if value.const_value is not None]
    size = len(graph) + sum(part.size for part in parts)
    if size > _LARGEST - proto.ByteSize():
        fix = "name a file for the weights: external_data"
        raise InputError(f"one ONNX file cannot hold {size:,} bytes", where=str(path), fix=fix)
    with path.open("xb") as file:
        file.write(proto.SerializeToString() + head(_GRAPH, size) + graph)
        for part in parts:
            part.write(file)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    light = model.clone()
    for value in light.graph.initializers.values():  # without any, types that were written would be left out
        value.const_value = None if value.const_value is None else ir.Tensor(np.empty(0, np.float32))
    proto = ir.to_proto(light)
    del proto.graph.initializer[:]
    return maps.put_back(model, proto)


def _put_types_back(model: ir.Model, path: Path) -> None:
    if maps.has_noted(model):
        onnx.save(maps.put_back(model, onnx.load(path, load_external_data=False)), path)


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
        return cls(proto.SerializeToString() + head(_RAW_DATA, weight.nbytes), weight)

    @property
    def length(self) -> int:
        return len(self.description) + (self.weight.nbytes if self.weight is not None else 0)

    @property
    def size(self) -> int:
        return len(head(_INITIALIZER, self.length)) + self.length

    def write(self, file: BinaryIO) -> None:
        file.write(head(_INITIALIZER, self.length) + self.description)
        if self.weight is None:
            return
        start = file.tell()
        if isinstance(self.weight, ir.Tensor | ir.LazyTensor | ir.ExternalTensor | FileTensor):
            self.weight.tofile(file)  # from where it lies, without a copy
        else:
            file.write(self.weight.tobytes())
        if (written := file.tell() - start) != self.weight.nbytes:
            raise ValueError(f"{self.weight.name} has {written} bytes and not {self.weight.nbytes}")
