"""What was made last of tensors, kept for those who ask again: a search tries a weight for one plan after the other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

ROOM = 64 * 2**20
"""Bytes that are kept."""


@dataclass
class Recent:
    """What was made of tensors, the last asked for behind; each may come to hold its tensor in float64."""

    _kept: OrderedDict[int, tuple[ir.TensorProtocol, Any]] = field(default_factory=OrderedDict)
    _nbytes: int = 0

    def of(self, tensor: ir.TensorProtocol, make: Callable[[ir.TensorProtocol], Any]) -> Any:
        """Return what ``make`` makes of ``tensor``, which is kept as long as there is room."""
        key = id(tensor)  # it is kept too, so no other one can have it
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        made = make(tensor)
        if 8 * tensor.size <= ROOM:
            self._kept[key] = tensor, made
            self._nbytes += 8 * tensor.size
        while self._nbytes > ROOM:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._nbytes -= 8 * oldest.size
        return made
