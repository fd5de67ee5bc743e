"""Weights that are stored as integers: what makes floats of them."""

from __future__ import annotations

from normdeploy.fold.float64 import execute
from normdeploy.fold.operators.basics import DEQUANTIZE
from normdeploy.fold.operators.rows import Row, all_but

ROWS = (Row((DEQUANTIZE,), evaluate=execute.dequantize_linear, parameters={1: all_but()}),)
