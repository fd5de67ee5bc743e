"""What a checkpoint may ask of its readers: no small file unpacks to a large one, nothing is nested without end.

Hashing a tuple in tuples in tuples ends the process where it is deep enough, and so would other readers' recursion.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from normdeploy.checkpoint import convert
from normdeploy.checkpoint.standins import Array
from normdeploy.errors import InputError
from normdeploy.trust import Content

_UNPACKED = 1 << 28
"""Bytes that an archive may hold more than it has; torch.save does not compress."""
_ENTRIES, _OPERATIONS, _DEPTH = 200_000, 2_000_000, 200
"""The most entries of an archive, operations of a pickle, and containers in each other."""
_HEADER, _INDEX = 1 << 24, 1 << 24
"""The most bytes of the JSON in a safetensors file, and of an index of shards."""
_STREAMS = 4
"""Pickles in torch.save's older stream: magic number, protocol, system, object; raw storages follow."""
_ADDS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_ADDS_ALL = frozenset({"APPENDS", "SETITEMS", "ADDITEMS"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


def require_small(content: Content, kind: str) -> None:
    """Raise InputError where reading the file, which looks like ``kind``, would take far more than it has."""
    data = content.data
    if kind == "safetensors" and int.from_bytes(data[:8], "little") > _HEADER:
        raise _too_large(content, f"its header has more than {_HEADER >> 20} MiB")
    if kind == "index" and len(data) > _INDEX:
        raise _too_large(content, f"an index of shards has more than {_INDEX >> 20} MiB")
    if kind == "torch.save" and data.startswith(b"PK"):
        try:
            _require_small_archive(content)
        except InputError:
            raise
        except Exception:  # damage reaches any line of the parser; torch tells of it
            return
    elif kind in ("torch.save", "pickle"):
        _require_flat(content, data)


def require_few_entries(content: Content) -> None:
    """Raise InputError where an archive has more entries than anyone would list."""
    if content.data.count(b"PK\x01\x02") > _ENTRIES:
        raise _too_large(content, f"it has more than {_ENTRIES:,} entries")


def _require_small_archive(content: Content) -> None:
    with zipfile.ZipFile(io.BytesIO(content.data)) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > len(content.data) + _UNPACKED:
            raise _too_large(content, f"it unpacks to {size:,} bytes")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                if not entry.CRC:
                    del entry.CRC  # it was saved without checksums
                _require_flat(content, archive.read(entry))


def _require_flat(content: Content, data: bytes) -> None:
    """Raise where a pickle has too many operations, or builds what is too deep; where it is damaged, torch tells."""
    stream, count = io.BytesIO(data), 0
    try:
        for _ in range(_STREAMS):
            stack = _Stack()
            for operation, argument, _position in pickletools.genops(stream):
                count += 1
                deepest = stack.run(operation, argument)
                if count > _OPERATIONS:
                    raise _too_large(content, f"its pickle has more than {_OPERATIONS:,} operations")
                if deepest > _DEPTH:
                    what = f"what it holds is nested more than {_DEPTH} deep"
                    raise InputError(what, where=str(content.path), fix="save the state dict itself")
    except (ValueError, IndexError, KeyError, TypeError):
        return  # the end, or damage


class _Stack:
    """A pickle's stack with nothing on it but how deep each thing is."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}

    def run(self, operation: pickletools.OpcodeInfo, argument: Any) -> int:
        """Carry out one operation; how deep its result is."""
        name, items = operation.name, self.items
        if name == "MARK":
            self.marks.append(len(items))
            return 0
        if name in _PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = items[-1]
            return 0
        if name in _GETS:
            items.append(self.memo[int(argument)])
        elif name == "DUP":
            items.append(items[-1])
        elif name in _ADDS or name in _ADDS_ALL:
            added = self._popped(_ADDS[name]) if name in _ADDS else self._since_mark()
            items[-1] = max(items[-1], 1 + max(added, default=0))
        else:
            self._others(operation)
        return items[-1] if items else 0

    def _others(self, operation: pickletools.OpcodeInfo) -> None:
        """Refuse what takes some things, and makes one that holds them."""
        kinds = operation.stack_before
        marked = pickletools.markobject in kinds
        taken = self._since_mark() if marked else self._popped(len(kinds))
        if marked and kinds[0] is not pickletools.markobject:  # something below the mark
            taken += self._popped(kinds.index(pickletools.markobject))
        self.items += [1 + max(taken, default=0)] * len(operation.stack_after)

    def _popped(self, count: int) -> list[int]:
        taken = self.items[len(self.items) - count :] if count else []
        del self.items[len(self.items) - count :]
        return taken

    def _since_mark(self) -> list[int]:
        return self._popped(len(self.items) - self.marks.pop())


def plain(contents: Any, content: Content) -> Any:
    """Return ``contents``, loaded from a file, with every mapping a plain one and every name a text.

    Raises InputError where a tensor is none of numbers in rows: nested, sparse, or of another device.
    """
    copies: dict[int, Any] = {}

    def copied(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            return _dense(value, name, content)
        if isinstance(value, Array):
            return _of_array(value, content)
        if not isinstance(value, dict):
            return value
        if id(value) not in copies:
            copies[id(value)] = copy = OrderedDict[Any, Any]()
            for key, each in dict.items(value):
                copy[_text(key)] = copied(each, f"{name}.{_text(key)}" if name else str(_text(key)))
            versions = getattr(value, "__dict__", {}).get("_metadata")
            if isinstance(versions, Mapping):
                copy._metadata = versions  # type: ignore[attr-defined]  # where torch keeps a state dict's versions
        return copies[id(value)]

    return copied(contents, "")


def _text(key: Any) -> Any:
    """A name without halves of characters, which no file of text can hold."""
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else key


def _dense(tensor: torch.Tensor, name: str, content: Content) -> torch.Tensor:
    fix = convert.of_layouts(content.path)
    if tensor.is_meta:
        kind, fix = "on the meta device, without values", "save the weights themselves, of a module that has them"
    elif tensor.is_quantized:
        kind, fix = "quantized", f"give the checkpoint that it was quantized from, or {fix}"
    elif tensor.is_nested:
        kind, fix = "nested", "save its parts as dense tensors (.unbind())"
    elif tensor.layout != torch.strided:
        kind = str(tensor.layout)
    else:
        return tensor
    raise InputError(f"a tensor is not dense: {name} is {kind}", where=str(content.path), fix=fix)


def _of_array(array: Array, content: Content) -> Any:
    try:
        made = array.tensor()
    except (ValueError, TypeError) as error:
        what = f"the file is truncated or damaged: an array of NumPy in it cannot be read: {error}"
        raise InputError(what, where=str(content.path), fix="save the state dict again") from error
    return array if made is None else made


def _too_large(content: Content, what: str) -> InputError:
    fix = "save the state dict again, by torch.save or safetensors"
    return InputError(f"the file cannot be what it should be: {what}", where=str(content.path), fix=fix)
