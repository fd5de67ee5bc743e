from __future__ import annotations

import pytest
from stand_ins import FourBlocks, trained
from torch import nn


@pytest.fixture
def four_blocks() -> nn.Module:
    """(N, 5, H, W) → (N, 3), four residual blocks with a BatchNorm each."""
    return trained(FourBlocks())
