"""Weights and activations that are integers: what makes floats of them, and what rounds floats to them."""

from __future__ import annotations

from normdeploy.fold.float64 import execute
from normdeploy.fold.operators.basics import DEQUANTIZE
from normdeploy.fold.operators.rows import Row, Shift, all_but

ROWS = (
    Row(
        (DEQUANTIZE,), why=("NF122", "what it reads was rounded to integers, by the scale that it has"),
        shift=Shift.STOPPED, evaluate=execute.dequantize_linear, parameters={0: all_but(), 1: all_but()},
    ),
    Row(("QuantizeLinear", "DynamicQuantizeLinear"), why=("NF122", "it rounds to integers"), shift=Shift.STOPPED),
    Row(
        ("com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat", "com.microsoft::MatMulNBits"),
        why=("NF122", "it multiplies integers, whose scales are its own"), heavy=True, shift=Shift.STOPPED,
    ),
)  # fmt: skip
