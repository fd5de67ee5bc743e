"""The step from float32 to 16 bits, held to what it may do: round each constant once, and change nothing else.

What rounding all weights costs hides a fault of one: in 16 bits an output may be off by 1e-3 for no other reason. So a
graph in 16 bits is not judged by its outputs alone. The float32 graph that it was rounded from is judged as sharply as
any in float32, and this module proves that the two have the same nodes, and that each constant of the one lies within
half a unit in the last place of the other's. What is left is what the precision costs, and that alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from normdeploy.graph import label, operator
from normdeploy.precision.decide import LARGEST

_ROUNDED_TWICE = 0.5001
"""Units in the last place: half of one, and what a weight that was rounded to float32 before may lie beside that."""
_SHOWN = 5


class UnlikeError(Exception):
    """The two graphs do not have the same nodes, and so nothing can be said of their constants."""


class Pair(NamedTuple):
    """One constant in both graphs, and the node that reads it."""

    node: ir.Node
    single: ir.Value
    narrow: ir.Value


def prepared(model: ir.Model) -> ir.Model:
    """Return a copy with functions inlined and constants as initializers, as the conversion leaves them."""
    copy = model.clone()
    InlinePass()(copy)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    return copy


def pairs(single: ir.Model, narrow: ir.Model) -> list[Pair]:
    """Return the constants of ``narrow`` beside those of ``single``, the :func:`prepared` graph it was rounded from.

    Raises UnlikeError where they differ in anything but constants, and the casts and limits between precisions.
    """
    return list(_Match().graph(single.graph, narrow.graph))


def faults(found: list[Pair]) -> tuple[str, ...]:
    """Return, by module name, the constants that are no rounding of those they stand for; at most a few are spelled."""
    told = [text for pair in {(pair.single, pair.narrow): pair for pair in found}.values() if (text := _fault(pair))]
    more = len(told) - _SHOWN
    return (*told[:_SHOWN], *([f"and {more} more"] if more > 0 else []))


def with_constants(single: ir.Model, found: list[Pair], weights: Collection[str]) -> ir.Model:
    """Return ``single`` with those constants of the 16-bit graph that are none of the module's ``weights``, by name.

    PyTorch computes with a number in the code as it is, and with a tensor that is no parameter and no buffer; a graph
    in 16 bits has to round them. What that costs is part of the precision's cost, which rounding the module's weights
    does not show.
    """
    copy = single.clone()
    rounded = [pair for pair in found if pair.narrow.dtype in LARGEST]
    others = {
        pair.single.name: pair.narrow
        for pair in rounded
        if pair.single.name not in weights or _array(pair.narrow).size == 1
    }
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if name in others:
                value.const_value = ir.tensor(_array(others[name]).astype(np.float32), name=name)
    return copy


def without_limits(narrow: ir.Model, found: list[Pair]) -> ir.Model | None:
    """Return ``narrow`` with each mask at full length that 16 bits cut at their largest number; None if there is none.

    Cut are constants, such as -1e9, and what is made of one: see the conversion.
    """
    cut = {pair.narrow.name: pair.single for pair in found if _is_cut(pair)}
    copy, limited = narrow.clone(), False
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for name, value in graph.initializers.items():
            if name in cut:
                value.const_value, value.type, limited = cut[name].const_value, cut[name].type, True
        for node in graph:
            if operator(node) == "Clip" and _is_glue(node) and node.inputs[0] is not None:
                node.outputs[0].replace_all_uses_with(node.inputs[0])
                limited = True
    return copy if limited else None


def _is_cut(pair: Pair) -> bool:
    one, other = _array(pair.single), _array(pair.narrow)
    if pair.narrow.dtype not in LARGEST or one.shape != other.shape:
        return False
    return bool(_at_limit(one.astype(np.float64), other.astype(np.float64), LARGEST[pair.narrow.dtype]).any())


class _Match:
    """A walk through both graphs in their own order."""

    def __init__(self) -> None:
        self._same: dict[ir.Value, ir.Value] = {}

    def graph(self, single: ir.Graph, narrow: ir.Graph) -> Iterator[Pair]:
        """Return the pairs of constants; the inputs of a body are matched by their places."""
        self._same.update(zip(_fed(single), _fed(narrow), strict=False))
        ours, theirs = ([node for node in graph if not _is_glue(node)] for graph in (single, narrow))
        if len(ours) != len(theirs):
            raise UnlikeError(f"one has {len(ours)} nodes, the other {len(theirs)}")
        for one, other in zip(ours, theirs, strict=True):
            yield from self._node(one, other)
        for mine, its in zip(single.outputs, narrow.outputs, strict=True):
            if self._same.get(_through(mine)) is not _through(its) and not _is_constant(_through(mine)):
                raise UnlikeError(f"the output {mine.name} is made by another node")

    def _node(self, one: ir.Node, other: ir.Node) -> Iterator[Pair]:
        if operator(one) != operator(other) or len(one.inputs) != len(other.inputs):
            raise UnlikeError(f"{label(one)} is {operator(one)} in one, {operator(other)} in the other")
        for mine, its in zip(one.inputs, other.inputs, strict=True):
            if (mine is None) != (its is None):
                raise UnlikeError(f"{label(one)} has other inputs")
            if mine is None or its is None:
                continue
            mine, its = _through(mine), _through(its)
            if _is_constant(mine) and _is_constant(its):
                yield Pair(other, mine, its)
            elif self._same.get(mine) is not its:
                raise UnlikeError(f"{label(one)} reads another value than {mine.name}")
        yield from self._attributes(one, other)
        self._same.update(zip(one.outputs, other.outputs, strict=False))

    def _attributes(self, one: ir.Node, other: ir.Node) -> Iterator[Pair]:
        if one.attributes.keys() != other.attributes.keys():
            raise UnlikeError(f"{label(one)} has other attributes")
        for name, mine in one.attributes.items():
            its = other.attributes[name]
            if mine.type == ir.AttributeType.GRAPH:
                yield from self.graph(mine.as_graph(), its.as_graph())
            elif mine.type == ir.AttributeType.TENSOR:
                if not _is_rounding(mine.as_tensor().numpy(), its.as_tensor().numpy()):
                    raise UnlikeError(f"{label(one)} has another {name}")
            elif mine.value != its.value and not _names_the_type(mine, its):
                raise UnlikeError(f"{label(one)} has another {name}")


def _fed(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if value.name not in graph.initializers]


def _names_the_type(mine: ir.Attr, its: ir.Attr) -> bool:
    return mine.value == ir.DataType.FLOAT and its.value in LARGEST


def _is_glue(node: ir.Node) -> bool:
    """Return True for a cast between real types, and for the limits in front of one."""
    return _is_real_cast(node) or (
        operator(node) == "Clip"
        and all(_is_real_cast(after) for after in node.successors())
        and any(out.dtype in LARGEST for after in node.successors() for out in after.outputs)
    )


def _is_real_cast(node: ir.Node) -> bool:
    if operator(node) != "Cast" or node.inputs[0] is None:
        return False
    types = (node.inputs[0].dtype, node.outputs[0].dtype)
    return all(dtype is not None and dtype.is_floating_point() for dtype in types)


def _through(value: ir.Value) -> ir.Value:
    """Return what ``value`` was before the casts."""
    node = value.producer()
    while node is not None and _is_glue(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _array(value: ir.Value) -> npt.NDArray[np.generic]:
    tensor = value.const_value
    assert tensor is not None  # only constants are paired
    return np.asarray(tensor.numpy())


def _fault(pair: Pair) -> str:
    """Return what is wrong with a constant; empty where it is a rounding."""
    one, other = _array(pair.single), _array(pair.narrow)
    if _is_rounding(one, other):
        return ""
    place = f"{label(pair.node)}: {pair.narrow.name}"
    if one.shape != other.shape:
        return f"{place} is {list(other.shape)}, {list(one.shape)} in float32"
    if other.dtype == one.dtype:
        return f"{place} is another one in float32"
    off = _distance(one, other)
    return f"{place} is up to {off.max():.3g} units in the last place off the float32 one, 0.5 allowed"


def _is_rounding(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return one.tobytes() == other.tobytes()
    return bool((_distance(one, other) <= _ROUNDED_TWICE).all())


def _distance(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return how far ``other`` lies from ``one``, in units in the last place of its own type at ``one``."""
    target = ir.DataType.from_numpy(other.dtype)
    wide, narrow = one.astype(np.float64), other.astype(np.float64)
    if target not in LARGEST:
        return np.where(wide == narrow, 0.0, np.inf)
    digits, least = (10, -14) if target == ir.DataType.FLOAT16 else (7, -126)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.clip(np.floor(np.log2(np.abs(wide))), least, None)
        off = np.abs(narrow - wide) / np.exp2(exponent - digits)
    same = (wide == narrow) | (np.isnan(wide) & np.isnan(narrow))
    # the mask constants of attention are kept finite: see the conversion
    kept = same | _at_limit(wide, narrow, LARGEST[target])
    return np.where(kept, 0.0, np.where(np.isnan(off), np.inf, off))


def _at_limit(wide: npt.NDArray[np.float64], narrow: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.bool_]:
    """Return where ``narrow`` lies at the ``limit`` that ``wide`` is beyond."""
    beyond: npt.NDArray[np.bool_] = (np.abs(wide) > limit) & (narrow == np.copysign(limit, wide))
    return beyond
