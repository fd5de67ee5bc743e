"""Which dtype each weight, activation and norm is deployed in: precision lives in the graph, and is made here.

``to_precision`` turns a float32 graph into one that computes in float16 or bfloat16:

- **Inputs and outputs stay float32**, with one Cast at each border, so code that serves the model needs no change.
- Every value between is 16-bit wherever the operator's own schema, at the model's own opset, allows it.
- **Norms keep float32 statistics.** LayerNormalization, RMSNormalization, and GroupNormalization from opset 21 have
  them built in (``stash_type=1``) and take 16-bit data. Every other norm, a norm spelled out in elementary operators
  among them (mean of squares → root → division), becomes a float32 island: Cast, the operators, Cast. A builder
  fuses such an island into one kernel.
- Arithmetic on integers and masks alone (``(1 - mask) * -3.4e38``) stays float32 up to where it meets an activation,
  and is clipped to the finite range there if one of its constants lies beyond it; so is a mask constant that meets
  activations in an elementwise operator. In 16 bits both would be infinite, and 0 * inf is NaN.
- So does what an index or a size is computed by in floats: 2049 is no float16.
- Any other constant that overflows is refused by the name of its module.
- Operators that ONNX does not know, and what goes through sequences, stay float32.

Fold first, convert then: a BatchNormalization inside a float32 island no longer meets its convolution. A weight that
the fold rounded to float32 and this step rounds to 16 bits lies within 0.5001 units in the last place of the exact one.
"""

from __future__ import annotations

from typing import Literal, get_args

import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.graph import label, operator
from normdeploy.precision.convert import Conversion
from normdeploy.precision.decide import HEAVY
from normdeploy.precision.norms import NORMS, averaging, norm_chains
from normdeploy.precision.widen import widened

__all__ = ["DTYPES", "HEAVY", "NORMS", "Precision", "averaging", "norm_chains", "to_precision", "wrong_precision"]

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def to_precision(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a copy of ``model`` that computes in ``precision``; ``model`` itself is not changed.

    A model that computes in ``precision`` already is copied as it is. One that computes in another 16-bit type is
    widened to float32 first, its inputs and outputs too: that is exact. Raises InputError when a constant overflows,
    when an operator that decides the precision (``HEAVY``) has no 16-bit form at the model's opset, or when a value's
    type is unknown; each lists everything it found, by module name.
    """
    if precision not in get_args(Precision):
        raise InputError(f"there is no precision {precision!r}", fix=f"choose one of {', '.join(DTYPES)}")
    result = model.clone()
    present = {dtype for node in result.graph.all_nodes() if operator(node) in HEAVY for dtype in _floats(node)}
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
