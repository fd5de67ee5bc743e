"""A plan: everything that one map's journey would change, as data, before anything is changed.

For every value that the journey touches the plan holds what became of it:

    up      new = map(old)    the map now acts earlier: the value already carries it
    down    old = map(new)    the map now acts later: the value does not carry it yet

Every other value keeps its meaning. That is the certificate which :mod:`normdeploy.fold.proof.commute` checks,
operator by operator, without knowing the rules that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import ONE, Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.operators.basics import is_quantized

Slot = tuple[ir.Node, int]
"""A parameter of an operator: the node and the index of its input."""


@dataclass
class Plan:
    """What would change: values, stored tensors, attributes, operator types, and what stays in place of each map.

    ``choices`` are the inputs that may take the map of an operator of which one takes all of it: the first does.
    """

    source: ir.Node
    committed: Mapping[Slot, Edit]
    up: dict[ir.Value, AffineMap] = field(default_factory=dict)
    down: dict[ir.Value, AffineMap] = field(default_factory=dict)
    edits: dict[Slot, Edit] = field(default_factory=dict)
    attributes: dict[tuple[ir.Node, str], Any] = field(default_factory=dict)
    kinds: dict[ir.Node, str] = field(default_factory=dict)
    residues: dict[ir.Node, AffineMap | None] = field(default_factory=dict)
    through: list[ir.Node] = field(default_factory=list)
    into: list[ir.Node] = field(default_factory=list)
    choices: dict[ir.Node, list[int]] = field(default_factory=dict)

    def touched(self) -> list[ir.Node]:
        """Every node next to a value that the plan maps, each once."""
        nodes: dict[ir.Node, None] = dict.fromkeys(self.residues)
        for value in (*self.up, *self.down):
            if (producer := value.producer()) is not None:
                nodes[producer] = None
            nodes.update(dict.fromkeys(use.node for use in value.uses()))
        nodes.update(dict.fromkeys(node for node, _ in self.edits))
        return list(nodes)


@dataclass(frozen=True)
class Step:
    """One operator on the journey, as its rule sees it: the node, the graph around it, the edits it may make."""

    view: View
    node: ir.Node
    plan: Plan

    def refuse(self, reason: str, fix: str = "") -> Refused:
        """The refusal to raise, naming this node."""
        return Refused(reason, self.node, fix)

    def input(self, index: int) -> ir.Value | None:
        """Input ``index``, or None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def data(self, index: int = 0) -> ir.Value:
        """Input ``index``, which the operator's specification requires."""
        value = self.input(index)
        if value is None:
            raise self.refuse(f"input {index} is missing")
        return value

    def rank(self, index: int = 0) -> int:
        """The rank of input ``index``."""
        return self.view.need_rank(self.data(index), self.node)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, as this plan would leave it."""
        return self.plan.attributes.get((self.node, name), self.view.attr(self.node, name, default))

    def choose(self, inputs: list[int]) -> int:
        """Return which of ``inputs`` takes the map: the first, in another journey one of the others."""
        if not inputs:
            raise self.refuse("each factor is broadcast along the axis of the map, or summed over it")
        return self.plan.choices.setdefault(self.node, inputs)[0]

    def edit(self, index: int) -> Edit | None:
        """The edit of parameter ``index`` so far (an empty one where untouched); None if it is not constant."""
        slot = (self.node, index)
        known = self.plan.edits.get(slot) or self.plan.committed.get(slot)
        if known is not None:
            return known
        tensor = self.view.constant(self.input(index))
        return None if tensor is None else Edit(tensor, tensor.dtype)

    def put(self, index: int, edit: Edit) -> None:
        """Let parameter ``index`` become ``edit``."""
        self.plan.edits[self.node, index] = edit

    def scale_weight(self, index: int, *, left: Array = ONE, right: Array = ONE) -> None:
        """Multiply the weight at input ``index``: itself, or where it is quantized its scale."""
        edit = self.edit(index)
        if edit is not None:
            self.put(index, edit.scaled(left=left, right=right))
        else:
            self._scale_quantized(self.data(index), left, right)
        self.absorbed()

    def absorbed(self) -> None:
        """Note that this node's weights took a map."""
        if self.node not in self.plan.into:
            self.plan.into.append(self.node)

    def _scale_quantized(self, weight: ir.Value, left: Array, right: Array) -> None:
        producer = weight.producer()
        if producer is None or not is_quantized(producer):
            raise self.refuse("its weight is not constant")
        step = Step(self.view, producer, self.plan)
        scale = step.edit(1)
        if scale is None or not self.view.is_constant(producer.inputs[0]) or step.attr("block_size", 0):
            raise self.refuse("its quantized weight has no constant scale per channel")
        if (
            len(producer.inputs) > 2
            and producer.inputs[2] is not None
            and not self.view.is_constant(producer.inputs[2])
        ):
            raise self.refuse("its quantized weight has no constant zero point")
        if len(weight.uses()) > 1:
            raise self.refuse("its quantized weight has other readers")
        if np.any(right != 1.0):
            raise self.refuse("its weight is quantized, and a scale per input channel does not fit its scale")
        if np.any(left <= 0):
            raise self.refuse("its weight is quantized, and a quantization scale cannot be zero or negative")
        rank = step.rank()
        left = left.reshape((1,) * (rank - left.ndim) + left.shape)  # over the last axes, as it broadcasts
        step.put(1, scale.scaled(left=_as_quantization_scale(step, left)))
        before = self.plan.up.get(weight, AffineMap.identity(rank))
        self.plan.up[weight] = AffineMap(left, np.zeros((1,) * rank)).after(before)


def _as_quantization_scale(step: Step, left: Array) -> Array:
    """``left``, one factor an output channel, in the shape of the scale of a DequantizeLinear."""
    scale_shape = step.view.need_shape(step.data(1), step.node)
    varying = [axis for axis, size in enumerate(left.shape) if size != 1]
    if not varying:
        return left.reshape(())
    axis = step.attr("axis", 1) % left.ndim
    if varying != [axis] or scale_shape != (left.shape[axis],):
        raise step.refuse("its weight is quantized per tensor or over another axis", "quantize it per output channel")
    return left.reshape(-1)
