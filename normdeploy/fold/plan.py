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
from normdeploy.fold.graph.granules import Granules, fits
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.operators.basics import is_norm, is_quantized

Slot = tuple[ir.Node, int]
"""A parameter of an operator: the node and the index of its input."""


@dataclass
class Plan:
    """What would change: values, stored tensors, attributes, operator types, and what remains in place of each map.

    ``growth`` tells how much larger values become, see :mod:`normdeploy.fold.ranges`.
    ``choices`` are the inputs that may take the map of an operator of which one takes all of it: the first does.
    """

    source: ir.Node
    committed: Mapping[Slot, Edit]
    up: dict[ir.Value, AffineMap] = field(default_factory=dict)
    down: dict[ir.Value, AffineMap] = field(default_factory=dict)
    edits: dict[Slot, Edit] = field(default_factory=dict)
    attributes: dict[tuple[ir.Node, str], Any] = field(default_factory=dict)
    kinds: dict[ir.Node, str] = field(default_factory=dict)
    remainders: dict[ir.Node, AffineMap | None] = field(default_factory=dict)
    through: list[ir.Node] = field(default_factory=list)
    into: dict[ir.Node, None] = field(default_factory=dict)
    choices: dict[ir.Node, list[int]] = field(default_factory=dict)
    growth: dict[ir.Value, float] = field(default_factory=dict)

    @property
    def has_norm(self) -> bool:
        """Return True if one of the maps that it takes is a norm."""
        return any(is_norm(node) for node in self.remainders)

    def touched(self) -> list[ir.Node]:
        """Return every node next to a value that the plan maps, each once."""
        nodes: dict[ir.Node, None] = dict.fromkeys(self.remainders)
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

    def refuse(self, code: str, reason: str, fix: str = "") -> Refused:
        """Return the refusal to raise, naming this node."""
        return Refused(code, reason, self.node, fix)

    def input(self, index: int) -> ir.Value | None:
        """Return input ``index``, or None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def data(self, index: int = 0) -> ir.Value:
        """Return input ``index``, which the operator's specification requires."""
        value = self.input(index)
        if value is None:
            raise self.refuse("NF013", f"input {index} is missing")
        return value

    def rank(self, index: int = 0) -> int:
        """Return the rank of input ``index``."""
        return self.view.require_rank(self.data(index), self.node)

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute, as this plan would leave it."""
        return self.plan.attributes.get((self.node, name), self.view.attr(self.node, name, default))

    def choose(self, inputs: list[int]) -> int:
        """Return which of ``inputs`` takes the map: the first, in another journey one of the others."""
        if not inputs:
            raise self.refuse("NF020", "each factor is broadcast along the axis of the map, or summed over it")
        return self.plan.choices.setdefault(self.node, inputs)[0]

    def edit(self, index: int) -> Edit | None:
        """Return the edit of parameter ``index`` so far (an empty one where untouched); None if it is not constant."""
        slot = (self.node, index)
        known = self.plan.edits.get(slot) or self.plan.committed.get(slot)
        if known is not None:
            return known
        tensor = self.view.constant(self.input(index))
        if tensor is None:
            return None
        untouched: Edit = self.view.recent.of(tensor, lambda held: Edit(held, held.dtype))
        return untouched

    def put(self, index: int, edit: Edit) -> None:
        """Let parameter ``index`` become ``edit``."""
        self.plan.edits[self.node, index] = edit

    def scale_weight(self, index: int, *, left: Array = ONE, right: Array = ONE) -> None:
        """Multiply the weight at input ``index``: itself, or where it is quantized its scale."""
        edit = self.edit(index)
        if edit is not None:
            self.put(index, edit.scaled(left=left, right=right))
        else:
            maker = self.data(index).producer()
            if maker is None or not is_quantized(maker):
                raise self.view.not_constant("its weight is", self.node, self.data(index))
            Quantized.behind(self, maker).scaled(left, right)
        self.absorbed()

    def absorbed(self) -> None:
        """Note that this node's weights took a map."""
        self.plan.into[self.node] = None

    def weight(self, index: int) -> Array | None:
        """Return the weight at input ``index`` in float64, as this plan would leave it; None if it is not constant."""
        edit = self.edit(index)
        if edit is not None:
            return edit.exact()
        maker = self.data(index).producer()
        return Quantized.behind(self, maker).exact() if maker is not None and is_quantized(maker) else None


@dataclass(frozen=True)
class Quantized:
    """A weight that is stored as integers: what dequantizes it, as a step of its own, with its three parameters."""

    step: Step
    codes: Edit
    scale: Edit
    zero: np.ndarray
    granules: Granules

    @classmethod
    def behind(cls, reader: Step, maker: ir.Node) -> Quantized:
        """Return the weight that ``maker`` dequantizes; a refusal where one of its parameters is not known."""
        step = Step(reader.view, maker, reader.plan)
        codes, scale = step.edit(0), step.edit(1)
        if codes is None or scale is None:
            raise reader.refuse("NF101", "its quantized weight has no constant integers and scale")
        zero = np.zeros(()) if step.input(2) is None else reader.view.array(step.input(2))
        if zero is None:
            raise reader.refuse("NF101", "its quantized weight has no constant zero point")
        axis = step.attr("axis", 1) % max(len(codes.shape), 1)
        granules = Granules(codes.shape, scale.shape, axis, step.attr("block_size", 0))
        return cls(step, codes, scale, granules.over(zero.astype(np.float64)), granules)

    def exact(self) -> Array:
        """Return the weight in float64."""
        weight: Array = (self.codes.exact() - self.zero) * self.granules.over(self.scale.exact())
        return weight

    def scaled(self, left: Array, right: Array) -> None:
        """Multiply the weight: its scale by sizes, its integers by signs; a factor of 0 leaves the zero point."""
        step, weight = self.step, self.step.node.outputs[0]
        if len(weight.uses()) > 1:
            raise step.refuse("NF005", "its quantized weight has other readers")
        factor = np.asarray(left * right)
        self._turn(np.sign(factor))
        sizes = self.granules.shared(np.where(factor == 0, 1.0, np.abs(factor)))
        if sizes is None and np.any(right != 1.0):
            raise step.refuse("NF120", "its weight is quantized, and a scale per input channel does not fit its scale")
        if sizes is None:
            what = "its weight is quantized per tensor or over another axis"
            raise step.refuse("NF120", what, "quantize it per output channel")
        step.put(1, self.scale.scaled(left=sizes))
        rank = len(self.granules.weight)
        m = AffineMap.of(factor, 0.0, rank)
        step.plan.up[weight] = m.after(step.plan.up.get(weight, AffineMap.identity(rank)))

    def _turn(self, signs: Array) -> None:
        """Mirror integers at the zero point where the sign is negative, and put it in place of those of sign 0."""
        if np.all(signs == 1):
            return
        if not self.codes.dtype.is_integer():
            raise self.step.refuse(
                "NF121", "its weight is quantized to floats, and not scaled by a number that is not positive"
            )
        turned = self.codes.scaled(left=signs).shifted(self.zero * (1.0 - signs))
        if not fits(turned.exact(), self.codes.dtype.numpy()):
            raise self.step.refuse("NF121", "its weight is quantized, and an integer of it has no negative in its type")
        self.step.put(0, turned)
