"""LSTM, GRU and RNN in float64, step by step, from the formulas of the ONNX specification (opset 22).

onnx's reference knows one direction only, no lengths, no clip and no other activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Activation = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(x, 0.0),
}


class _Recurrent(OpRun):  # type: ignore[misc]  # onnx has no annotations
    """What the three have in common: directions, layout, lengths."""

    op_domain = ""
    gates = 0
    defaults: tuple[str, ...] = ()

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        x, w, r, b, lengths, h0, c0, p = (*inputs, *[None] * (8 - len(inputs)))
        if attributes.get("layout"):
            x, h0, c0 = (None if a is None else np.swapaxes(a, 0, 1) for a in (x, h0, c0))
        steps, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
        lengths = np.full(batch, steps) if lengths is None else lengths
        names = [name.lower() for name in attributes.get("activations") or self.defaults * len(w)]
        direction, count = attributes.get("direction") or "forward", len(self.defaults)
        y = np.zeros((steps, len(w), batch, hidden))
        last = [np.zeros((len(w), batch, hidden)) for _ in range(2)]
        for d in range(len(w)):
            functions = [_ACTIVATIONS[name] for name in names[d * count : (d + 1) * count]]
            own, other = np.zeros((2, len(w[d]))) if b is None else np.split(b[d], 2)
            for n in range(batch):
                state = [np.zeros(hidden) if s is None else s[d, n] for s in (h0, c0)]
                order = range(int(lengths[n]))
                for t in reversed(order) if d == 1 or direction == "reverse" else order:
                    projected = x[t, n] @ w[d].T + own
                    state = self._step(
                        projected, r[d], other, state, None if p is None else p[d], functions, attributes
                    )
                    y[t, d, n] = state[0]
                last[0][d, n], last[1][d, n] = state
        if attributes.get("layout"):
            y, last = np.transpose(y, (2, 0, 1, 3)), [np.swapaxes(a, 0, 1) for a in last]
        return (y, *last)[: 3 if self.gates == 4 else 2]

    def _step(self, *_: Any) -> list[np.ndarray]:
        raise NotImplementedError


def _clip(x: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    bound = attributes.get("clip")
    return x if bound is None else np.clip(x, -bound, bound)


class RNN(_Recurrent):
    """Ht = f(Xt Wᵀ + Ht-1 Rᵀ + Wb + Rb)."""

    gates, defaults = 1, ("tanh",)

    def _step(self, projected: Any, r: Any, rb: Any, state: Any, p: Any, functions: Any, attributes: Any) -> Any:
        return [functions[0](_clip(projected + state[0] @ r.T + rb, attributes)), state[1]]


class GRU(_Recurrent):
    """Gates z, r and h; the reset before or behind the product with R."""

    gates, defaults = 3, ("sigmoid", "tanh")

    def _step(self, projected: Any, r: Any, rb: Any, state: Any, p: Any, functions: Any, attributes: Any) -> Any:
        f, g = functions
        (xz, xr, xh), (rz, rr, rh), (bz, br, bh) = (np.split(a, 3) for a in (projected, r, rb))
        h = state[0]
        z = f(_clip(xz + h @ rz.T + bz, attributes))
        reset = f(_clip(xr + h @ rr.T + br, attributes))
        inner = reset * (h @ rh.T + bh) if attributes.get("linear_before_reset") else (reset * h) @ rh.T + bh
        return [(1.0 - z) * g(_clip(xh + inner, attributes)) + z * h, state[1]]


class LSTM(_Recurrent):
    """Gates i, o, f and c, peepholes P over i, o and f, the input gate coupled to the forget gate if asked."""

    gates, defaults = 4, ("sigmoid", "tanh", "tanh")

    def _step(self, projected: Any, r: Any, rb: Any, state: Any, p: Any, functions: Any, attributes: Any) -> Any:
        f, g, h = functions
        xi, xo, xf, xc = np.split(projected + state[0] @ r.T + rb, 4)
        pi, po, pf = np.zeros((3, 1)) if p is None else np.split(p, 3)
        i = f(_clip(xi + pi * state[1], attributes))
        forget = 1.0 - i if attributes.get("input_forget") else f(_clip(xf + pf * state[1], attributes))
        cell = forget * state[1] + i * g(_clip(xc, attributes))
        return [f(_clip(xo + po * cell, attributes)) * h(cell), cell]


RECURRENT = [LSTM, GRU, RNN]
