"""The words for how far LayerNorms go, and for what will run the model: light, for those who only read them."""

from __future__ import annotations

from typing import Literal

Level = Literal["off", "recognise", "affine", "centre"]
"""How far norms are reduced; each level includes the ones before."""
Target = Literal["onnx", "onnxruntime", "tensorrt"]
"""Who runs the model: ``onnx`` is any runtime that knows the standard's own operators."""
