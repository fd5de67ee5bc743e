"""NumPy's archives from anyone: what they say of their arrays is known before one of them is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

_ENTRIES = 10_000
"""The most arrays of an archive."""


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_arrays(file: BinaryIO, accept: Callable[[Mapping[str, Header]], None]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz``, by name, if ``accept`` does not raise at their headers.

    Nothing is unpickled. Raises ValueError, or what zipfile and numpy raise, where it is none or an array has another
    size than it says.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(entries) > _ENTRIES or len(set(names)) != len(names):
            raise ValueError("it has too many arrays, or two of one name")
        accept({name: _header(archive, entry) for name, entry in zip(names, entries, strict=True)})
        return {name: _read(archive, entry) for name, entry in zip(names, entries, strict=True)}


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Header:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{entry.filename} is of the unknown version {version}")
        shape, _, dtype = read[version](file)
        held = entry.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds objects of Python")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{entry.filename} says that it has the shape {shape}, and holds {held:,} bytes")
    return Header(shape, dtype)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(entry) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
