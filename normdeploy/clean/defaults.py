"""Attributes that are left at a default which ONNX's shape inference does not know, spelled out.

Of STFT the standard says that ``onesided`` is 1, and inference takes it for 0: the shape that it finds has twice the
frequencies, what is computed of that shape is wrong, and a file that tells it does not load.
"""

from __future__ import annotations

import onnx_ir as ir

from normdeploy.clean.scope import Scope

_MISTAKEN = {"STFT": {"onesided": 1}}
"""By operator: attributes with the standard's default."""


def spell_defaults(scope: Scope) -> None:
    """Write out, in place, the defaults that shape inference mistakes."""
    for node in scope.graph:
        for name, default in _MISTAKEN.get(scope.operator(node), {}).items():
            if name not in node.attributes:
                node.attributes[name] = ir.AttrInt64(name, default)
