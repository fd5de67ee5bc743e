"""Functions that ATen has for a constant number of steps alone, at a number that is computed of sizes.

``torch.linspace`` and ``torch.logspace`` are spelled out as ATen's RangeFactories computes them, from both ends, so
that the last number is exact; ``F.affine_grid``, which is made of them, as its AffineGridGenerator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class DynamicSteps(TorchFunctionMode):
    """While active, real linspace, logspace and affine_grid keep a traced number of steps dynamic."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, or what it is spelled out as."""
        given = kwargs or {}
        if func is torch.nn.functional.affine_grid and any(isinstance(size, torch.SymInt) for size in args[1]):
            return _affine_grid(*args, **given)
        spelled_out: Any = {torch.linspace: _linspace, torch.logspace: _logspace}.get(func)
        steps, dtype = args[2] if len(args) > 2 else given.get("steps"), given.get("dtype") or torch.get_default_dtype()
        if spelled_out is None or not isinstance(steps, torch.SymInt) or not dtype.is_floating_point or "out" in given:
            return func(*args, **given)
        return spelled_out(*args, **{**given, "dtype": dtype})


def _linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype, **how: Any) -> torch.Tensor:
    places = torch.arange(steps, dtype=dtype, device=how.get("device"))
    at_least: Any = torch.sym_max
    step = (end - start) / at_least(steps - 1, 1)
    return torch.where(places < at_least(steps // 2, 1), start + step * places, end - step * (steps - 1 - places))


def _logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **how: Any) -> torch.Tensor:
    return torch.pow(base, _linspace(start, end, steps, **how))


def _affine_grid(theta: torch.Tensor, size: Sequence[Any], align_corners: bool | None) -> torch.Tensor:
    _, _, *sizes = size
    axes = [_linspace(-1, 1, steps, dtype=theta.dtype, device=theta.device) for steps in sizes]
    if not align_corners:
        axes = [axis * (steps - 1) / steps for axis, steps in zip(axes, sizes, strict=True)]
    places = torch.meshgrid(*axes, indexing="ij")
    base = torch.stack([*reversed(places), torch.ones_like(places[0])], -1)
    rows = theta[(slice(None), *[None] * len(sizes))]
    return (base[..., None, :] * rows).sum(-1)  # no product of matrices, which would ask for the sizes
