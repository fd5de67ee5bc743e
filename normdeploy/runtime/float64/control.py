"""If, Loop and Scan: graphs inside a node, run in the scope around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normdeploy.runtime.float64.step import Array, Step, Value


def _if(step: Step, condition: Array) -> tuple[Value, ...]:
    chosen = step.attributes["then_branch" if bool(np.asarray(condition).reshape(())) else "else_branch"]
    return tuple(step.body(chosen, []))


def _loop(step: Step, trips: Array | None = None, condition: Array | None = None, *carried: Value) -> tuple[Value, ...]:
    """Run the body until it says stop; what it yields beside the carried values is stacked."""
    body = step.attributes["body"]
    most = None if trips is None else int(np.asarray(trips).reshape(()))
    go, values, scanned = condition is None or bool(np.asarray(condition).reshape(())), list(carried), []
    count = 0
    while go and (most is None or count < most):
        again, *results = step.body(body, [np.asarray(count, np.int64), np.asarray(True), *values])
        values, go = results[: len(carried)], bool(np.asarray(again).reshape(()))
        scanned.append(results[len(carried) :])
        count += 1
    columns = len(body.outputs) - 1 - len(carried)
    return (*values, *(_stacked([row[index] for row in scanned], 0) for index in range(columns)))


def _scan(step: Step, *inputs: Value) -> tuple[Value, ...]:
    """Run the body along an axis of each scanned input (Scan-9; older versions batch)."""
    if step.opset < 9:
        raise NotImplementedError("Scan of opset 8")
    body, count = step.attributes["body"], step.attributes["num_scan_inputs"]
    states, given = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    outputs = len(body.outputs) - len(states)
    axes_in = step.attribute("scan_input_axes", None) or [0] * count
    axes_out = step.attribute("scan_output_axes", None) or [0] * outputs
    back_in = step.attribute("scan_input_directions", None) or [0] * count
    back_out = step.attribute("scan_output_directions", None) or [0] * outputs
    rows = [
        np.flip(np.moveaxis(x, axis, 0), 0) if back else np.moveaxis(x, axis, 0)
        for x, axis, back in zip(given, axes_in, back_in, strict=True)
    ]
    found: list[list[Array]] = []
    for index in range(len(rows[0])):
        results = step.body(body, [*states, *(row[index] for row in rows)])
        states, yields = results[: len(states)], results[len(states) :]
        found.append(yields)
    columns = [[row[index] for row in found] for index in range(outputs)]
    return (
        *states,
        *(
            _stacked(column[::-1] if back else column, axis)
            for column, axis, back in zip(columns, axes_out, back_out, strict=True)
        ),
    )


def _stacked(rows: list[Any], axis: int) -> Array:
    return np.stack(rows, axis) if rows else np.zeros((0,))


CONTROL: dict[str, Callable[..., Any]] = {"If": _if, "Loop": _loop, "Scan": _scan}
