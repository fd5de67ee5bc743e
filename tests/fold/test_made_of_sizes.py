"""Arithmetic of positions stays as it is computed: what is rounded to a cell behind it must be the same cell."""

from __future__ import annotations

import numpy as np
import onnxruntime
from harness import folded, op_types, parsed

READ = """
  size = Shape (x)
  t = Squeeze (size)
  wide = Cast <to = 1> (t)
  place = Range (zero, wide, one)
  part = Div (place, by)
  whole = Mul (part, by)
  up = Ceil (whole)
  cell = Cast <to = 7> (up)
  last = Sub (t, single)
  within = Min (cell, last)
  y = Gather (x, within)
"""
MOVED = """
  part = Div (x, by)
  whole = Mul (part, by)
  y = Relu (whole)
"""


def network(body: str) -> object:
    return parsed(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[T] x) => (float[U] y)
        <float zero = {{0.0}}, float one = {{1.0}}, float by = {{49.0}}, int64 single = {{1}}> {{ {body} }}""")


def test_positions_are_read_at_the_same_cells_as_before() -> None:
    given = network(READ)
    new, ledger = folded(given)
    x = np.arange(60, dtype=np.float32)
    before, after = (
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0] for proto in (given, new)
    )
    assert (before != x).any(), "no position lies at an edge, and this shows nothing"
    np.testing.assert_array_equal(after, before)
    assert not ledger.entries


def test_the_same_arithmetic_of_an_input_is_one_map() -> None:
    new, _ = folded(network(MOVED))
    assert op_types(new)["Div"] + op_types(new)["Mul"] <= 1
