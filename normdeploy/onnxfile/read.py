"""Reading a model that anyone may have made: looked through before it is built, its weights left where they lie.

What a model names is inside its own folder and a plain file (``places``), what a tensor says of itself is so
(``tensors``), and it is no more than can be built (``skeleton``, ``functions``).
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.onnxfile import maps
from normdeploy.onnxfile.functions import graphs, require_bounded_calls
from normdeploy.onnxfile.nodes import require_sound_nodes
from normdeploy.onnxfile.places import File, open_given, open_inside
from normdeploy.onnxfile.skeleton import skeleton
from normdeploy.onnxfile.sparse import densify, is_sparse
from normdeploy.onnxfile.tensors import FileTensor, in_file, require_sound
from normdeploy.onnxtext import FORMATS, LARGEST, model_of

_SOURCE = "normdeploy.source"
"""Where a model notes its files, among what is not written."""


@dataclass
class Source:
    """The files in which a loaded model has its weights.

    Attributes:
        own: the model's own.
        folder: the only place for others.
        beside: these, by the names that the model has for them.
        from_own: whether there are weights in its own.
        token: what the skeleton calls its own; no file can know it.
    """

    own: File
    folder: Path
    beside: dict[str, File] = field(default_factory=dict)
    from_own: bool = False
    token: str = field(default_factory=lambda: f"{uuid.uuid4().hex}/own")

    def named(self, name: str) -> File:
        """Return the file that the model, or its skeleton, calls ``name``, opened once."""
        if name == self.token:
            self.from_own = True
            return self.own
        if name not in self.beside:
            self.beside[name] = open_inside(self.folder, name)
        return self.beside[name]

    def files(self) -> list[File]:
        """Return those that weights are still read from."""
        return [*([self.own] if self.from_own else []), *self.beside.values()]

    def is_beside(self, path: Path) -> bool:
        """Return True if ``path`` is one of the files with weights beside the model."""
        return any(file.is_same(path) for file in self.beside.values())

    def require_unchanged(self) -> None:
        """Refuse files that were written to; another one in the place of one does not matter, it is still open."""
        changed = [str(file.path) for file in self.files() if not file.is_unchanged()]
        if changed:
            raise InputError(
                "the model's file was changed while it was in use, and its weights are read from it",
                where=", ".join(changed),
                fix="leave it as it is until the new model is saved, and begin again",
            )


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model; its large weights stay in their files, which must stay as they are.

    Raises:
        InputError: there is no such file, it is no model, or one that is not to be trusted in what it names or claims.
    """
    with _reading(Path(path)) as (proto, source):
        types = maps.take_off(proto.graph)
        _require_known_fields(proto, str(path))
        densify(proto, str(path), lambda tensor: _array(tensor, source, str(path)))
        model: ir.Model = ir.from_proto(proto)
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
        what = f"the message cannot be read as an ONNX model ({_first_line(error)})"
        raise InputError(what, where=where, fix="check it with onnx.checker") from error
    maps.note(model, types)
    adopt(model)
    return model


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of the model in ``path``. Raises what :func:`load` does."""
    with _reading(Path(path)) as (proto, _):
        return {prop.key: prop.value for prop in proto.metadata_props}


def data_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files beside ``path`` in which its model has weights. Raises what :func:`load` does."""
    with _reading(Path(path)) as (_, source):
        return tuple(file.path for file in source.beside.values())


def check(path: str | os.PathLike[str]) -> None:
    """Refuse what :func:`load` refuses, before another library opens the file by its name."""
    with _reading(Path(path)):
        pass


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
            files[name] = open_inside(Path(str(base)), str(name))
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


def source_of(model: ir.Model) -> Source | None:
    """Return the files of a model of :func:`load`; None for any other."""
    source = model.meta.get(_SOURCE)
    return source if isinstance(source, Source) else None


@contextmanager
def _reading(path: Path) -> Iterator[tuple[onnx.ModelProto, Source]]:
    """The model in a file, looked through, and its files; one error for whatever is wrong with it."""
    try:
        file = open_given(path)
        source = Source(_as_protobuf(file) if path.suffix in FORMATS else file, path.parent)
        found = skeleton(source.own, source.token)
        for tensor in found.protos():
            require_sound(tensor, str(path))
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                in_file(_external(tensor), source.named(_location(tensor)), str(path))
        proto = onnx.ModelProto.FromString(found.light)
        require_bounded_calls(proto, str(path))
        require_sound_nodes(proto, str(path))
        yield proto, source
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("the model file does not exist", where=str(path), fix="check its path") from error
    except OSError as error:
        raise InputError(f"the model file cannot be read: {error.strerror}", where=str(path)) from error
    except Exception as error:  # protobuf and onnx_ir raise many kinds for bytes that are no model
        raise InputError(
            f"the file cannot be read as an ONNX model ({_first_line(error)})",
            where=str(path),
            fix="check that it is complete and an ONNX model at all",
        ) from error


def _as_protobuf(text: File) -> File:
    """The file that a model in ``text`` would be, without a name."""
    model = model_of(text.read(0, min(text.size, LARGEST + 1)), str(text.path))
    with tempfile.TemporaryFile() as file:
        file.write(model)
        file.flush()
        return File(file, text.path)


def _external(tensor: onnx.TensorProto) -> ir.ExternalTensor:
    described = ir.serde.deserialize_tensor(tensor)
    assert isinstance(described, ir.ExternalTensor)
    return described


def _location(tensor: onnx.TensorProto) -> str:
    return str(next(entry.value for entry in tensor.external_data if entry.key == "location"))


def _first_line(error: Exception) -> str:
    """Return what ``error``, or what it was raised from, says: onnx_ir puts the whole of a message around it."""
    while isinstance(error, ir.serde.SerdeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:_MOST]}"


_MOST = 300
"""Characters of a library's message."""


def _require_known_fields(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what onnx_ir would drop without a word."""
    if proto.training_info:
        raise InputError(
            "the model has training_info, which cannot be kept",
            where=where,
            fix="remove it: del model.training_info[:]",
        )
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
        return in_file(_external(tensor), source.named(_location(tensor)), where).numpy()
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
