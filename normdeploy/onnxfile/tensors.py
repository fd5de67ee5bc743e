"""Weights that stay in their file, and what a tensor must say of itself before anyone believes it."""

from __future__ import annotations

import math
import weakref
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.onnxfile.places import File

_CHUNK = 1 << 24
"""Bytes that are copied at once."""
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
        ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.INT64,
    }
)  # fmt: skip
"""What is stored as it is computed with, number by number."""
_COUNTED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIELDS = {
    ir.DataType.FLOAT: "float_data", ir.DataType.COMPLEX64: "float_data", ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data", ir.DataType.INT64: "int64_data", ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}  # fmt: skip
"""Where numbers stand that are not bytes (ONNX specification, TensorProto); those of other types in int32_data."""
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


class FileTensor(ir.LazyTensor):
    """A tensor whose bytes are read from ``file`` when they are asked for, and let go with the last who uses them.

    Attributes:
        file: in which they lie.
        offset: where they begin.
    """

    def __init__(self, file: File, offset: int, dtype: ir.DataType, shape: tuple[int, ...], **described: Any) -> None:
        super().__init__(self._held, dtype, ir.Shape(shape), **described)
        self.file, self.offset = file, offset
        self._last: weakref.ref[np.ndarray] | None = None

    def _held(self) -> ir.TensorProtocol:
        array = None if self._last is None else self._last()
        if array is None:
            array = self._read()
            array.flags.writeable = False
            self._last = weakref.ref(array)
        return ir.Tensor(array, self.dtype)

    def _read(self) -> np.ndarray:
        shape = tuple(self.shape.numpy())
        if self.dtype in _PLAIN:
            array: np.ndarray = np.empty(shape, self.dtype.numpy())
            self.file.read_into(self.offset, array.reshape(-1).view(np.uint8).data)
            return array
        proto = onnx.TensorProto(data_type=self.dtype.value, dims=shape, raw_data=self.tobytes())
        return np.array(ir.serde.deserialize_tensor(proto).numpy())

    def tobytes(self) -> bytes:
        """Return the bytes as they are stored, little-endian."""
        return self.file.read(self.offset, self.offset + self.nbytes)

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes into ``file``, a few at a time."""
        end = self.offset + self.nbytes
        for start in range(self.offset, end, _CHUNK):
            file.write(self.file.read(start, min(start + _CHUNK, end)))


def require_sound(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor that says of itself what is not so: its type, or how many elements it has.

    Raises:
        InputError: with the tensor's name.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype is ir.DataType.UNDEFINED:
        raise _unsound(tensor, f"there is no type {tensor.data_type} of tensors", where)
    if any(size < 0 for size in tensor.dims):
        raise _unsound(tensor, "it has a negative size", where)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        require_place(tensor, where)
        return
    wanted = math.prod(tensor.dims)
    if dtype is ir.DataType.STRING:
        held, right = len(tensor.string_data), {wanted}
    elif tensor.HasField("raw_data"):
        held, right = len(tensor.raw_data), {nbytes(dtype, tuple(tensor.dims))}
    else:
        held, others = 0, [name for name in _COUNTED if getattr(tensor, name)]
        if others:
            field = _FIELDS.get(dtype, "int32_data")
            if others != [field]:
                raise _unsound(tensor, f"its numbers are in {', '.join(others)}, where its type has none", where)
            held = len(getattr(tensor, field))
        right = {wanted * (2 if dtype in _COMPLEX else 1), math.ceil(wanted * min(dtype.bitwidth, 8) / 8)}
    if held not in right:
        unit = "bytes" if tensor.HasField("raw_data") else "elements"
        raise _unsound(
            tensor, f"its shape {list(tensor.dims)} asks for {min(right):,} {unit}, and it has {held:,}", where
        )


def require_place(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse external data that does not clearly say where it lies.

    Raises:
        InputError: with the tensor's name.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in said or len(said) != len(tensor.external_data):
        raise _unsound(tensor, "its external data has no clear location", where)
    for key in ("offset", "length"):
        number = said.get(key, "0")
        if not (number.isascii() and number.isdigit() and len(number) < _DIGITS):
            raise _unsound(tensor, f"its external data has no such {key}: {number[:_DIGITS]!r}", where)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise _unsound(tensor, "texts cannot be external data", where)


_DIGITS = 20
"""Digits of the largest number of 64 bits."""


def in_file(tensor: ir.ExternalTensor, file: File, where: str) -> FileTensor:
    """Return ``tensor``, whose bytes lie in ``file``.

    Raises:
        InputError: the file is too short, or the length that is given is not that of the tensor.
    """
    shape, offset = tuple(tensor.shape.numpy()), tensor.offset or 0
    size = nbytes(tensor.dtype, shape)
    if tensor.length is not None and tensor.length != size:
        what = f"its shape {list(shape)} asks for {size:,} bytes, and it has {tensor.length:,}"
        raise _unsound(tensor, what, where)
    if offset + size > file.size:
        raise InputError(
            f"the file with the weight {tensor.name!r} is too short",
            where=str(file.path),
            fix="copy the model's external data beside it, whole",
        )
    described = {"name": tensor.name, "doc_string": tensor.doc_string, "metadata_props": tensor.metadata_props or None}
    return FileTensor(file, offset, tensor.dtype, shape, **described)


def nbytes(dtype: ir.DataType, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes: types of less than a byte are packed (ONNX specification, TensorProto)."""
    return math.ceil(math.prod(shape) * dtype.bitwidth / 8)


def _unsound(tensor: onnx.TensorProto | ir.ExternalTensor, what: str, where: str) -> InputError:
    name = tensor.name or "one without a name"
    return InputError(f"the tensor {name!r} cannot be read: {what}", where=where, fix="export the model again")
