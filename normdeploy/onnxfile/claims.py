"""What a tensor in a file says of itself, before anyone believes it: its type, its size, and where its bytes lie."""

from __future__ import annotations

import math
from functools import cache

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.places import File

_Tensor = onnx.TensorProto
_COUNTED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIELDS: dict[int, str] = {
    _Tensor.FLOAT: "float_data", _Tensor.COMPLEX64: "float_data", _Tensor.DOUBLE: "double_data",
    _Tensor.COMPLEX128: "double_data", _Tensor.INT64: "int64_data", _Tensor.UINT32: "uint64_data",
    _Tensor.UINT64: "uint64_data",
}  # fmt: skip
"""Where numbers stand that are not bytes (ONNX specification, TensorProto); those of other types in int32_data."""
_COMPLEX = (_Tensor.COMPLEX64, _Tensor.COMPLEX128)
_PACKED = {"FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of types of less than a byte, whose elements are packed."""
_DIGITS = 20
"""Digits of the largest number of 64 bits."""


def require_sound(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor that says of itself what is not so: its type, or how many elements it has.

    Raises:
        InputError: with the tensor's name.
    """
    dtype = tensor.data_type
    if dtype not in _Tensor.DataType.values() or dtype == _Tensor.UNDEFINED:
        raise unsound(tensor.name, f"there is no type {tensor.data_type} of tensors", where)
    if any(size < 0 for size in tensor.dims):
        raise unsound(tensor.name, "it has a negative size", where)
    if tensor.data_location == _Tensor.EXTERNAL:
        require_place(tensor, where)
        return
    wanted = math.prod(tensor.dims)
    if dtype == _Tensor.STRING:
        held, right = len(tensor.string_data), {wanted}
    elif tensor.HasField("raw_data"):
        held, right = len(tensor.raw_data), {nbytes(dtype, tuple(tensor.dims))}
    else:
        held, others = 0, [name for name in _COUNTED if getattr(tensor, name)]
        if others:
            field = _FIELDS.get(dtype, "int32_data")
            if others != [field]:
                raise unsound(tensor.name, f"its numbers are in {', '.join(others)}, where its type has none", where)
            held = len(getattr(tensor, field))
        right = {wanted * (2 if dtype in _COMPLEX else 1), math.ceil(wanted * min(bitwidth(dtype), 8) / 8)}
    if held not in right:
        unit = "bytes" if tensor.HasField("raw_data") else "elements"
        what = f"its shape {list(tensor.dims)} asks for {min(right):,} {unit}, and it has {held:,}"
        raise unsound(tensor.name, what, where)


def require_place(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse external data that does not clearly say where it lies.

    Raises:
        InputError: with the tensor's name.
    """
    said = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in said or len(said) != len(tensor.external_data):
        raise unsound(tensor.name, "its external data has no clear location", where)
    for key in ("offset", "length"):
        number = said.get(key, "0")
        if not (number.isascii() and number.isdigit() and len(number) < _DIGITS):
            raise unsound(tensor.name, f"its external data has no such {key}: {number[:_DIGITS]!r}", where)
    if tensor.data_type == _Tensor.STRING:
        raise unsound(tensor.name, "texts cannot be external data", where)


def require_inside(tensor: onnx.TensorProto, file: File, where: str) -> None:
    """Refuse external data, with a clear place, that does not lie in ``file`` whole.

    Raises:
        InputError: the file is too short, or the length that is given is not that of the tensor.
    """
    said = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key in ("offset", "length")}
    size = nbytes(tensor.data_type, tuple(tensor.dims))
    require_held(tensor.name, tuple(tensor.dims), size, said.get("offset", 0), said.get("length"), file, where)


def require_held(
    name: str, shape: tuple[int, ...], size: int, offset: int, length: int | None, file: File, where: str
) -> None:
    """Refuse a tensor of ``size`` bytes that ``file`` should hold from ``offset`` on, ``length`` of them, and does not.

    Raises InputError.
    """
    if length is not None and length != size:
        raise unsound(name, f"its shape {list(shape)} asks for {size:,} bytes, and it has {length:,}", where)
    if offset + size > file.size:
        raise InputError(
            f"the file with the weight {name!r} is too short",
            where=str(file.path),
            fix="copy the model's external data beside it, whole",
        )


def nbytes(dtype: int, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes: types of less than a byte are packed (ONNX specification, TensorProto)."""
    return math.ceil(math.prod(shape) * bitwidth(dtype) / 8)


@cache
def bitwidth(dtype: int) -> int:
    """Return the bits of an element of ONNX's type number ``dtype``, which is none of texts."""
    packed = _PACKED.get(_Tensor.DataType.Name(dtype))
    return packed or int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize * 8)


def unsound(name: str, what: str, where: str) -> InputError:
    """Return the error that says what is wrong with the tensor ``name``."""
    return InputError(
        f"the tensor {name or 'one without a name'!r} cannot be read: {what}", where=where, fix="export the model again"
    )
