"""A model's file looked through before it is built, by whoever reads it: what it names, claims and asks for.

What a model names is inside its own folder and a plain file (``places``), what a tensor says of itself is so
(``claims``), and it is no more than can be built (``skeleton``, ``functions``).
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.claims import require_inside, require_sound
from normdeploy.onnxfile.functions import all_nodes, require_bounded_calls
from normdeploy.onnxfile.names import require_unique_names
from normdeploy.onnxfile.nodes import require_sound_nodes
from normdeploy.onnxfile.places import File, open_given, open_inside
from normdeploy.onnxfile.skeleton import skeleton
from normdeploy.onnxtext import FORMATS, LARGEST, model_of

_RULE, _FOLDING = "pkg.onnxscript.rewriter.rule_name", "FuseBatchNormInto"
_MOST = 300
"""Characters of a library's message."""


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
            self.beside[name] = open_inside(self.folder, name, str(self.own.path))
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


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of the model in ``path``. Raises InputError as :func:`reading` does."""
    with reading(Path(path)) as (proto, _):
        return {prop.key: prop.value for prop in proto.metadata_props}


def made_by(path: str | os.PathLike[str]) -> tuple[str, int]:
    """Return what wrote the model in ``path``, and how many nodes are BatchNormalizations that it has folded itself.

    onnxscript's rewriter, which torch.onnx.export runs, notes its rule at the node that it makes. Raises InputError as
    :func:`reading` does.
    """
    with reading(Path(path)) as (proto, _):
        rules = (
            prop.value for node in all_nodes(proto.graph.node) for prop in node.metadata_props if prop.key == _RULE
        )
        return proto.producer_name, sum(rule.startswith(_FOLDING) for rule in rules)


def data_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files beside ``path`` in which its model has weights. Raises InputError as :func:`reading` does."""
    with reading(Path(path)) as (_, source):
        return tuple(file.path for file in source.beside.values())


def shapes(path: str | os.PathLike[str]) -> dict[str, list[int | str | None] | None]:
    """Return the shapes that the model in ``path`` declares of its inputs and outputs, by name; None where it has none.

    A size is a number, a name, or None where nothing is said of it. Raises InputError as :func:`reading` does.
    """
    with reading(Path(path)) as (proto, _):
        return {info.name: _shape(info.type) for info in (*proto.graph.input, *proto.graph.output)}


def _shape(told: onnx.TypeProto) -> list[int | str | None] | None:
    if not told.tensor_type.HasField("shape"):
        return None
    dims = told.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def check(path: str | os.PathLike[str]) -> None:
    """Refuse what :func:`reading` refuses, before another library opens the file by its name."""
    with reading(Path(path)):
        pass


@contextmanager
def reading(path: Path) -> Iterator[tuple[onnx.ModelProto, Source]]:
    """Yield the model in a file, looked through, and its files; one InputError for whatever is wrong with it."""
    try:
        file = open_given(path)
        source = Source(_as_protobuf(file) if path.suffix in FORMATS else file, path.parent)
        found = skeleton(source.own, source.token)
        for tensor in found.protos():
            require_sound(tensor, str(path))
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                require_inside(tensor, source.named(location_of(tensor)), str(path))
        proto = onnx.ModelProto.FromString(found.light)
        require_unique_names(proto, str(path))
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
            f"the file cannot be read as an ONNX model ({first_line(error)})",
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


def location_of(tensor: onnx.TensorProto) -> str:
    """Return the file that a tensor, whose data is external, names."""
    return str(next(entry.value for entry in tensor.external_data if entry.key == "location"))


def first_line(error: Exception) -> str:
    """Return what ``error``, or what it was raised from, says: onnx_ir puts the whole of a message around it."""
    while type(error).__name__ == "SerdeError" and isinstance(error.__cause__, Exception):
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:_MOST]}"
