"""The GPU at hand, by torch; torch is imported when asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU: what it calls itself, and its compute capability, such as ``SM89``."""

    model: str
    capability: str

    def __str__(self) -> str:
        return f"{self.model} ({self.capability})"


def find() -> Gpu | None:
    """Return the current CUDA device; None where torch can use none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"SM{major}{minor}")
