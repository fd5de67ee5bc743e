"""Norms that stay spelled out, as an opset without them makes them, in the spelling that runtimes make one operator of.

    (n / √(mean(n²) + eps)) ⊙ γ + β        n = x - mean(x) for LayerNorm, x for RMSNorm, which has no β

ONNX Runtime knows it by its scale: without γ, or with β where the scale is gone, it runs each operator by itself, and
that takes longer than the two that are saved. What was tried with its version 1.32: the mean is over the last axis, n²
is a Pow, γ a vector; n · (1 / √…) will do where a Div gives the reciprocal, but not where a Reciprocal does, as
torch.onnx writes torch.rsqrt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

import onnx_ir as ir

from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm import parts
from normdeploy.fold.layernorm.values import bare, first, made_by, scalar, second
from normdeploy.fold.levels import Target
from normdeploy.fold.rewrite import Writer

RUNTIMES: tuple[Target, ...] = ("onnx", "onnxruntime")
"""The targets that make one operator of such a norm; TensorRT fuses what stands there, and PyTorch nothing."""


def tails(view: View, nodes: Iterable[ir.Node]) -> frozenset[ir.Node]:
    """Return the scale of each such norm among ``nodes``, all of a graph, and the bias of each LayerNorm."""
    found: set[ir.Node] = set()
    for node in nodes:
        with suppress(Refused):  # what is not known of a value tells nothing
            found.update(_tail(view, node))
    return frozenset(found)


def _tail(view: View, node: ir.Node) -> Iterator[ir.Node]:
    data = _scaled(view, node, "Mul")
    numerator = None if data is None else _normalized(view, data)
    if numerator is None:
        return
    yield node
    uses = tuple(node.outputs[0].uses())
    is_read_once = len(uses) == 1 and not node.outputs[0].is_graph_output()
    if is_read_once and _scaled(view, uses[0].node, "Add") and parts.centred(view, numerator, None) is not None:
        yield uses[0].node


def _scaled(view: View, node: ir.Node, kind: str) -> ir.Value | None:
    """Return what ``node`` of ``kind`` does something to with a constant vector; None where it is no such node."""
    if made_by(node.outputs[0], kind) is None:
        return None
    for data, constant in _both_ways(node):
        tensor = None if view.is_constant(data) else view.constant(constant)
        if tensor is not None and len(tensor.shape) == 1:
            return data
    return None


def divide(writer: Writer) -> int:
    """Write ``n · Reciprocal(√…)`` as ``n / √…`` in every norm that is such a norm then; return in how many."""
    found = 0
    for node in list(writer.state.graph):
        with suppress(Refused):
            found += _divide(writer, node)
    return found


def _divide(writer: Writer, node: ir.Node) -> bool:
    view = writer.state.view
    data = _scaled(view, node, "Mul")
    product = None if data is None else made_by(data, "Mul")
    for numerator, other in () if product is None else _both_ways(product):
        reciprocal = made_by(other, "Reciprocal")
        if product is None or reciprocal is None or len(other.uses()) > 1 or other.is_graph_output():
            continue
        if _is_deviation(view, first(reciprocal), numerator):
            new = writer.add(product, "Div", numerator, product.outputs[0], None, first(reciprocal))
            writer.take_place(new, new.outputs[0], product)
            return True
    return False


def _normalized(view: View, value: ir.Value) -> ir.Value | None:
    """Return ``n`` where ``value`` is ``n / √(mean(n²) + eps)``, spelled so."""
    if (node := made_by(bare(view, value), "Div")) is not None:
        return first(node) if _is_deviation(view, second(node), first(node)) else None
    if (node := made_by(bare(view, value), "Mul")) is None:
        return None
    for numerator, other in _both_ways(node):
        reciprocal = made_by(bare(view, other), "Div")
        if reciprocal is not None and scalar(view, first(reciprocal)) == 1:
            return numerator if _is_deviation(view, second(reciprocal), numerator) else None
    return None


def _both_ways(node: ir.Node) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    return (first(node), second(node)), (second(node), first(node))


def _is_deviation(view: View, value: ir.Value, of: ir.Value) -> bool:
    """Return True if ``value`` is ``√(mean(n²) + eps)`` where ``of`` is ``n``."""
    root = made_by(bare(view, value), "Sqrt")
    total = None if root is None else made_by(bare(view, first(root)), "Add")
    return total is not None and any(
        scalar(view, epsilon) is not None and _is_mean_of_squares(view, mean, of) for mean, epsilon in _both_ways(total)
    )


def _is_mean_of_squares(view: View, value: ir.Value, of: ir.Value) -> bool:
    """Return True if ``value`` is the mean of the squares of ``of`` over its last axis, which it keeps."""
    mean = made_by(bare(view, value), "ReduceMean")
    square = None if mean is None else made_by(bare(view, first(mean)), "Pow")
    if mean is None or square is None or not view.attr(mean, "keepdims", 1) or scalar(view, second(square)) != 2:
        return False
    rank, axes = view.rank(of), view.parameter(mean, "axes", 1) if _has_constant_axes(view, mean) else None
    return axes in ([-1], [rank - 1] if rank else None) and bare(view, first(square)) is bare(view, of)


def _has_constant_axes(view: View, mean: ir.Node) -> bool:
    return len(mean.inputs) < 2 or view.is_constant(mean.inputs[1])
