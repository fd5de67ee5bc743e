"""The one table of operators: every row, by the full name of its operator.

A new operator is one row, in the file of its family, and its tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normdeploy.fold.affine import Array
from normdeploy.fold.float64 import execute
from normdeploy.fold.operators import (
    attention,
    einsum,
    linear,
    maps,
    movers,
    multi_head,
    norms,
    pieces,
    poolers,
    quantized,
    recurrent,
    sampling,
)
from normdeploy.fold.operators.rows import OPAQUE, TABLE, Row, row_of, states

__all__ = ["NORMS", "OPAQUE", "TABLE", "Row", "row_of", "run", "states"]

FAMILIES = (
    attention, einsum, linear, maps, movers, multi_head, norms, pieces, poolers, quantized, recurrent, sampling,
)  # fmt: skip

TABLE.update({name: row for family in FAMILIES for row in family.ROWS for name in row.names})

NORMS = frozenset(name for name, row in TABLE.items() if row.norm)
"""Operators that the ledger calls norms."""


def run(
    name: str, attributes: Mapping[str, Any], inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1
) -> list[Array]:
    """Return the outputs of the operator called ``name`` on ``inputs``; float ones are in float64."""
    row = TABLE.get(name)
    if row is None or row.evaluate is None:
        return execute.reference(name, attributes, inputs, opset, outputs)
    results = row.evaluate(attributes, *inputs)
    return list(results) if isinstance(results, tuple | list) else [np.asarray(results)]
