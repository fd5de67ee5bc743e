"""What a fold case is: a graph, and what must be left of it, or the reason why nothing may change.

The tables are in ``cases_*.py``.

Sizes are odd and pairwise distinct wherever the operator allows, so that no axis passes for another by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from harness import OPSET, model


@dataclass(frozen=True)
class Case:
    """One graph. Weights are declared without values and drawn by :func:`harness.fill`.

    Attributes:
        name: what the case shows.
        inputs: graph inputs in ONNX text; ``N H W T L`` are dynamic dimensions.
        weights: declarations in ONNX text.
        body: nodes in ONNX text.
        becomes: all operators that are left, in any order.
        reason: what the ledger says of a norm or map that is left or partly left.
        outputs: graph outputs in ONNX text.
        opset: the opset of the default domain.
        onnxruntime: whether onnxruntime has kernels for it.
    """

    name: str
    inputs: str
    weights: str
    body: str
    becomes: str = ""
    reason: str = ""
    outputs: str = "float[] y"
    opset: int = OPSET
    onnxruntime: bool = True
    ir_version: int = field(default=10)

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        return model(
            self.inputs, self.weights, self.body, outputs=self.outputs, opset=self.opset, ir_version=self.ir_version
        )


def ids(cases: list[Case]) -> list[str]:
    """The names of ``cases``, for pytest."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return names


IMAGE = "float[N,3,H,W] x"
CONV = "float[5,3,3,3] w, float[5] b"
