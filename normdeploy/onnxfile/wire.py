"""The wire format of protobuf ("Encoding"), as far as a model's file asks for it: fields without what they hold.

A message is its fields in any order, and a field of bytes is its key, its length and the bytes. So a file can be
looked through, and measured, without building anything of what it describes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

VARINT, BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire types of a fixed size."""
_DIGITS = 10
"""The most bytes of a varint: 64 bits, 7 a byte."""

Field = tuple[int, int, int, int]
"""Key (number and wire type), where it begins, where what it holds begins, where it ends."""


class Readable(Protocol):
    """Bytes by their place; IndexError behind the last."""

    def __getitem__(self, at: int, /) -> int: ...


def fields(data: Readable, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in ``data[start:end]``; ValueError where that is none."""
    # Most keys and lengths are of one byte, and a call for each is half of the time.
    while start < end:
        key, body = data[start], start + 1
        if key >= 0x80:
            key, body = number(data, start)
        wire = key & 7
        if wire == BYTES:
            if body < end and (length := data[body]) < 0x80:
                body += 1
            else:
                length, body = number(data, body)
            last = body + length
        elif wire == VARINT:
            last = number(data, body)[1]
        elif wire in _FIXED:
            last = body + _FIXED[wire]
        else:
            raise ValueError(f"there is no wire type {wire}")
        if last > end:
            raise ValueError("a field is longer than what it is in")
        yield key, start, body, last
        start = last


def number(data: Readable, at: int) -> tuple[int, int]:
    """Return a varint, and where it ends; ValueError where it has more digits than 64 bits need, or no end."""
    found = shift = 0
    try:
        for place in range(at, at + _DIGITS):
            digit = data[place]
            found |= (digit & 0x7F) << shift
            if digit < 0x80:
                return found, place + 1
            shift += 7
    except IndexError:
        raise ValueError("the file ends within a number") from None
    raise ValueError("a number has no end")


def head(field: int, length: int) -> bytes:
    """Return what stands before the bytes of field number ``field``."""
    return varint(field << 3 | BYTES) + varint(length)


def varint(value: int) -> bytes:
    """Return a number without a sign."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
