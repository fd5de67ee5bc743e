"""Draws LSTM, GRU and RNN: directions, layouts, lengths, states."""

from __future__ import annotations

from typing import Any

import numpy as np
from graphs import Graph, Value, each
from weighted import matrix

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(g: Graph) -> Value:
    """A network over a value of rank 3; its steps come first, or its samples."""
    d, op = g.d, g.d.one(list(GATES))
    v = g.pick(lambda v: v.rank == 3 and v.fixed(2))
    first = int(g.opset >= 14 and d.odds(20))
    batch = v.fixed(first ^ 1)
    direction = d.one(["forward", "reverse", "bidirectional"])
    directions, hidden = 1 + (direction == "bidirectional"), d.int(2, 3)
    rows = GATES[op] * hidden
    inputs: list[Any] = [v, matrix(g, (directions, rows, v.shapes[0][2]), v.dtype)]
    inputs += [g.weight((directions, rows, hidden), v.dtype, 0.3)]
    inputs += [g.weight((directions, 2 * rows), v.dtype) if d.odds(60) else None]
    if batch is not None and d.odds(30):
        steps = min(s[first] for s in v.shapes)
        inputs += [g.store(np.asarray(g.rng().integers(1, steps + 1, batch), np.int32), "l") if d.odds(50) else None]
        state = (batch, directions, hidden) if first else (directions, batch, hidden)
        inputs += [g.weight(state, v.dtype)]
    extra: dict[str, Any] = {"layout": 1} if first else {}
    if op == "GRU" and d.odds(50):
        extra["linear_before_reset"] = 1
    if d.odds(10):
        extra["clip"] = 0.75
    told = direction if direction != "forward" or d.odds(20) else None

    def shape(s: tuple[int, ...]) -> tuple[int, ...]:
        return (s[0], s[1], directions, hidden) if first else (s[0], directions, s[1], hidden)

    return g.emit(op, inputs, each(shape, v), hidden_size=hidden, direction=told, **extra)
