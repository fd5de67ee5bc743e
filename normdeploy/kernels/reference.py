"""The kernel's norms in float64: what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from normdeploy.kernels.variants import Norm

Array = npt.NDArray[np.float64]


def norm_of(norm: Norm, x: Array, gamma: Array | None = None, beta: Array | None = None) -> tuple[Array, Array]:
    """Return the norm of each row of ``x`` in float64, not rounded, and the sizes of what is added up in it.

    LayerNorm (Ba, Kiros, Hinton 2016, eq. 3) or RMSNorm (Zhang, Sennrich 2019, eq. 4), eps inside the root. A row of
    one value is its own mean.

    Args:
        norm: its ``features``, ``eps`` and ``centre`` count.
        x: ``(rows, features)``, the sum with the residual already taken and rounded.
        gamma: ``(features,)``, or None for ones.
        beta: ``(features,)``, or None for zeros.
    """
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if norm.centre:
            mean = np.where((x == x[:, :1]).all(axis=1), x[:, 0], x.mean(axis=1))
            x = x - mean[:, None]
        y = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + norm.eps)
        if gamma is not None:
            y = y * gamma.astype(np.float64)
        sizes = np.abs(y)
        if beta is not None:
            y, sizes = y + beta.astype(np.float64), sizes + np.abs(beta.astype(np.float64))
    return y, sizes


def inputs_of(norm: Norm, given: Mapping[str, np.ndarray]) -> tuple[Array, Array | None, Array | None]:
    """Return x (with its residual added and rounded to storage), gamma and beta of the kernel's inputs, in float64."""
    x = given["x"]
    if norm.residual:
        x = (x.astype(np.float32) + given["residual"].astype(np.float32)).astype(x.dtype)
    gamma, beta = (None if name not in given else given[name].astype(np.float64) for name in ("gamma", "beta"))
    return x.astype(np.float64), gamma, beta
