"""The bytes of a file → what it is, whatever it is called; for what is not read here, what can be done with it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from normdeploy.checkpoint import convert
from normdeploy.checkpoint.bounds import require_few_entries
from normdeploy.errors import InputError
from normdeploy.trust import Content

PICKLED = ("torch.save", "pickle", "torch.save in parts")
"""What a pickle is at the heart of: it may run code, and need not."""

CODE = {
    "torchscript": "the file is a TorchScript program, which runs code when loaded",
    "program": "the file is a program of torch.export, which can run code when loaded",
}
"""What always counts as code."""

_PLAIN = "give a .safetensors file, or a state dict written by torch.save"
_MAGIC_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""As torch.save's older stream begins, behind the pickle protocol."""


@dataclass(frozen=True)
class Foreign:
    """A format that holds no weights of PyTorch: how it is told, its name, and what to do about it."""

    looks_so: Callable[[bytes], bool]
    name: str
    fix: str


def _starts(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(beginnings)


def _is_onnx(data: bytes) -> bool:
    """Protobuf of a ModelProto: its version, 3 or more, then a field of it. A SavedModel's version is 1."""
    return len(data) > 2 and data[0] == 0x08 and 3 <= data[1] < 64 and data[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


def _is_msgpack_map(data: bytes) -> bool:
    """A map of one entry or more whose first key is a text, as in flax's files."""
    skipped = {0xDE: 3, 0xDF: 5}.get(data[0], 1 if 0x81 <= data[0] <= 0x8F else 0)
    return bool(skipped) and len(data) > skipped and (0xA1 <= data[skipped] <= 0xBF or data[skipped] == 0xD9)


_FOREIGN = (
    Foreign(_starts(b"GGUF"), "a GGUF file", convert.GGUF),
    Foreign(_starts(b"\x89HDF\r\n\x1a\n"), "an HDF5 file, as Keras writes it", convert.KERAS),
    Foreign(lambda data: data[4:8] == b"TFL3", "a TensorFlow Lite model", convert.OTHER),
    Foreign(_starts(b"\x08\x01\x12"), "a SavedModel of TensorFlow", convert.OTHER),
    Foreign(_is_onnx, "an ONNX model, not a file of weights", convert.ONNX),
    Foreign(_starts(b"\x93NUMPY"), "an array of NumPy", _PLAIN),
    Foreign(_starts(b"version https://git-lfs"), "a pointer of git-lfs, not the file itself", "run git lfs pull"),
    Foreign(
        lambda data: bool(re.match(rb"\s*<(!doctype|html|\?xml)", data[:64], re.IGNORECASE)),
        "a web page, not the file that it leads to",
        "download the file itself, and compare its size with the source's",
    ),
    Foreign(
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c"),
        "a compressed file",
        "decompress it, and give what is in it",
    ),
    Foreign(lambda data: data[257:262] == b"ustar", "a tar archive", "unpack it, and give what is in it"),
    Foreign(_is_msgpack_map, "a msgpack file, as flax writes it", convert.OTHER),
    Foreign(lambda data: data[:1] == b"{", "JSON text, but not an index of weights", _PLAIN),
)


def kind_of(content: Content) -> str:
    """Return ``safetensors``, ``index``, one of ``PICKLED`` or of ``CODE``. Raises InputError for any other format."""
    data, path = content.data, content.path
    if not data:
        raise InputError("the file is empty", where=str(path), fix="get it again: its download or its saving failed")
    # safetensors: 8 bytes of header length, then JSON. It may begin with any byte, so it is asked first.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return "safetensors"
    if data.startswith(b"PK\x03\x04"):
        return _kind_of_zip(content)
    if data[:1] == b"\x80" and 2 <= (data[1] if len(data) > 1 else 0) <= 5:
        return "torch.save" if _MAGIC_NUMBER in data[:32] else "pickle"
    if data[:1] == b"{" and b'"weight_map"' in data:
        return "index"
    for foreign in _FOREIGN:
        if foreign.looks_so(data):
            raise InputError(foreign.name, where=str(path), fix=convert.filled(foreign.fix, path))
    if path.suffix == ".safetensors":
        raise damaged(path)
    what = f"neither safetensors nor written by torch.save: begins {data[:16]!r}"
    raise InputError(what, where=str(path), fix=_PLAIN)


def _kind_of_zip(content: Content) -> str:
    require_few_entries(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content.data)) as archive:
            first = min((entry.header_offset for entry in archive.infolist()), default=0)
            full = archive.namelist()
    # A damaged archive reaches any line of its parser, which has errors of its own.
    except Exception as error:
        raise damaged(content.path) from error
    names = {name.partition("/")[2] for name in full}
    if "constants.pkl" in names:
        return "torchscript"
    if "archive_format" in names:
        return "program"
    if "data.pkl" in names:
        return "torch.save" if first == 0 else "torch.save in parts"
    where = str(content.path)
    if {"config.json", "model.weights.h5"} <= set(full):
        fix = convert.filled(convert.KERAS, content.path)
        raise InputError("a model of Keras", where=where, fix=fix)
    if full and all(name.endswith(".npy") for name in full):
        if {"format.npy", "shape.npy", "data.npy"} <= set(full):
            raise InputError("a sparse matrix of SciPy (.npz)", where=where, fix=convert.of_matrix(content.path))
        raise InputError("an archive of NumPy arrays (.npz)", where=where, fix=convert.of_arrays(content.path))
    raise InputError("a zip archive, but not one of torch.save", where=where, fix=_PLAIN)


def damaged(path: Path, detail: str = "") -> InputError:
    """Return the error for a file that its own format's reader cannot read."""
    what = f"the file is truncated or damaged{': ' + detail if detail else ''}"
    return InputError(what, where=str(path), fix="get it again, and compare its size or checksum with the source's")
