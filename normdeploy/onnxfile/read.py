"""Reading a model that anyone may have made: looked through (``look``), then built, its weights left where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.onnxfile import maps
from normdeploy.onnxfile.functions import graphs
from normdeploy.onnxfile.look import Source, first_line, location_of, reading
from normdeploy.onnxfile.names import require_unique_names
from normdeploy.onnxfile.places import File, open_inside
from normdeploy.onnxfile.sparse import densify, is_sparse
from normdeploy.onnxfile.tensors import FileTensor, in_file

_SOURCE, _TRAINED = "normdeploy.source", "normdeploy.training_info"
"""Where a model notes its files, and that its file has training_info, among what is not written."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model; its large weights stay in their files, which must stay as they are.

    Raises:
        InputError: there is no such file, it is no model, or one that is not to be trusted in what it names or claims.
    """
    with reading(Path(path)) as (proto, source):
        types = maps.take_off(proto.graph)
        _require_known_fields(proto, str(path))
        densify(proto, str(path), lambda tensor: _array(tensor, source, str(path)))
        model: ir.Model = ir.from_proto(proto)
        model.meta[_TRAINED] = bool(proto.training_info)
        maps.note(model, types)
        _adopt(model, lambda tensor: in_file(tensor, source.named(str(tensor.location)), str(path)))
    model.meta[_SOURCE] = source
    return model


def from_message(proto: onnx.ModelProto) -> ir.Model:
    """Return the model in ``proto``, which is not changed; its tensors are views of those in it.

    Raises:
        InputError: it is no model, or has what would be lost; or as :func:`adopt`.
    """
    where = str(proto.graph.name)
    require_unique_names(proto, where)
    if is_sparse(proto) or any(maps.has_map(info.type) for info in _declared(proto.graph)):
        given, proto = proto, onnx.ModelProto()
        proto.CopyFrom(given)
    types = maps.take_off(proto.graph)
    _require_known_fields(proto, where)
    if is_sparse(proto):
        densify(proto, where, onnx.numpy_helper.to_array)
    try:
        model: ir.Model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        what = f"the message cannot be read as an ONNX model ({first_line(error)})"
        raise InputError(what, where=where, fix="check it with onnx.checker") from error
    model.meta[_TRAINED] = bool(proto.training_info)
    maps.note(model, types)
    adopt(model)
    return model


def adopt(model: ir.Model) -> None:
    """Open the files in which ``model``, which came from elsewhere in this process, has its weights, as a file's are.

    Raises:
        InputError: a file is missing, too short, or outside the folder that the model was loaded from; or nobody knows
            which folder that was.
    """
    where = str(model.graph.name)
    folders: dict[str, dict[str, File]] = {}

    def opened(tensor: ir.ExternalTensor) -> FileTensor:
        base, name = os.fspath(tensor.base_dir), os.fspath(tensor.location)
        if not base:
            what = f"the weight {tensor.name!r} is external data, {name!r}, and nothing says in which folder"
            raise InputError(what, where=where, fix="give the path of the model's file instead")
        files = folders.setdefault(str(base), {})
        if name not in files:
            files[name] = open_inside(Path(str(base)), str(name), where or str(base))
        return in_file(tensor, files[name], where)

    _adopt(model, opened)


def require_unchanged(model: ir.Model) -> None:
    """Refuse a model of :func:`load` whose file is not what it was: its weights would be of two models.

    Raises:
        InputError: the file, or one with its weights, was written to since it was loaded.
    """
    source = source_of(model)
    if source is not None:
        source.require_unchanged()


def had_training_info(model: ir.Model) -> bool:
    """Return True if ``model`` was read from what has training_info, which it has not: onnx_ir reads the rest."""
    return bool(model.meta.get(_TRAINED))


def source_of(model: ir.Model) -> Source | None:
    """Return the files of a model of :func:`load`; None for any other."""
    source = model.meta.get(_SOURCE)
    return source if isinstance(source, Source) else None


def _external(tensor: onnx.TensorProto) -> ir.ExternalTensor:
    described = ir.serde.deserialize_tensor(tensor)
    assert isinstance(described, ir.ExternalTensor)
    return described


def _require_known_fields(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what onnx_ir would drop without a word; of training_info :func:`had_training_info` tells."""
    for info in (info for graph in graphs(proto) for info in (*graph.input, *graph.output)):
        if maps.has_map(info.type):  # those of the main graph were taken off
            raise InputError(
                f"{info.name!r} is, or has in it, a map, and in the body of a node such types cannot be kept",
                where=where,
                fix="let the model end before the map is made (skl2onnx: options={'zipmap': False})",
            )


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)


def _array(tensor: onnx.TensorProto, source: Source, where: str) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return in_file(_external(tensor), source.named(location_of(tensor)), where).numpy()
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _adopt(model: ir.Model, opened: Callable[[ir.ExternalTensor], FileTensor]) -> None:
    """Let ``opened`` take the place of every external tensor, wherever it stands."""
    bodies = (graph for function in model.functions.values() for graph in function.subgraphs())
    for graph in (*model.graphs(), *bodies):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = opened(value.const_value)
    for node in chain(model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for name, attribute in node.attributes.items():
            if (new := _adopted(attribute, opened)) is not attribute:
                node.attributes[name] = new


def _adopted(attribute: ir.Attr, opened: Callable[[ir.ExternalTensor], FileTensor]) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
        return ir.AttrTensor(attribute.name, opened(attribute.value), doc_string=attribute.doc_string)
    if attribute.type == ir.AttributeType.TENSORS:
        taken = [opened(each) if isinstance(each, ir.ExternalTensor) else each for each in attribute.value]
        return ir.AttrTensors(attribute.name, taken, doc_string=attribute.doc_string)
    return attribute
