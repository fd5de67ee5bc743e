"""A residual stream: the values that are centred together, or not at all.

    C = I - 11ᵀ/N over the features.   C (a + b) = C a + C b,   C (s x) = s C x,   C (move x) = move (C x)

So from one value the features can be followed, both ways, through sums, scalings that are equal for all
features, and whatever only moves elements or averages over other axes. Where that ends stand the *writers*,
which must be centrable, and the *readers*, which must not see the difference: LN(C x) = LN(x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan, Slot, Step
from normdeploy.graph import operator

Ends = tuple[dict[int, int], dict[int, int]]
"""The inputs and the outputs of a node that belong to a stream, each with the axis of its features."""

_SUMS = frozenset({"Add", "Sub", "Sum"})
_SCALINGS = frozenset({"Mul", "Div"})
_ANNIHILATES = 1e-12
"""Largest sum of a column, relative to the sum of its sizes, of a weight that annihilates the mean."""


@dataclass
class Stream:
    """What was found, following the features from one value.

    Attributes:
        size: the number of features.
        axes: every value of the stream, with the axis of its features.
        weights: every constant that writes into it: the slot, the axis over which to centre it, or None
            where it is equal for all features and centring leaves nothing.
        norms: the LayerNormalizations that read it.
        writers: the nodes that write into it.
        problems: why it cannot be centred; empty where it can.
    """

    size: int
    axes: dict[ir.Value, int] = field(default_factory=dict)
    weights: dict[Slot, int | None] = field(default_factory=dict)
    norms: list[ir.Node] = field(default_factory=list)
    writers: dict[ir.Node, None] = field(default_factory=dict)
    problems: list[Refused] = field(default_factory=list)


def stream_at(state: GraphState, norm: ir.Node) -> Stream:
    """Return the stream that a LayerNormalization reads, followed to all its ends.

    Raises:
        Refused: the norm does not normalize features of a known number.
    """
    value = norm.inputs[0]
    shape = () if value is None else state.view.require_shape(value, norm)
    if value is None or not shape or not isinstance(size := shape[-1], int) or size < 2:
        raise Refused("NF014", "the number of its features is not fixed", norm)
    stream = Stream(size)
    _Explorer(state, stream).follow(value, len(shape) - 1)
    return stream


class _Explorer:
    """Follows the features of one stream; what stops it is noted, and the rest is still followed."""

    def __init__(self, state: GraphState, stream: Stream) -> None:
        self.state, self.view, self.stream = state, state.view, stream
        self.pending: list[ir.Value] = []

    def follow(self, value: ir.Value, axis: int) -> None:
        """Visit every value that the features of ``value`` come from or go to."""
        self._join(value, axis)
        while self.pending:
            value = self.pending.pop()
            self._note(self._look_up, value)
            for use in dict.fromkeys(value.uses()):
                self._note(self._look_down, value, use.node, use.idx)

    def _note(self, look: Callable[..., None], *arguments: object) -> None:
        try:
            look(*arguments)
        except Refused as refusal:
            self.stream.problems.append(refusal)

    def _join(self, value: ir.Value, axis: int) -> None:
        known = self.stream.axes.get(value)
        if known is None:
            self.stream.axes[value] = axis
            self.pending.append(value)
        elif known != axis:
            raise Refused("NF323", f"{value.name} holds the features along two axes")

    # -- one value -----------------------------------------------------------------------------

    def _look_up(self, value: ir.Value) -> None:
        if value.is_graph_output():
            self.stream.problems.append(Refused("NF002", self.view.told_output(value)))
        node = value.producer()
        if node is None:
            raise Refused("NF003", self.view.told_input(value))
        self.state.position(node)
        axis, output = self.stream.axes[value], node.outputs.index(value)
        ends = self._ends(node, None, output, axis)
        if ends is not None:
            self._connect(node, ends)
        else:
            self.stream.writers[node] = None
            self._write(node, output, axis)

    def _look_down(self, value: ir.Value, node: ir.Node, index: int) -> None:
        self.state.position(node)
        axis = self.stream.axes[value]
        ends = self._ends(node, index, None, axis)
        if ends is not None:
            self._connect(node, ends)
        elif operator(node) == "LayerNormalization" and index == 0:
            self._read_by_norm(node, axis)
        elif not states(node).shape_only and not self._is_annihilated(node, index, axis):
            raise Refused("NF321", "what reads it keeps the mean", node)

    def _connect(self, node: ir.Node, ends: Ends) -> None:
        inputs, outputs = ends
        for index, axis in outputs.items():
            self._join(node.outputs[index], axis)
        for index, axis in inputs.items():
            self._source(node, index, axis)

    def _source(self, node: ir.Node, index: int, axis: int) -> None:
        """Enter an input that belongs to the stream: a constant writes into it, anything else is followed."""
        value = node.inputs[index]
        if value is None:
            return
        shape = self.view.require_shape(value, node)
        whole = 0 <= axis < len(shape) and shape[axis] == self.stream.size
        if not self.view.is_constant(value):
            if axis < 0 or (isinstance(shape[axis], int) and not whole):
                raise Refused("NF323", f"{value.name} is broadcast over the features", node)
            self._join(value, axis)
            return
        if not self.view.is_float(value):
            raise Refused("NF103", f"{value.name} is not floating-point", node)
        if not whole and 0 <= axis < len(shape) and shape[axis] != 1:
            raise Refused("NF323", f"{value.name} does not have the features along one axis", node)
        self.stream.weights[node, index] = axis if whole else None
        self.stream.writers[node] = None

    # -- what features pass through ------------------------------------------------------------

    def _ends(self, node: ir.Node, index: int | None, output: int | None, axis: int) -> Ends | None:
        """Return where the features of one end of ``node`` are at its other ends; None where they do not pass."""
        if operator(node) in _SUMS:
            return self._through_sum(node, index, axis)
        if operator(node) in _SCALINGS:
            return self._through_scaling(node, index, axis)
        if operator(node) in ("Concat", "Split"):
            return self._through_parts(node, axis)
        if operator(node) == "Cast":
            floats = all(self.view.is_float(value) for value in (*node.inputs, *node.outputs) if value is not None)
            return ({0: axis}, {0: axis}) if floats else None
        if states(node).carries and index in (None, 0) and output in (None, 0):
            return self._through_mover(node, axis, upward=output is not None)
        return None

    def _through_sum(self, node: ir.Node, index: int | None, axis: int) -> Ends:
        rank = self.view.require_rank(node.outputs[0], node)
        ranks = [0 if value is None else self.view.require_rank(value, node) for value in node.inputs]
        behind = axis - (rank if index is None else ranks[index])
        return {i: own + behind for i, own in enumerate(ranks)}, {0: rank + behind}

    def _through_scaling(self, node: ir.Node, index: int | None, axis: int) -> Ends | None:
        """Return a product with what is equal for all features; what is not so keeps the mean, or writes one."""
        rank = self.view.require_rank(node.outputs[0], node)
        shapes = [() if value is None else self.view.require_shape(value, node) for value in node.inputs]
        behind = axis - (rank if index is None else len(shapes[index]))
        inputs = (0,) if operator(node) == "Div" else (0, 1)
        for data in inputs if index is None else (index,):
            other = shapes[1 - data]
            equal = -behind > len(other) or other[behind] == 1
            if data in inputs and equal and -behind <= len(shapes[data]) and shapes[data][behind] == self.stream.size:
                return {data: len(shapes[data]) + behind}, {0: rank + behind}
        return None

    def _through_parts(self, node: ir.Node, axis: int) -> Ends | None:
        rank = self.view.require_rank(node.outputs[0], node)
        if self.view.attr(node, "axis", 0) % rank == axis:
            return None
        inputs = range(len(node.inputs) if operator(node) == "Concat" else 1)
        return dict.fromkeys(inputs, axis), dict.fromkeys(range(len(node.outputs)), axis)

    def _through_mover(self, node: ir.Node, axis: int, *, upward: bool) -> Ends:
        """Ask the operator table where a map over the features would go: there go the features."""
        step = Step(self.view, node, Plan(node, self.state.committed))
        row = states(node)
        given = node.outputs[0] if upward else step.data()
        probe = _probe(self.stream.size, axis, self.view.require_rank(given, node))
        if upward and row.up is not None:
            found = row.up(step, [probe, *[None] * (len(node.outputs) - 1)])
            return {index: _axis_of(step, m, probe) for index, m in found.items()}, {0: axis}
        assert row.down is not None, "a mover lets maps pass both ways"
        (moved, *_) = row.down(step, [probe, *[None] * (len(node.inputs) - 1)])
        return {0: axis}, {} if moved is None else {0: _axis_of(step, moved, probe)}

    # -- writers -------------------------------------------------------------------------------

    def _write(self, node: ir.Node, output: int, axis: int) -> None:
        """Note the weights of a writer that are to be centred."""
        write = states(node).centre if output == 0 else None
        if write is None:
            raise Refused("NF322", "what writes into it cannot be centred", node)
        self.view.require_known_attributes(node)
        step = Step(self.view, node, Plan(node, self.state.committed))
        for feature in write(step, axis):
            if feature.added:
                self._source(node, feature.index, feature.axis)
            elif step.edit(feature.index) is None:
                raise step.refuse("NF101", "a weight that writes into it is not constant")
            else:
                self.stream.weights[node, feature.index] = feature.axis

    # -- readers -------------------------------------------------------------------------------

    def _read_by_norm(self, node: ir.Node, axis: int) -> None:
        step = Step(self.view, node, Plan(node, self.state.committed))
        if axis != step.rank() - 1 or step.attr("axis", -1) % step.rank() != axis:
            raise step.refuse("NF324", "a norm that reads it normalizes other axes than its features")
        if self.view.is_used(node, 1) or self.view.is_used(node, 2):
            raise step.refuse("NF211", "the mean or deviation of a norm that reads it is used")
        if node not in self.stream.norms:
            self.stream.norms.append(node)

    def _is_annihilated(self, node: ir.Node, index: int, axis: int) -> bool:
        """Return True if a linear layer has columns that sum to 0, so that the mean does not reach its output."""
        if operator(node) not in ("MatMul", "Gemm") or index != 0:
            return False
        step = Step(self.view, node, Plan(node, self.state.committed))
        weight = step.edit(1)
        if weight is None or len(weight.shape) < 2 or axis != step.rank() - 1 or step.attr("transA", 0):
            return False
        exact, over = weight.exact(), -1 if step.attr("transB", 0) else -2
        return bool(np.all(np.abs(exact.sum(axis=over)) <= _ANNIHILATES * np.abs(exact).sum(axis=over)))


def _probe(size: int, axis: int, rank: int) -> AffineMap:
    """Return a map whose scale tells the features apart."""
    shape = tuple(size if i == axis else 1 for i in range(rank))
    return AffineMap(np.arange(2.0, size + 2.0).reshape(shape), np.zeros((1,) * rank))


def _axis_of(step: Step, m: AffineMap, probe: AffineMap) -> int:
    """Return the axis along which all features stand in order."""
    if len(m.axes) != 1 or not np.array_equal(m.scale.reshape(-1), probe.scale.reshape(-1)):
        raise step.refuse("NF323", "it takes the features apart")
    return m.axes[0]
