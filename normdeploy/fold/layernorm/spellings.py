"""The spellings of a norm, read backwards from the operator it ends in.

    LN(x)  = (x - μ) · v^(-1/2),   μ = mean(x),  v = mean((x - μ)²) + eps      (Ba et al. 2016, arXiv 1607.06450)
    RMS(x) =  x      · v^(-1/2),                 v = mean(x²) + eps            (Zhang & Sennrich 2019, arXiv 1910.07467)

No list of whole patterns: a small reader for each part (:mod:`.parts`), whose ways of being written add up to
all spellings. Constants that are multiplied in before the division ends are the norm's scale.
What looks like a norm and is none is refused with the reason; what does not look like one is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm import parts
from normdeploy.fold.layernorm.values import bare, first, made_by, same, second
from normdeploy.graph import operator

Kind = Literal["LayerNormalization", "RMSNormalization"]
Factors = tuple[ir.Value, ir.Value]

TERMINALS = frozenset({"Div", "Mul", "Add", "Sub"})
"""Operators that a spelled norm can end in."""


@dataclass(frozen=True, eq=False)
class Core:
    """A spelled norm.

    Attributes:
        kind: the operator it is.
        terminal: the node it ends in.
        data: what it normalizes.
        axes: the axes it normalizes over, counted from the front.
        epsilon: as the graph gives it.
        scale: the constants that are multiplied in before it ends; broadcasts against ``data`` from the right.
        bias: the constant that is added before it ends; None where there is none.
    """

    kind: Kind
    terminal: ir.Node
    data: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    scale: Array = field(default_factory=lambda: np.ones(()))
    bias: Array | None = None


def core_at(view: View, node: ir.Node) -> Core | None:
    """Return the norm that ends in ``node``; None where it does not look like one.

    Raises:
        Refused: it looks like a norm, and differs from one.
    """
    if operator(node) in ("Add", "Sub"):
        return _distributed(view, node)
    for numerator, factor, power in _quotients(node):
        if view.is_constant(numerator):
            continue
        factor, scale = _unscaled(view, factor) if power == 1 else (factor, np.ones(()))
        base, exponent = parts.power(view, factor, power)
        if exponent == -1 and parts.is_deviation_plus_epsilon(view, base):
            raise Refused("NF311", "its epsilon is added to the deviation, not to the variance", node)
        if exponent != -0.5:
            continue
        variance, epsilon = parts.split_epsilon(view, base)
        spread = parts.spread(view, variance, node)
        if spread is not None:
            return _core(view, node, numerator, spread, epsilon, scale)
    return None


def statistics(view: View, node: ir.Node) -> set[ir.Value]:
    """Return the means of squares that ``node`` divides by, where it looks like a norm; of a sum, all of its terms."""
    found: set[ir.Value] = set()
    pending = [node]
    while pending:
        term = pending.pop()
        if operator(term) in ("Add", "Sub", "Neg"):
            makers = [value.producer() for value in term.inputs if value is not None]
            pending += [maker for maker in makers if maker is not None and operator(maker) in TERMINALS | {"Neg"}]
            continue
        for _, factor, power in _quotients(term) if operator(term) in ("Mul", "Div") else ():
            base, exponent = parts.power(view, _unscaled(view, factor)[0], power)
            found |= {base} if exponent in (-0.5, -1) else set()
    return found


def _quotients(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, float]]:
    """Return what ``node`` multiplies by what, to which power."""
    left, right = node.inputs
    if left is None or right is None:
        return
    if operator(node) == "Div":
        yield left, right, -1.0
    else:
        yield left, right, 1.0
        yield right, left, 1.0


def _core(view: View, node: ir.Node, numerator: ir.Value, spread: parts.Spread, epsilon: float, scale: Array) -> Core:
    unscaled, inner = _unscaled(view, numerator)
    if spread.centred:
        own, by = parts.centred(view, numerator, node), scale
        if own is None:
            own, by = parts.centred(view, unscaled, node), scale * inner
        if own is None:
            raise Refused("NF312", "its numerator is not centred, but its variance is", node)
        if own[1] != spread.axes or not same(view, own[0], spread.of):
            raise Refused("NF312", "its numerator is centred with another mean than its variance", node)
        return Core("LayerNormalization", node, own[0], spread.axes, epsilon, by)
    if same(view, numerator, spread.of):
        return Core("RMSNormalization", node, numerator, spread.axes, epsilon, scale)
    if same(view, unscaled, spread.of):
        return Core("RMSNormalization", node, unscaled, spread.axes, epsilon, scale * inner)
    own = parts.centred(view, unscaled, node)
    if own is not None and same(view, own[0], spread.of):
        raise Refused("NF312", "its numerator is centred, but its mean square is not", node)
    raise Refused("NF312", "it divides by the mean square of another value", node)


def _unscaled(view: View, value: ir.Value) -> tuple[ir.Value, Array]:
    """Return ``value`` before it was multiplied by constants, and their product."""
    factor = np.ones(())
    while True:
        value = bare(view, value)
        node = made_by(value, "Mul")
        if node is None:
            return value, factor
        for constant, other in ((node.inputs[1], first(node)), (node.inputs[0], second(node))):
            array = view.exact(constant)
            if array is not None:
                factor, value = factor * array, other
                break
        else:
            return value, factor


# -- multiplied out --------------------------------------------------------------------------------


def _distributed(view: View, node: ir.Node) -> Core | None:
    """Return ``x k - μ k + β = (x - μ) k + β`` with ``k = γ v^(-1/2)``, as TensorFlow and Keras write it."""
    for left, products, bias in _minuends(view, node):
        for x, k in _factors(left):
            for mu, again in products:
                mean = parts.mean(view, mu) if same(view, k, again) else None
                if mean is None or mean.squares or mean.factor != 1 or not mean.fits or not same(view, x, mean.inner):
                    continue
                factor, scale = _unscaled(view, k)
                base, exponent = parts.power(view, factor, 1.0)
                variance, epsilon = parts.split_epsilon(view, base)
                spread = parts.spread(view, variance, node) if exponent == -0.5 else None
                if spread is not None and spread.centred and spread.axes == mean.axes and same(view, x, spread.of):
                    return Core("LayerNormalization", node, x, mean.axes, epsilon, scale, bias)
    return None


def _minuends(view: View, node: ir.Node) -> Iterator[tuple[ir.Value, list[Factors], Array | None]]:
    """Return ``a``, what ``b`` is the product of, and a constant ``c`` (or None) where ``node`` is ``a - b + c``."""
    if node.inputs[0] is None or node.inputs[1] is None:
        return
    if operator(node) == "Sub":
        yield first(node), list(_factors(second(node))), None
        return
    for a, other in ((first(node), second(node)), (second(node), first(node))):
        yield a, list(_negative_factors(other)), None
        difference, total = made_by(bare(view, other), "Sub"), made_by(bare(view, other), "Add")
        if difference is not None and (constant := view.exact(first(difference))) is not None:
            yield a, list(_factors(second(difference))), constant
        pairs = () if total is None else ((first(total), second(total)), (second(total), first(total)))
        for product, bias in pairs:
            if (constant := view.exact(bias)) is not None:
                yield a, list(_negative_factors(product)), constant


def _negative_factors(value: ir.Value) -> Iterator[Factors]:
    """Return the factors of what ``value`` is the negative of, as Keras writes it: ``(-μ) k``."""
    for left, right in _factors(value):
        if (negative := made_by(left, "Neg")) is not None:
            yield first(negative), right


def _factors(value: ir.Value) -> Iterator[Factors]:
    if (node := made_by(value, "Mul")) is not None:
        yield first(node), second(node)
        yield second(node), first(node)
