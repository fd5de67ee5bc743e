"""Which operator a norm can be, at an opset, for what will run the model."""

from __future__ import annotations

from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.levels import Target

SINCE = {"LayerNormalization": 17, "GroupNormalization": 21, "RMSNormalization": 23}
"""The opset from which on the standard has a norm (GroupNormalization: with a scale for each channel)."""


def operator_type(kind: str, opset: int, target: Target | None) -> str:
    """Return the type of the operator that ``kind`` is; that of the newest opset where there is no ``target``.

    Raises:
        Refused: there is none at this opset for this target.
    """
    if kind == "GroupNormalization" and target == "onnxruntime":
        # No kernel of its own, and E[x²] - E[x]² for the variance: at a mean of 1e3 deviations it is off by a tenth.
        raise Refused(
            "NF316", "ONNX Runtime takes GroupNormalization apart, in a way that loses groups with a large mean"
        )
    since = SINCE[kind]
    if opset >= since or target is None:
        return kind
    if kind == "RMSNormalization" and target == "onnxruntime":
        return "SimplifiedLayerNormalization"  # onnxruntime's own, known to all of its versions
    fix = f"export with --opset {since}"
    if kind == "RMSNormalization":
        fix += ", or fold for onnxruntime"
    raise Refused(
        "NF315", f"ONNX has it as one operator, {kind}, from opset {since} on, and this is opset {opset}", fix=fix
    )


def fast_operator_type(opset: int, target: Target) -> str:
    """Do as :func:`operator_type` of an RMS norm, where the target runs it as one kernel."""
    if target == "tensorrt":
        raise Refused("NF316", "TensorRT takes RMSNormalization apart, and has one kernel for LayerNormalization")
    return operator_type("RMSNormalization", opset, target)
