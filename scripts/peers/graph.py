"""A graph of the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from peers.counting import Counted


@dataclass(frozen=True)
class Graph:
    """One graph, and how much may be left of it.

    Attributes:
        name: group and case.
        group: what it is a case of.
        model: the graph.
        left: how much may be left at most; None where a fold would be wrong, or makes nothing of it go.
        counted: what is counted.
    """

    name: str
    group: str
    model: onnx.ModelProto
    left: int | None
    counted: Counted = "passes"

    @property
    def is_fold(self) -> bool:
        """Whether there is anything to fold."""
        return self.left is not None
