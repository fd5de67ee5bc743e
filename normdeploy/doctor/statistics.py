"""Running statistics that no batch can have produced: a norm that holds them computes NaN or nonsense."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normdeploy.doctor.inventory import norms
from normdeploy.errors import InputError


def require_valid_statistics(module: nn.Module) -> None:
    """Raise one InputError that names every norm with NaN or infinite statistics or a negative variance.

    A variance of zero, or a subnormal one, is met in trained models and is valid: eps is added to it.
    """
    problems = []
    for norm in norms(module):
        layer = module.get_submodule(norm.name)
        for kind in ("running_mean", "running_var"):
            values = getattr(layer, kind) if norm.running else None
            if isinstance(values, Tensor) and (what := _problem(kind, values)):
                problems.append(f"{norm.name}.{kind}: {what} of {values.numel()} channels".lstrip("."))
    if problems:
        raise InputError(
            "a norm's running statistics are not those of any data",
            where="; ".join(problems),
            fix="give a checkpoint from before the training diverged, or re-estimate the statistics",
        )


def _problem(kind: str, values: Tensor) -> str:
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        return f"NaN or infinite in {bad}"
    negative = int((values < 0).sum()) if kind == "running_var" else 0
    return f"negative in {negative}" if negative else ""
