"""What both parts of a comparison share: the module as the oracle, the bounds, and all runs on one feed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import eps, is_float
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.single import Single
from normdeploy.parity.verdict import SIXTEEN, Criteria
from normdeploy.specs import TensorSpec


class Run(NamedTuple):
    """All that was run on ``feed``, by output name.

    Eager PyTorch in its own dtype and in float64, the graph in float64, and the artefact; None for what does not run.
    """

    feed: Feed
    eager: Arrays
    exact: Arrays | None
    meant: Arrays | None
    actual: Arrays | None


@dataclass
class Setting:
    """What a network is measured by.

    Attributes:
        oracle: the module.
        criteria: by which it is decided what else to measure.
        computes: the real type that the network computes in.
        single: the float32 graph that one in 16 bits was rounded from; None where it is not known.
        notes: what is to be said, in order.
    """

    oracle: Oracle
    criteria: Criteria
    computes: str = "float32"
    single: Single | None = None
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def sixteen(self) -> bool:
        """Return True if the network computes in 16 bits."""
        return self.computes in SIXTEEN

    def note(self, text: str) -> None:
        """Say ``text``, once."""
        self.notes[text] = None

    def wide(self, dtype: str) -> str:
        """Return what the network computes in, where that is coarser than an output's own ``dtype``; else empty."""
        if not is_float(dtype):
            return self.computes if self.sixteen else ""
        return self.computes if eps(self.computes) > eps(dtype) else ""


def computes_in(module: nn.Module, specs: Sequence[TensorSpec], dtype: torch.dtype | None) -> str:
    """Return the coarsest real type of the weights and inputs: what the network computes in, unless in ``dtype``."""
    if dtype is not None:
        return str(dtype).removeprefix("torch.")
    tensors = [tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    names = [str(each).removeprefix("torch.") for each in tensors] + [spec.dtype for spec in specs]
    return max((name for name in names if is_float(name)), key=eps, default="float32")
