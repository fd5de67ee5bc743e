"""The operators whose arithmetic dominates, in float64 by PyTorch: products, convolutions, recurrent layers.

Depthwise convolutions are sums of shifted slices: PyTorch's float64 kernel takes one group after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # the name that PyTorch's own documentation gives it

from normdeploy.runtime.float64.elementwise import sigmoid, softplus
from normdeploy.runtime.float64.step import Array, Step


def tensor(array: Array) -> torch.Tensor:
    """Return ``array`` as a tensor on the same memory where that is contiguous and writable."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def matmul(step: Step, a: Array, b: Array) -> Array:
    """Return the matrix product; integers by NumPy."""
    del step
    if a.dtype.kind != "f":
        return np.asarray(np.matmul(a, b))
    if 0 in a.shape or 0 in b.shape or a.ndim == 0 or b.ndim == 0:
        return np.asarray(np.matmul(a, b))
    return np.asarray(torch.matmul(tensor(a), tensor(b)).numpy())


def gemm(step: Step, a: Array, b: Array, c: Array | None = None) -> Array:
    """Return alpha * A' * B' + beta * C."""
    a = a.T if step.attribute("transA", 0) else a
    b = b.T if step.attribute("transB", 0) else b
    y = matmul(step, a, b)
    alpha, beta = step.attribute("alpha", 1.0), step.attribute("beta", 1.0)
    y = y if alpha == 1 else y * np.asarray(alpha, y.dtype)
    return y if c is None else np.asarray(y + (c if beta == 1 else c * np.asarray(beta, y.dtype)))


def einsum(step: Step, *operands: Array) -> Array:
    """Return the Einstein sum."""
    equation = step.attributes["equation"]
    if any(operand.dtype.kind != "f" or 0 in operand.shape or not operand.ndim for operand in operands):
        return np.asarray(np.einsum(equation.replace(" ", ""), *operands))
    return np.asarray(torch.einsum(equation, *map(tensor, operands)).numpy())


def conv(step: Step, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return the correlation of ``x`` (batch, channels, …) with ``weight`` (out, in / group, …)."""
    spatial, group = x.ndim - 2, step.attribute("group", 1)
    strides, dilations = _each(step, "strides", spatial), _each(step, "dilations", spatial)
    pads = explicit_pads(step, x.shape[2:], weight.shape[2:], strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *pads]) if np.any(pads) else x
    if group == x.shape[1] == weight.shape[0] and group > 1 and weight.shape[1] == 1:
        y = _depthwise(padded, weight, strides, dilations)
    else:
        run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        result = run(tensor(padded), tensor(weight), None, tuple(strides), 0, tuple(dilations), group)
        y = np.asarray(result.numpy())
    return y if bias is None else np.asarray(y + bias.reshape(-1, *[1] * spatial))


def _depthwise(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Return one kernel a channel, tap by tap."""
    kernel = weight.shape[2:]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)]
    y = np.zeros((*x.shape[:2], *sizes))
    for tap in itertools.product(*(range(k) for k in kernel)):
        cells = tuple(slice(d * t, d * t + s * n, s) for d, t, s, n in zip(dilations, tap, strides, sizes, strict=True))
        place: tuple[Any, ...] = (slice(None), 0, *tap)
        scale = weight[place].reshape(-1, *[1] * len(kernel))
        y += x[(slice(None), slice(None), *cells)] * scale
    return y


def explicit_pads(
    step: Step, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the cells added before and after each spatial axis, ``auto_pad`` resolved."""
    mode, spatial = step.attribute("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        pads = step.attribute("pads", None) or [0] * (2 * spatial)
        return list(zip(pads[:spatial], pads[spatial:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * spatial
    totals = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return [(t // 2, t - t // 2) if mode == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]


def _each(step: Step, name: str, spatial: int) -> Sequence[int]:
    return step.attribute(name, None) or [1] * spatial


def grid_sample(step: Step, x: Array, grid: Array) -> Array:
    """Return ``x`` sampled at ``grid``."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(step.attribute("mode", "linear"), step.attribute("mode", ""))
    y = F.grid_sample(
        tensor(x), tensor(grid), mode or "bilinear", step.attribute("padding_mode", "zeros"),
        bool(step.attribute("align_corners", 0)),
    )  # fmt: skip
    return np.asarray(y.numpy())


def local_response(step: Step, x: Array) -> Array:
    """Return ONNX's LRN: x / (bias + alpha / size * sum of squares over neighbouring channels) ** beta."""
    size = step.attributes["size"]
    squares = np.pad(x * x, [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, index : index + x.shape[1]] for index in range(size))
    base = step.attribute("bias", 1.0) + step.attribute("alpha", 1e-4) / size * total
    return np.asarray(x / base ** step.attribute("beta", 0.75))


def instance_norm(step: Step, x: Array, scale: Array, bias: Array) -> Array:
    """Return each channel of each sample with its own mean and variance taken off."""
    axes, channels = tuple(range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred**2).mean(axis=axes, keepdims=True)
    normalized = centred / np.sqrt(variance + step.attribute("epsilon", 1e-5))
    return np.asarray(normalized * scale.reshape(channels) + bias.reshape(channels))


# -- recurrent layers --------------------------------------------------------------------------

Activation = Callable[[Array], Array]


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    a, b = alpha, beta
    table: dict[str, Activation] = {
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "affine": lambda x: (1.0 if a is None else a) * x + (0.0 if b is None else b),
        "leakyrelu": lambda x: np.where(x < 0, (0.01 if a is None else a) * x, x),
        "thresholdedrelu": lambda x: np.where(x > (1.0 if a is None else a), x, 0.0),
        "scaledtanh": lambda x: (1.0 if a is None else a) * np.tanh((1.0 if b is None else b) * x),
        "hardsigmoid": lambda x: np.clip((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
        "elu": lambda x: np.where(x > 0, x, (1.0 if a is None else a) * np.expm1(np.minimum(x, 0))),
        "softsign": lambda x: x / (1 + np.abs(x)),
        "softplus": softplus,
    }
    return table[name.lower()]


_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def recurrent(step: Step, x: Array, w: Array, r: Array, *more: Array | None) -> tuple[Array, ...]:
    """Return the outputs of RNN, GRU or LSTM (ONNX 14): every hidden state, the last one, and the last cell."""
    bias, lengths, hidden, cell, peephole = (*more, None, None, None, None, None)[:5]
    batch_first = bool(step.attribute("layout", 0))
    x = x.swapaxes(0, 1) if batch_first else x
    states = [s.swapaxes(0, 1) if batch_first and s is not None else s for s in (hidden, cell)]
    directions, size = w.shape[0], r.shape[2]
    ways = {"reverse": [True], "bidirectional": [False, True]}.get(step.attribute("direction", "forward"), [False])
    rows, lasts, cells = [], [], []
    for index, backward in enumerate(ways):
        start = [
            np.zeros((x.shape[1], size)) if state is None else np.asarray(state[index], np.float64) for state in states
        ]
        layer = _Layer(
            step, w[index], r[index], None if bias is None else bias[index],
            None if peephole is None else peephole[index], _activations(step, index, directions),
        )  # fmt: skip
        row, last, memory = layer.run(x, start, lengths, backward)
        rows.append(row)
        lasts.append(last)
        cells.append(memory)
    y, y_h, y_c = np.stack(rows, 1), np.stack(lasts), np.stack(cells)
    if batch_first:
        y, y_h, y_c = y.transpose(2, 0, 1, 3), y_h.swapaxes(0, 1), y_c.swapaxes(0, 1)
    return (y, y_h, y_c)[: 3 if step.op_type == "LSTM" else 2]


def _activations(step: Step, index: int, directions: int) -> list[Activation]:
    names = step.attribute("activations", None) or _DEFAULTS[step.op_type] * directions
    count = len(_DEFAULTS[step.op_type])
    alphas, betas = (list(step.attribute(f"activation_{which}", None) or []) for which in ("alpha", "beta"))
    found = []
    for place, name in enumerate(names):
        takes_alpha = name.lower() not in ("sigmoid", "tanh", "relu", "softsign", "softplus")
        takes_beta = name.lower() in ("affine", "scaledtanh", "hardsigmoid")
        alpha = alphas.pop(0) if takes_alpha and alphas else None
        beta = betas.pop(0) if takes_beta and betas else None
        if index * count <= place < (index + 1) * count:
            found.append(_activation(name, alpha, beta))
    return found


class _Layer:
    """One direction of a recurrent layer."""

    def __init__(
        self, step: Step, w: Array, r: Array, bias: Array | None, peephole: Array | None, f: list[Activation]
    ) -> None:
        self.step, self.w, self.r, self.f = step, w, r, f
        self.size = r.shape[1]
        both = np.zeros(2 * w.shape[0]) if bias is None else bias
        self.wb, self.rb = both[: w.shape[0]], both[w.shape[0] :]
        self.peephole = np.zeros(3 * self.size) if peephole is None else peephole
        self.clip = step.attribute("clip", None)

    def run(
        self, x: Array, start: Sequence[Array], lengths: Array | None, backward: bool
    ) -> tuple[Array, Array, Array]:
        """Return all hidden states, in the order of time, the last one, and the last cell."""
        hidden, cell = start
        length, batch = x.shape[:2]
        ends = np.full(batch, length) if lengths is None else lengths
        rows = np.zeros((length, batch, self.size))
        given = np.asarray(matmul(self.step, x, self.w.T)) + self.wb if length else rows
        for time in range(length):
            # a row that is read backward begins at its own end
            place = np.where(time < ends, ends - 1 - time, time) if backward else np.full(batch, time)
            now = given[place, np.arange(batch)]
            new_hidden, new_cell = getattr(self, f"_{self.step.op_type.lower()}")(now, hidden, cell)
            live = (time < ends)[:, None]
            hidden, cell = np.where(live, new_hidden, hidden), np.where(live, new_cell, cell)
            rows[place, np.arange(batch)] = np.where(live, new_hidden, 0.0)
        return rows, hidden, cell

    def _clipped(self, x: Array) -> Array:
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)

    def _rnn(self, now: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        return self.f[0](self._clipped(now + hidden @ self.r.T + self.rb)), cell

    def _gru(self, now: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        n = self.size
        past = hidden @ self.r[: 2 * n].T + self.rb[: 2 * n]
        z, r = (self.f[0](self._clipped(part)) for part in np.split(now[:, : 2 * n] + past, 2, axis=1))
        if self.step.attribute("linear_before_reset", 0):
            past = r * (hidden @ self.r[2 * n :].T + self.rb[2 * n :])
        else:
            past = (r * hidden) @ self.r[2 * n :].T + self.rb[2 * n :]
        h = self.f[1](self._clipped(now[:, 2 * n :] + past))
        return (1 - z) * h + z * hidden, cell

    def _lstm(self, now: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        i, o, f, c = np.split(now + hidden @ self.r.T + self.rb, 4, axis=1)
        pi, po, pf = np.split(self.peephole, 3)
        i = self.f[0](self._clipped(i + pi * cell))
        f = 1 - i if self.step.attribute("input_forget", 0) else self.f[0](self._clipped(f + pf * cell))
        new = f * cell + i * self.f[1](self._clipped(c))
        o = self.f[0](self._clipped(o + po * new))
        return o * self.f[2](new), new


HEAVY: dict[str, Callable[..., Any]] = {
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "Conv": conv,
    "GridSample": grid_sample,
    "LRN": local_response,
    "InstanceNormalization": instance_norm,
    **dict.fromkeys(_DEFAULTS, recurrent),
}
