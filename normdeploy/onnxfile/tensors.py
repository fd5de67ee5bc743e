"""Weights that stay in their file."""

from __future__ import annotations

import weakref
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.onnxfile.claims import nbytes, require_held
from normdeploy.onnxfile.places import File

_CHUNK = 1 << 20
"""Bytes that are copied at once, through one buffer that stays in a cache."""
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
        ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.INT64,
    }
)  # fmt: skip
"""What is stored as it is computed with, number by number."""


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
        buffer = memoryview(bytearray(min(_CHUNK, self.nbytes)))
        for start in range(self.offset, end, _CHUNK):
            part = buffer[: min(_CHUNK, end - start)]
            self.file.read_into(start, part)
            file.write(part)


def in_file(tensor: ir.ExternalTensor, file: File, where: str) -> FileTensor:
    """Return ``tensor``, whose bytes lie in ``file``.

    Raises:
        InputError: the file is too short, or the length that is given is not that of the tensor.
    """
    shape, offset = tuple(tensor.shape.numpy()), tensor.offset or 0
    size = nbytes(tensor.dtype.value, shape)
    require_held(tensor.name or "", shape, size, offset, tensor.length, file, where)
    described = {"name": tensor.name, "doc_string": tensor.doc_string, "metadata_props": tensor.metadata_props or None}
    return FileTensor(file, offset, tensor.dtype, shape, **described)
