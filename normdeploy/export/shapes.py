"""Shapes on every value: torch's, which know more of symbolic dimensions, completed by ONNX's own inference."""

from __future__ import annotations

import onnx_ir as ir

from normdeploy.graph import infer_types


def infer_shapes(model: ir.Model) -> None:
    """Give each value the shape and dtype that follow from the graph's inputs; what was known already stays."""
    values = _values(model.graph)
    before = [value.shape for value in values]
    infer_types(model)
    for value, shape in zip(values, before, strict=True):
        value.shape = _merged(shape, value.shape)


def _values(graph: ir.Graph) -> list[ir.Value]:
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    return [output for node in nodes for output in node.outputs]


def _merged(known: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """Sizes of either, then names; a name that ONNX made up (``unk__7``) is no name, for it means nothing later."""
    if known is None or inferred is None or len(known) != len(inferred):
        shape = known if known is not None else inferred
        return None if shape is None else ir.Shape([_size(dim) for dim in shape])
    return ir.Shape(
        [ours if (ours := _size(dim)) is not None else _size(other) for dim, other in zip(known, inferred, strict=True)]
    )


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None or dim.value.startswith("unk__") else dim.value
