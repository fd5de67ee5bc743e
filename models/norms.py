"""Each normalization module alone, in the forms that its documentation names.

The factories return a torch module in training mode whose affine and running statistics are seeded and far from
the identity (gammas of both signs, means away from 0, variances away from 1), as training leaves them;
``reset_parameters()`` takes it back to torch's fresh state. Options are those of the torch class:
``eps``, ``momentum`` (a number, or None for the cumulative average), ``affine``, ``bias``,
``track_running_stats`` for the batch norms; ``eps``, ``elementwise_affine``, ``bias`` for the layer norms.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

CHANNELS, HEIGHT, WIDTH = 2, 3, 4  # pairwise distinct: a norm over the wrong axes cannot pass for the right one
SEED = 0

AnyNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.LayerNorm
Norm = TypeVar("Norm", bound=AnyNorm)


def batch_norm1d(channels: int = CHANNELS, **options: Any) -> nn.BatchNorm1d:
    """BatchNorm1d of ``input``, float ``[N, C]`` or ``[N, C, L]``."""
    return _lived_in(nn.BatchNorm1d(channels, **options))


def batch_norm2d(channels: int = CHANNELS, **options: Any) -> nn.BatchNorm2d:
    """BatchNorm2d of ``input``, float ``[N, C, H, W]``."""
    return _lived_in(nn.BatchNorm2d(channels, **options))


def batch_norm3d(channels: int = CHANNELS, **options: Any) -> nn.BatchNorm3d:
    """BatchNorm3d of ``input``, float ``[N, C, D, H, W]``."""
    return _lived_in(nn.BatchNorm3d(channels, **options))


def layer_norm_w(**options: Any) -> nn.LayerNorm:
    """LayerNorm of ``input``, float ``[..., 4]``, over its last axis."""
    return _lived_in(nn.LayerNorm((WIDTH,), **options))


def layer_norm_hw(**options: Any) -> nn.LayerNorm:
    """LayerNorm of ``input``, float ``[..., 3, 4]``, over its last two axes."""
    return _lived_in(nn.LayerNorm((HEIGHT, WIDTH), **options))


def layer_norm_chw(**options: Any) -> nn.LayerNorm:
    """LayerNorm of ``input``, float ``[..., 2, 3, 4]``, over its last three axes."""
    return _lived_in(nn.LayerNorm((CHANNELS, HEIGHT, WIDTH), **options))


def _lived_in(norm: Norm) -> Norm:
    """The norm with seeded values: gammas, betas and means of alternating sign, variances from 1.5 to 4."""
    random = torch.Generator().manual_seed(SEED)
    bounds = {"weight": (0.5, 2.0), "bias": (0.25, 1.0), "running_mean": (0.5, 2.0), "running_var": (1.5, 4.0)}
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if name in bounds:
                tensor.uniform_(*bounds[name], generator=random)
            if name in ("weight", "bias", "running_mean"):
                tensor.view(-1)[1::2] *= -1
    return norm
