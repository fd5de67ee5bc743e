"""Norms that stay spelled out, as an opset without them makes them, in the spelling that runtimes make one operator of.

    (n / √(mean(n²) + eps)) ⊙ γ + β        n = x - mean(x) for LayerNorm, x for RMSNorm, which has no β

ONNX Runtime knows it by its scale: without γ, or with β where the scale is gone, it runs each operator by itself, and
that takes longer than the two that are saved. What was tried with its version 1.32: the mean is over the last axis, n²
is a Pow, γ and β are vectors, and a LayerNorm without β is an RMSNorm behind a mean and a Sub; n · (1 / √…) will do
where a Div gives the reciprocal. All other spellings are written as the formula, with γ = 1 and β = 0 where there are
none: maps behind go into those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

import numpy as np
import onnx_ir as ir

from normdeploy.errors import listed
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm import parts
from normdeploy.fold.layernorm.region import Norm
from normdeploy.fold.layernorm.values import bare, first, made_by, only_reader, same, scalar, second
from normdeploy.fold.levels import Target
from normdeploy.fold.rewrite import Writer
from normdeploy.graph import label, operator

RUNTIMES: tuple[Target, ...] = ("onnx", "onnxruntime")
"""The targets that make one operator of such a norm; TensorRT fuses what stands there, and PyTorch nothing."""

_AXES_ARE_AN_INPUT = 18
"""The opset from which on ReduceMean has its axes as an input."""


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
    bias = only_reader(node.outputs[0])
    if bias is not None and _scaled(view, bias, "Add") and parts.centred(view, numerator, None) is not None:
        yield bias


def _scaled(view: View, node: ir.Node, kind: str) -> ir.Value | None:
    """Return what ``node`` of ``kind`` does something to with a constant vector; None where it is no such node."""
    if made_by(node.outputs[0], kind) is None:
        return None
    for data, constant in _both_ways(node):
        tensor = None if view.is_constant(data) else view.constant(constant)
        if tensor is not None and len(tensor.shape) == 1:
            return data
    return None


def is_to_be_spelled(view: View, norm: Norm, inside: Collection[ir.Node]) -> bool:
    """Return True where runtimes make one operator of ``norm`` as :func:`spell` writes it, and none as it stands.

    What computes ``inside`` of it in more than one dtype stays: in the narrow one squares would overflow. So does what
    has no epsilon: the Add of 0 by which runtimes would know it goes, as it changes nothing.
    """
    if norm.attributes["epsilon"] == 0:
        return False
    one_dtype = all(node.outputs[0].dtype == norm.result.dtype for node in inside)
    return one_dtype and not _is_known(view, norm) and not _would_join_a_sum(view, norm, inside)


def is_to_join_a_sum(view: View, norm: Norm, inside: Collection[ir.Node]) -> bool:
    """Return True where runtimes join ``norm``, as an operator, with a sum, and did not as it stands."""
    may = norm.missing is None and norm.perm is None and not _is_known(view, norm)
    return may and _would_join_a_sum(view, norm, inside)


def notes(view: View, norms: Iterable[ir.Node]) -> list[str]:
    """Return what whoever runs ``norms`` must know, which were to join a sum: those whose sum is there still."""
    names = [
        label(node)
        for node in norms
        if operator(node) == "LayerNormalization" and _is_sum(view, first(node)) and only_reader(first(node)) is node
    ]
    if not names:
        return []
    return [
        f"{listed(names, 1)}: now LayerNormalization, of which ONNX Runtime makes SkipLayerNormalization with the sum "
        "in front, slower on the CPU than what was there: create the session with disabled_optimizers="
        "['SkipLayerNormFusion']"
    ]


def _is_known(view: View, norm: Norm) -> bool:
    """Return True if ``norm`` has the scale behind it by which runtimes know it, and a LayerNorm the bias."""
    reader = only_reader(norm.result)
    while reader is not None and operator(reader) == "Cast":
        reader = only_reader(reader.outputs[0])
    tail: list[ir.Node] = []
    if reader is not None:
        with suppress(Refused):
            tail += _tail(view, reader)
    return len(tail) == (2 if norm.kind == "LayerNormalization" else 1)


def _would_join_a_sum(view: View, norm: Norm, inside: Collection[ir.Node]) -> bool:
    """Return True for a LayerNorm of a sum that only what lies ``inside`` of it reads.

    ONNX Runtime would go on and make one operator of both, whose kernel for the CPU is slower than all of them.
    """
    is_of_sum = norm.kind == "LayerNormalization" and _is_sum(view, norm.data)
    return is_of_sum and all(use.node in inside for use in norm.data.uses())


def _is_sum(view: View, value: ir.Value) -> bool:
    total = made_by(value, "Add")
    return total is not None and not view.is_constant(first(total)) and not view.is_constant(second(total))


def spell(writer: Writer, norm: Norm, data: ir.Value, vectors: dict[tuple[ir.DataType, bytes], ir.Value]) -> ir.Value:
    """Put ``norm`` of ``data`` in its own place as runtimes know it; return the value that stands for its result.

    Scales and biases are taken from ``vectors``, and entered: of norms that are alike runtimes make one only if they
    read the same.
    """
    dtype = norm.result.dtype
    assert dtype is not None, "its data would have another dtype"

    def made(kind: str, *values: ir.Value) -> ir.Node:
        return writer.add(norm.end, kind, values[0], values[0], None, *values[1:])

    def with_number(kind: str, value: ir.Value, name: str, number: float) -> ir.Value:
        node = made(kind, value)
        writer.append_constant(node, name, ir.tensor(np.array(number, dtype.numpy())))
        return node.outputs[0]

    def mean(value: ir.Value) -> ir.Value:
        node = made("ReduceMean", value)
        if writer.state.view.opset < _AXES_ARE_AN_INPUT:
            node.attributes["axes"] = ir.AttrInt64s("axes", [-1])
        else:
            writer.append_constant(node, "axes", ir.tensor(np.array([-1], np.int64)))
        shape = value.shape
        node.outputs[0].shape = None if shape is None else ir.Shape([*shape[:-1], 1])
        return node.outputs[0]

    n, bias = data, None
    if norm.kind == "LayerNormalization":
        n, bias = made("Sub", n, mean(n)).outputs[0], np.zeros_like(norm.scale) if norm.bias is None else norm.bias
    variance = mean(with_number("Pow", n, "exponent", 2.0))
    root = made("Sqrt", with_number("Add", variance, "epsilon", norm.attributes["epsilon"])).outputs[0]
    last = made("Div", n, root)
    for kind, name, array in (("Mul", "scale", norm.scale), ("Add", "bias", bias)):
        if array is not None:
            key = dtype, np.asarray(array).tobytes()
            last = made(kind, last.outputs[0], *([vectors[key]] if key in vectors else ()))
            if key not in vectors:
                writer.append_constant(last, name, writer.cache.tensor((last, 1), Edit(None, dtype, shift=array)))
                vectors[key] = second(last)
    writer.take_place(last, last.outputs[0], norm.end)
    return last.outputs[0]


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
    """Return True if ``value`` is ``√(mean(n²) + eps)`` where ``of`` is ``n``; an Add of 0 goes, so that is no eps."""
    root = made_by(bare(view, value), "Sqrt")
    total = None if root is None else made_by(bare(view, first(root)), "Add")
    return total is not None and any(
        scalar(view, epsilon) not in (None, 0) and _is_mean_of_squares(view, mean, of)
        for mean, epsilon in _both_ways(total)
    )


def _is_mean_of_squares(view: View, value: ir.Value, of: ir.Value) -> bool:
    """Return True if ``value`` is the mean of the squares of ``of`` over its last axis, which it keeps."""
    mean = made_by(bare(view, value), "ReduceMean")
    square = None if mean is None else made_by(bare(view, first(mean)), "Pow")
    if mean is None or square is None or not view.attr(mean, "keepdims", 1) or scalar(view, second(square)) != 2:
        return False
    rank, axes = view.rank(of), view.parameter(mean, "axes", 1) if _has_constant_axes(view, mean) else None
    return axes in ([-1], [rank - 1] if rank else None) and same(view, first(square), of)


def _has_constant_axes(view: View, mean: ir.Node) -> bool:
    return len(mean.inputs) < 2 or view.is_constant(mean.inputs[1])
