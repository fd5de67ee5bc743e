"""A whole model in another precision, and what of one computes in another than it should."""

from __future__ import annotations

from typing import get_args

import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.graph import label, operator
from normdeploy.precision.convert import Conversion
from normdeploy.precision.kinds import HEAVY, Precision
from normdeploy.precision.widen import widened

DTYPES: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def to_precision(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a copy of ``model`` that computes in ``precision``; ``model`` itself is not changed.

    A model that computes in ``precision`` already is copied as it is; without an operator that decides it, one in which
    any but a Cast reads no other 16-bit type. One that computes in another 16-bit type is
    widened to float32 first, its inputs and outputs too: that is exact. Raises InputError when a constant overflows,
    when an operator that decides the precision (``HEAVY``) has no 16-bit form at the model's opset, or when a value's
    type is unknown; each lists everything it found, by module name.
    """
    if precision not in get_args(Precision):
        raise InputError(f"there is no precision {precision!r}", fix=f"choose one of {', '.join(DTYPES)}")
    result = model.clone()
    nodes = [node for node in result.graph.all_nodes() if operator(node) != "Cast"]
    present = {dtype for node in nodes if operator(node) in HEAVY for dtype in _floats(node)}
    if not present:
        present = {dtype for node in nodes for dtype in _floats(node)} - {ir.DataType.FLOAT}
    if present == {DTYPES[precision]} or (precision == "fp32" and not present):
        return result
    if present - {ir.DataType.FLOAT}:
        result = widened(result)
    if precision != "fp32":
        Conversion(result, DTYPES[precision]).run()
    return result


def wrong_precision(model: ir.Model, precision: Precision) -> tuple[str, ...]:
    """Return the operators that decide a model's precision and read another floating-point type, by module name."""
    return tuple(
        f"{label(node)} ({operator(node)})"
        for node in model.graph.all_nodes()
        if operator(node) in HEAVY and not _floats(node) <= {DTYPES[precision]}
    )


def _floats(node: ir.Node) -> set[ir.DataType]:
    """The floating-point types that ``node`` reads."""
    types = {value.dtype for value in node.inputs if value is not None}
    return {dtype for dtype in types if dtype is not None and dtype.is_floating_point()}
