"""Translation validation: a plan counts only when every operator it touches is seen to commute with its maps.

A plan says of each value what became of it (``up``: new = map(old); ``down``: old = map(new)); every other
value keeps its meaning. So it is right if and only if for each operator next to a mapped value

    inputs related as the plan says   ⟹   outputs related as the plan says

and that square is executed here: in float64, with the unrounded edits, on zeros and on random values, one
operator at a time, so that what is not linear (ReLU, MaxPool) is probed by itself, around its breakpoints.
The executors know nothing of the rules. After Alive2 (Lopes et al., PLDI 2021), for linear algebra.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.operators.basics import is_quantized
from normdeploy.fold.operators.rows import Nature
from normdeploy.fold.operators.table import TABLE, run, states
from normdeploy.fold.plan import Plan, Slot
from normdeploy.fold.proof.errors import worst_channel
from normdeploy.fold.proof.probes import input_shapes, normal, symbol_sizes
from normdeploy.graph import operator

TOLERANCE = 1e-12
"""Largest error of a channel, relative to the magnitudes that were added up in it."""

_SEED = 20150211
_LARGEST_DRAWN = 1 << 26
"""Elements of an input that is drawn: half a GiB."""


@dataclass(frozen=True)
class Pair:
    """One value before and after the plan, for related inputs."""

    old: Array
    new: Array


def residual(plan: Plan, view: View, committed: Mapping[Slot, Edit]) -> float:
    """Return the largest relative error, per channel, over all squares of ``plan``.

    Raises:
        Refused: a square does not commute, or cannot be executed: the plan is not proven.
    """
    worst = 0.0
    for value in (*plan.up, *plan.down):
        if value.is_graph_output():
            raise Refused("NF404", f"validation: {view.told_output(value)} and would change")
    last: dict[ir.Node, int] = {}  # looked for once: a plan may edit thousands of nodes
    for node, index in plan.edits:
        last[node] = max(index, last.get(node, 0))
    for node in plan.touched():
        worst = max(worst, _Square(plan, view, committed, node, last.get(node, 0)).error())
    return worst


def square(plan: Plan, view: View, committed: Mapping[Slot, Edit], node: ir.Node) -> float:
    """Return the largest relative error, per channel, of ``node`` alone; raises as :func:`residual`."""
    last = max((index for edited, index in plan.edits if edited is node), default=0)
    return _Square(plan, view, committed, node, last).error()


class _Square:
    """One operator, run before and after the plan on related inputs; ``last`` is the last of them that it edits."""

    def __init__(self, plan: Plan, view: View, committed: Mapping[Slot, Edit], node: ir.Node, last: int) -> None:
        self.plan, self.view, self.committed, self.node, self.last = plan, view, committed, node, last
        self.maps: Mapping[ir.Value, AffineMap] = ChainMap(plan.down, plan.up)
        self.random = np.random.default_rng(_SEED)
        self.parameters: dict[int, Pair] = {}
        self.row = states(node)
        self.is_linear = self.row.nature is Nature.LINEAR

    def error(self) -> float:
        """Return the largest relative error of an output channel, over zero and random inputs."""
        self._require_signs()
        try:
            return max(self._trial(zero=True), self._trial(zero=False))
        except ValueError as error:  # numpy's word for shapes that do not fit
            raise self._broken("NF402", f"a map does not fit its probe ({error})") from error

    def _require_signs(self) -> None:
        """Refuse signs that sampling cannot establish as safe, around an operator that is not linear."""
        for value in (*self.node.inputs, *self.node.outputs):
            m = self.maps.get(value) if value is not None else None
            if m is None:
                continue
            if self.row.nature is Nature.HOMOGENEOUS and not (m.shifts_nothing and np.all(m.scale > 0)):
                raise self._broken("NF403", "only a positive scale without a shift passes a kink")
            if self.row.nature is Nature.MONOTONE and np.any(m.scale < 0):
                raise self._broken("NF403", "only a scale that is not negative passes a maximum")

    def _trial(self, *, zero: bool) -> float:
        pairs = self._inputs(zero)
        olds, news = self._before(pairs), self._after(pairs)
        if any(self.view.is_used(self.node, output) for output in range(len(olds), len(self.node.outputs))):
            raise self._broken("NF402", "an output that is used cannot be executed")
        if not any(old.size or self._is_empty(value) for value, old in zip(self.node.outputs, olds, strict=False)):
            raise self._broken("NF402", "a probe comes out empty")
        worst = 0.0
        for index, (value, old, new) in enumerate(zip(self.node.outputs, olds, news, strict=False)):
            error = self._compare(value, old, new, None)
            if error > TOLERANCE and self.is_linear:
                # Sums that cancel are not wrong: measure against what was added up.
                error = self._compare(value, old, new, self._summands(pairs)[index])
            if not error <= TOLERANCE:
                raise self._broken("NF401", f"relative error {error:.2g}")
            worst = max(worst, error)
        return worst

    def _is_empty(self, value: ir.Value) -> bool:
        return 0 in (self.view.shape(value) or ())

    def _before(self, pairs: list[Pair | None], *, sizes: bool = False) -> list[Array]:
        olds = [None if p is None else p.old for p in pairs]
        return self._run(operator(self.node), olds, self._attributes(new=False), sizes=sizes)

    def _after(self, pairs: list[Pair | None], *, sizes: bool = False) -> list[Array]:
        if self.node not in self.plan.remainders:
            news = [None if p is None else p.new for p in pairs]
            kind = self.plan.kinds.get(self.node, operator(self.node))
            return self._run(kind, news, self._attributes(new=True), sizes=sizes)
        x, remainder = self._data(pairs), self.plan.remainders[self.node]
        if remainder is None:
            return [x]
        return [np.abs(remainder.scale) * x + np.abs(remainder.shift) if sizes else remainder(x)]

    def _summands(self, pairs: list[Pair | None]) -> list[Pair]:
        """Return the sizes of what a linear operator adds up, before and after: itself, on absolute values."""
        sizes = [None if p is None else self._sizes(index, p) for index, p in enumerate(pairs)]
        olds, news = self._before(sizes, sizes=True), self._after(sizes, sizes=True)
        return [Pair(np.abs(old), np.abs(new)) for old, new in zip(olds, news, strict=True)]

    def _sizes(self, index: int, pair: Pair) -> Pair:
        """Return the sizes of what is added up in an input: a parameter may be what two others left of each other."""
        if pair.old.dtype.kind in "iu":  # indices
            return pair
        slot = (self.node, index)
        old, new = self.committed.get(slot), self.plan.edits.get(slot, self.committed.get(slot))
        return Pair(
            np.abs(pair.old) if old is None else old.summands(), np.abs(pair.new) if new is None else new.summands()
        )

    def _data(self, pairs: list[Pair | None]) -> Array:
        """Return the input of a map node that is not one of its constants, after the plan."""
        (index,) = [i for i, value in enumerate(self.node.inputs) if value is not None and not self.is_known(value)]
        pair = pairs[index]
        assert pair is not None
        return pair.new

    def _compare(self, value: ir.Value, old: Array, new: Array, added: Pair | None) -> float:
        """Return the largest relative error of a channel, against what was ``added`` up; None: against the numbers."""
        up, down = self.plan.up.get(value), self.plan.down.get(value)
        expected = old if up is None else up(old)
        actual = new if up is not None or down is None else down(new)
        if expected.shape != actual.shape:
            raise self._broken("NF401", f"shape {expected.shape} became {actual.shape}")
        equal = np.array_equal(expected, actual)
        if not (np.isfinite(expected).all() and (equal or np.isfinite(actual).all())):
            raise self._broken("NF402", "a probe is not finite")
        if equal:  # what only moves elements: no sizes are needed
            return 0.0
        sizes = added or Pair(np.abs(old), np.abs(new))
        if up is not None:
            magnitude = sizes.new + np.abs(up.scale) * sizes.old + np.abs(up.shift)
        elif down is not None:
            magnitude = sizes.old + np.abs(down.scale) * sizes.new + np.abs(down.shift)
        else:
            magnitude = sizes.old + sizes.new
        return worst_channel(np.abs(expected - actual), magnitude)

    def _broken(self, code: str, what: str) -> Refused:
        return Refused(code, f"validation: {what}", self.node)

    # -- probes --------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each input's probe."""
        return input_shapes(self.view, self.node, self.maps, self.is_known)

    def _inputs(self, zero: bool) -> list[Pair | None]:
        pairs: list[Pair | None] = []
        drawn: dict[ir.Value, Pair] = {}
        for index, value in enumerate(self.node.inputs):
            if value is None:
                pairs.append(self._new_parameter(index))
            elif self.is_known(value):
                pairs.append(self._parameter(value, index))
            else:
                if value not in drawn:
                    drawn[value] = self._drawn(value, index, zero)
                pairs.append(drawn[value])
        pairs.extend(self._new_parameter(index) for index in range(len(pairs), self.last + 1))
        return pairs

    def _drawn(self, value: ir.Value, index: int, zero: bool) -> Pair:
        shape = self.shapes[index]
        if (special := self._special(value)) is not None:
            return self._related(value, special)
        if (parameter := self._parameter_of_shape(value, shape)) is not None:
            return Pair(parameter, parameter)
        if math.prod(shape) > _LARGEST_DRAWN:
            raise self._broken("NF402", f"a probe of {math.prod(shape):,} numbers is too large")
        x = np.zeros(shape) if zero else normal(self.random, shape)
        m = self.maps.get(value)
        if not zero and not self.is_linear:
            x[self.random.random(shape) < 0.1] = 0.0  # ties and exact zeros
            if m is not None:
                x = self._around_breakpoint(x, m)
        return self._related(value, x)

    def _special(self, value: ir.Value) -> np.ndarray | None:
        """Return what the row draws for ``value``; None where standard normal numbers will do."""
        draws = self.row.probing.draws
        places = (index for index, other in enumerate(self.node.inputs) if other is value and index in draws)
        return next((draws[index](self.random, self.shapes) for index in places), None)

    def _related(self, value: ir.Value, x: np.ndarray) -> Pair:
        """Return ``x`` before and after the plan."""
        m = self.maps.get(value)
        if m is None:
            return Pair(x, x)
        return Pair(x, m(x)) if value in self.plan.up else Pair(m(x), x)

    def is_whole(self, value: ir.Value) -> bool:
        """Return whether ``value`` holds integers; where its type is not known, the operator tells."""
        if value.dtype is None and not self.view.is_constant(value):
            first = self.row.probing.integers
            return first is not None and value in self.node.inputs[first:]
        return not self.view.is_float(value)

    def _around_breakpoint(self, x: Array, m: AffineMap) -> Array:
        """Return a third of the probes near the value that the map sends to 0, however far away that is."""
        root = -m.shift / np.where(m.scale == 0, 1.0, m.scale)
        near = root * (1.0 + 0.5 * self.random.uniform(-1.0, 1.0, x.shape))
        return np.where(self.random.random(x.shape) < 1 / 3, near, x)

    def _parameter_of_shape(self, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return an input that is not constant and no data: a target shape, scales, or indices that any axis has."""
        whole = self.is_whole(value)
        if value in self.maps or not (whole or value is not self.node.inputs[0]):
            return None
        given = self.row.probing.given
        array = given(self, value, shape) if given is not None else None
        if array is None and whole:
            raise self._broken("NF402", f"its input {value.name} is not constant")
        return array

    def symbols(self) -> dict[str, int]:
        """Return what each named dimension of the data stands for."""
        return symbol_sizes(self.view, self.node, self.maps, self.is_known)

    # -- constants -----------------------------------------------------------------------------

    def is_known(self, value: ir.Value) -> bool:
        """Return whether ``value`` is a constant, or made of constants that are integers."""
        producer = value.producer()
        if producer is None or not is_quantized(producer):
            return self.view.is_constant(value)
        return all(item is None or self.view.is_constant(item) for item in producer.inputs)

    def _parameter(self, value: ir.Value, index: int) -> Pair:
        if index not in self.parameters:  # large, and the same in every trial
            self.parameters[index] = self._constant(value, index)
        return self.parameters[index]

    def constant(self, value: ir.Value, index: int) -> np.ndarray:
        """Return what the constant at input ``index`` held before the plan."""
        return self._parameter(value, index).old

    def _constant(self, value: ir.Value, index: int) -> Pair:
        producer = value.producer()
        if not self.view.is_constant(value) and producer is not None:
            return self._dequantized(producer)
        pair = self._stored(self.node, index)
        if index not in self.row.probing.resized:
            return pair
        return Pair(*(self.row.probing.resized[index](self, array) for array in (pair.old, pair.new)))

    def _stored(self, node: ir.Node, index: int) -> Pair:
        slot = (node, index)
        array = self.view.array(node.inputs[index])
        assert array is not None
        if slot in self.committed:
            old = self.committed[slot].exact()
        else:
            old = array if index in states(node).any_dtype else _float64(array)
        return Pair(old, self.plan.edits[slot].exact() if slot in self.plan.edits else old)

    def _new_parameter(self, index: int) -> Pair | None:
        slot = (self.node, index)
        if slot not in self.plan.edits:
            return None
        new = self.plan.edits[slot].exact()
        return Pair(np.zeros_like(new), new)

    def _dequantized(self, node: ir.Node) -> Pair:
        codes, scale = self._stored(node, 0), self._stored(node, 1)
        zero = self.view.array(node.inputs[2]) if len(node.inputs) > 2 else None
        attributes = {name: self.view.attr(node, name) for name in node.attributes}
        old, new = (
            run(operator(node), attributes, [integers, side, zero], self.view.opset)[0]
            for integers, side in ((codes.old, scale.old), (codes.new, scale.new))
        )
        return Pair(old, new)

    # -- running -------------------------------------------------------------------------------

    def _attributes(self, *, new: bool) -> dict[str, Any]:
        own = {name: self.view.attr(self.node, name) for name in self.node.attributes}
        if new:
            own |= {name: value for (node, name), value in self.plan.attributes.items() if node is self.node}
        return own

    def _run(
        self, op_type: str, inputs: list[Array | None], attributes: dict[str, Any], *, sizes: bool = False
    ) -> list[Array]:
        absolute = TABLE[op_type].absolute if sizes and op_type in TABLE else None
        if absolute is not None:  # nothing is taken from anything
            attributes, inputs = absolute(attributes, inputs)
        try:
            return run(op_type, attributes, inputs, self.view.opset, len(self.node.outputs))
        except Refused:
            raise
        except Exception as error:  # whatever the reference raises: what cannot be executed is not proven
            raise self._broken("NF402", f"it cannot be executed ({type(error).__name__}: {error})") from error


def _float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind in "fV" or "float" in array.dtype.name else array
