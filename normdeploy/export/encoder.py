"""The one path of nn.TransformerEncoder that every mask takes.

In inference PyTorch turns a padded batch into nested tensors where the padding stands at the end of every row, and
returns zeros at padded places; otherwise it computes something there. A graph has one path, so what eager does on both
is written as one: the places that nested tensors leave out are zero where, and only where, eager would use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.backends import mha

_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def has_fast_path(module: nn.Module) -> bool:
    """Return True if PyTorch may take its fused path of attention somewhere in ``module``."""
    return any(isinstance(part, _ATTENTION) for part in module.modules())


@contextmanager
def one_path() -> Iterator[None]:
    """Switch PyTorch's fused path of attention off, and let encoders return what it would at padded places."""
    before, forward = mha.get_fastpath_enabled(), nn.TransformerEncoder.forward
    mha.set_fastpath_enabled(False)
    nn.TransformerEncoder.forward = _forward(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.TransformerEncoder.forward = forward  # type: ignore[method-assign]
        mha.set_fastpath_enabled(before)


def _forward(original: Any) -> Any:
    def forward(
        self: nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        if src_key_padding_mask is None or not _may_nest(self, src, mask):
            plain: torch.Tensor = original(self, src, mask, src_key_padding_mask, is_causal)
            return plain
        norm, self.norm = self.norm, None
        try:
            y = original(self, src, mask, src_key_padding_mask, is_causal)
        finally:
            self.norm = norm
        padded = src_key_padding_mask != 0
        if getattr(self, "mask_check", True):
            starts_again = padded[:, :-1] & ~padded[:, 1:]
            padded = padded & ~starts_again.any()
        y = torch.where(padded[..., None], torch.zeros((), dtype=y.dtype), y)
        return y if norm is None else norm(y)

    return forward


def _may_nest(encoder: nn.TransformerEncoder, src: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return True if eager makes nested tensors of ``src``, should the padding allow it."""
    return (
        bool(getattr(encoder, "use_nested_tensor", False))
        and not encoder.layers[0].training
        and src.dim() == 3
        and not src.is_nested
        and mask is None
        and not torch.is_autocast_enabled()
    )
