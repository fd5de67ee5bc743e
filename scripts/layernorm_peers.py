"""Other LayerNorm and RMSNorm kernels for scripts/bench_layernorm_gpu.py: those that can be imported where it runs.

Liger (``liger-kernel`` 0.8) and QuACK (``quack-kernels`` 0.6) are called as their own code declares it. The third is
the kernel of Triton's tutorial on layer normalization, written anew: a program a row, which it loads for the mean, for
the variance and for the output, in blocks of up to 64 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Norm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Given x ``(rows, features)``, gamma, beta and eps: y. An RMSNorm takes no notice of beta."""

_MOST_BYTES = 1 << 16


def peers(kind: str) -> tuple[dict[str, Norm], dict[str, str]]:
    """Return the peers that have a kernel of ``kind`` (LN or RMS), and why each of the others is left out."""
    found: dict[str, Norm] = {}
    left: dict[str, str] = {}
    for name, make in (("Liger", _liger), ("QuACK", _quack), ("Triton tutorial", _triton)):
        try:
            found[name] = make(kind)
        except (ImportError, AttributeError, KeyError) as error:
            left[name] = f"{type(error).__name__}: {error}"
    return found, left


def _liger(kind: str) -> Norm:
    if kind == "LN":
        layer = import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction
        return lambda x, gamma, beta, eps: layer.apply(x, gamma, beta, eps)
    rms = import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    return lambda x, gamma, beta, eps: rms.apply(x, gamma, eps)


def _quack(kind: str) -> Norm:
    module = import_module("quack.rmsnorm")  # which has both
    if kind == "LN":
        layer = module.layernorm_fwd  # gamma and beta in float32
        return lambda x, gamma, beta, eps: layer(x, gamma.float(), beta.float(), eps=eps)
    rms = module.rmsnorm_fwd
    return lambda x, gamma, beta, eps: rms(x, gamma, eps=eps)[0]


def _triton(kind: str) -> Norm:
    kernel = {"LN": _kernel}[kind]()  # the tutorial has no RMSNorm

    def run(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        rows, features = x.shape
        block = min(_MOST_BYTES // x.element_size(), 1 << (features - 1).bit_length())
        if features > block:
            raise ValueError(f"a row has more than {_MOST_BYTES} bytes")
        y = torch.empty_like(x)
        kernel[(rows,)](x, y, gamma, beta, features, eps, BLOCK=block, num_warps=min(max(block // 256, 1), 8))
        return y

    return run


def _kernel() -> Any:
    triton = import_module("triton")
    tl = globals()["tl"] = import_module("triton.language")  # where the compiler looks names up

    def layer_norm(x, y, gamma, beta, features, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def, name-defined]  # noqa: ANN001, ANN202  # Triton's own language
        row = tl.program_id(0) * features
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for first in range(0, features, BLOCK):
            at = first + tl.arange(0, BLOCK)
            total += tl.load(x + row + at, mask=at < features, other=0.0).to(tl.float32)
        mean = tl.sum(total, axis=0) / features
        square = tl.zeros([BLOCK], dtype=tl.float32)
        for first in range(0, features, BLOCK):
            at = first + tl.arange(0, BLOCK)
            value = tl.load(x + row + at, mask=at < features, other=0.0).to(tl.float32)
            value = tl.where(at < features, value - mean, 0.0)
            square += value * value
        factor = 1 / tl.sqrt(tl.sum(square, axis=0) / features + eps)
        for first in range(0, features, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < features
            value = (tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32) - mean) * factor
            scale, shift = tl.load(gamma + at, mask=inside), tl.load(beta + at, mask=inside)
            tl.store(y + row + at, value * scale + shift, mask=inside)

    layer_norm.__annotations__["BLOCK"] = tl.constexpr  # postponed, it is text
    return triton.jit(layer_norm)
