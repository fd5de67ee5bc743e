"""torch's real and complex dtypes, and the wide one of each."""

from __future__ import annotations

import torch

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_NARROW_COMPLEX = (torch.complex64, torch.complex32)


def widened(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for a narrower real dtype, complex128 for a narrower complex one, any other as it is."""
    if dtype in _NARROW:
        return torch.float64
    return torch.complex128 if dtype in _NARROW_COMPLEX else dtype


def is_wide(dtype: torch.dtype) -> bool:
    """Return True for float64 and complex128."""
    return dtype in (torch.float64, torch.complex128)


def is_real(dtype: torch.dtype) -> bool:
    """Return True for a dtype of real or complex numbers, of any width."""
    return dtype.is_floating_point or dtype.is_complex
