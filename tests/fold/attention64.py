"""Attention in float64: onnx's reference, which takes the root of the scale in float32, the type of the attribute."""

from __future__ import annotations

from typing import Any

from onnx.reference.ops.op_attention import Attention as Reference


class Attention(Reference):  # type: ignore[misc]  # onnx has no annotations
    """The reference with its scale in float64."""

    op_domain = ""

    def _run(self, *inputs: Any, scale: Any = None, **attributes: Any) -> Any:
        return super()._run(*inputs, scale=None if scale is None else float(scale), **attributes)
