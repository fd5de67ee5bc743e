"""Everything here needs an NVIDIA GPU, and skips with the reason where there is none. `make test-gpu` runs it."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use; this machine has none")
