"""Einsum of an activation and a weight: a product over letters, as MatMul is one over rows and columns.

A map over axes whose letters the weight has goes into the weight, upward where they are letters of the result; a shift
that comes down is multiplied by the weight, and goes on behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import Channels
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators.basics import is_quantized
from normdeploy.fold.operators.biases import exact_weight
from normdeploy.fold.operators.rows import Maps, Nature, Row, Shift, only_first
from normdeploy.fold.operators.sizes import Known, Probing, Shape, fixed
from normdeploy.fold.plan import Step

_SMALL = (3, 4, 2, 5)
"""Sizes of letters that nothing pins."""


@dataclass(frozen=True)
class Terms:
    """The letters of an equation.

    Attributes:
        data: of the operand that is not constant.
        weight: of the other one.
        result: of the output.
        index: which operand the weight is.
    """

    data: str
    weight: str
    result: str
    index: int


def einsum_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Scale the weight over its letters in the result; an Einsum has no bias."""
    terms, m = _terms(step), only_first(step, outs)
    if not m.shifts_nothing:
        raise step.refuse("NF108", "an Einsum has no bias to take a shift")
    step.scale_weight(terms.index, left=_over_weight(step, terms, m.scale, terms.result))
    return {}


def einsum_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Scale the weight over its letters in the data; the shift, multiplied by the weight, goes on."""
    terms = _terms(step)
    m = only_first(step, [ins[1 - terms.index], ins[terms.index]])
    factor = _over_weight(step, terms, m.scale, terms.data)
    remainder = None if m.shifts_nothing else _shift(step, terms, m.shift)
    step.scale_weight(terms.index, right=factor)
    return [remainder]


def _terms(step: Step) -> Terms:
    operands = len(step.node.inputs)
    equation = _text(step.attr("equation")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    parts = left.split(",")
    if "." in equation:
        raise step.refuse("NF213", "its equation has an ellipsis")
    if operands != 2 or len(parts) != 2:
        raise step.refuse("NF213", "it has other than two operands")
    if not arrow:  # numpy's rule, and ONNX's: what occurs once, in the order of ASCII
        result = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    if any(len(set(term)) < len(term) for term in (*parts, result)):
        raise step.refuse("NF213", "its equation repeats a letter in one term")
    stored = [step.edit(i) is not None or is_quantized(step.data(i).producer()) for i in (0, 1)]
    if stored[0] == stored[1]:
        raise step.refuse("NF101", "neither operand is constant")
    index = int(stored[1])
    return Terms(parts[1 - index], parts[index], result, index)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _over_weight(step: Step, terms: Terms, factor: Array, letters: str) -> Array:
    """Return ``factor``, over ``letters``, over those of the weight."""
    shape = step.view.require_shape(step.data(terms.index), step.node)
    varied = [letter for letter, size in zip(letters, factor.shape, strict=True) if size != 1]
    if not set(varied) <= set(terms.weight):
        raise step.refuse("NF016", "the map varies over an axis that the weight does not have")
    order = [letters.index(letter) for letter in terms.weight if letter in letters]
    few = factor.squeeze(tuple(i for i, letter in enumerate(letters) if letter not in terms.weight))
    kept = [letter for letter in letters if letter in terms.weight]
    few = few.transpose([kept.index(letters[i]) for i in order])
    spread: Array = few.reshape([factor.shape[letters.index(x)] if x in letters else 1 for x in terms.weight])
    if any(n not in (1, dim) for n, dim in zip(spread.shape, shape, strict=True)):
        raise step.refuse("NF104", "the map would enlarge the weight")
    return spread


def _shift(step: Step, terms: Terms, shift: Array) -> AffineMap:
    """Return what the weight makes of ``shift``, over the letters of the result."""
    weight, sizes = exact_weight(step, terms.index), step.view.require_shape(step.data(1 - terms.index), step.node)
    shapes = dict(zip(terms.weight, weight.shape, strict=True))
    summed = set(terms.data) - set(terms.result)
    if any(sizes[terms.data.index(x)] != shapes.get(x) for x in summed):
        raise step.refuse("NF014", "how many elements of its data it adds up is not fixed by the weight")
    wide = np.broadcast_to(
        shift, [shapes[x] if x in summed else n for x, n in zip(terms.data, shift.shape, strict=True)]
    )
    moved: Array = np.einsum(f"{terms.data},{terms.weight}->{terms.result}", wide, weight)
    return AffineMap.of(1.0, moved, len(terms.result))


# -- the proof -------------------------------------------------------------------------------------


def evaluate(attributes: Mapping[str, Any], *operands: Array) -> Array:
    """Evaluate by the ONNX specification, Einsum-12: numpy's."""
    y: Array = np.einsum(_text(attributes["equation"]), *operands)
    return y


def probe_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape] | None:
    """Return a size for each letter: what constants and maps say, small where nobody does."""
    terms = _text(view.attr(node, "equation")).replace(" ", "").partition("->")[0].split(",")
    if len(terms) != len(node.inputs):
        return None
    sizes: dict[str, int] = {}
    for value, term in zip(node.inputs, terms, strict=True):
        shape = fixed(view, value, otherwise=0)
        stored = value is not None and known(value)
        sizes |= {x: n for x, n in zip(term, shape, strict=False) if n > 1 or (stored and x not in sizes)}
    small = dict(zip((x for x in dict.fromkeys("".join(terms)) if x not in sizes), _SMALL * 9, strict=False))
    return [tuple((small | sizes)[x] for x in term) for term in terms]


def _columns(step: Step) -> Channels:
    """Return a channel for each letter of the weight that is one of the result."""
    terms = _terms(step)
    return Channels(tuple(i for i, letter in enumerate(terms.weight) if letter in terms.result))


ROWS = (
    Row(
        ("Einsum",), einsum_up, einsum_down, nature=Nature.LINEAR, heavy=True, shift=Shift.STOPPED,
        parameters={None: _columns}, evaluate=evaluate, probing=Probing(shapes=probe_shapes),
    ),
)  # fmt: skip
