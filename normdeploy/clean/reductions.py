"""Reductions whose axes are put back behind them."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from normdeploy.clean.scope import Scope
from normdeploy.clean.shapes import Shapes


def keep_reduced_axes(scope: Scope, shapes: Shapes) -> Counter[str]:
    """Let a reduction keep its axes where an Unsqueeze, its only reader, puts them back; return how many, by operator.

    ``Unsqueeze(ReduceSum<keepdims = 0>(x, axes), axes)`` is ``ReduceSum<keepdims = 1>(x, axes)``.
    """
    done: Counter[str] = Counter()
    for back in list(scope.graph):
        if scope.operator(back) != "Unsqueeze" or (reduction := _reduction(scope, back, shapes)) is None:
            continue
        attributes = [attribute for name, attribute in reduction.attributes.items() if name != "keepdims"]
        attributes.append(ir.AttrInt64("keepdims", 1))
        operator, metadata = scope.operator(reduction), dict(reduction.metadata_props)
        made = ir.Node("", operator, reduction.inputs, attributes, name=reduction.name, metadata_props=metadata)
        scope.replace(back, made)
        scope.graph.remove(reduction, safe=True)
        done["Unsqueeze"] += 1
    return done


def _reduction(scope: Scope, back: ir.Node, shapes: Shapes) -> ir.Node | None:
    """Return what drops the axes that ``back`` puts back, and hands its result to nothing else."""
    if back.inputs[0] is None or (node := back.inputs[0].producer()) is None or node.graph is not back.graph:
        return None
    keeps = node.attributes.get("keepdims")
    if not scope.operator(node).startswith("Reduce") or keeps is None or keeps.is_ref() or keeps.as_int():
        return None
    if len(node.outputs[0].uses()) > 1 or node.outputs[0].is_graph_output():
        return None
    dropped, added, shape = _axes(scope, node), _axes(scope, back), shapes.of(scope, node.inputs[0])
    if not dropped or not added:
        return None
    if not shape:  # a negative axis counts from the same rank in both
        return node if sorted(dropped) == sorted(added) else None
    rank = len(shape)
    return node if {axis % rank for axis in dropped} == {axis % rank for axis in added} else None


def _axes(scope: Scope, node: ir.Node) -> list[int] | None:
    """Return the axes as ``node`` has them, in its attribute or its second input; None where they are not constant."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return None if attribute.is_ref() else list(attribute.as_ints())
    array = scope.array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]
