"""MultiHeadAttention of ONNX Runtime: one bias for queries, keys and values, which are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators import attention
from normdeploy.fold.operators.rows import Maps, Row, Shift, all_but, along, only_first
from normdeploy.fold.operators.sizes import Known, Probing, Shape, fixed
from normdeploy.fold.plan import Step

_BIAS, _PADDING, _ADDED, _CACHE = 3, 4, 5, (6, 7)


def multi_head_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Send a scale of the output up to V, and into its part of the bias."""
    m = only_first(step, outs)
    _scale_values(step, m, m.scale)
    return {2: m}


def multi_head_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Send a scale of V down, out of its part of the bias, and put one number on Q or K into the scale."""
    queries, keys, values, *others = (*ins, None, None)
    if any(m is not None for m in others):
        raise step.refuse("NF011", "the map is on its mask, bias or cache")
    if values is not None:
        if not values.scale.all():
            raise step.refuse("NF205", "a scale of 0 cannot be taken out of its bias")
        _scale_values(step, values, 1.0 / values.scale)
    numbers = [m for m in (queries, keys) if m is not None]
    if any(m.axes or not m.shifts_nothing for m in numbers) or (numbers and step.input(_BIAS) is not None):
        raise step.refuse("NF208", "of its queries and keys only one number passes, and only without a bias")
    if numbers:
        _require_tokens(step)
        size = step.view.require_shape(step.data(), step.node)[-1]
        if not isinstance(size, int):
            raise step.refuse("NF014", "the number of features of a head is not fixed, on which its scale depends")
        scale = step.attr("scale") or 1.0 / np.sqrt(size // step.attr("num_heads"))
        attention.put_scale(step, float(scale * np.prod([m.scale.reshape(()) for m in numbers])))
    return [values, *[None] * (len(step.node.outputs) - 1)]


def _require_tokens(step: Step) -> None:
    """Refuse inputs that are packed or laid out by head, and a cache."""
    if any(step.input(index) is None or step.rank(index) != 3 for index in (0, 1, 2)):
        raise step.refuse("NF210", "its queries, keys and values are not apart, each (samples, positions, features)")
    used = any(step.view.is_used(step.node, output) for output in range(1, len(step.node.outputs)))
    if used or any(step.input(index) is not None for index in _CACHE):
        raise step.refuse("NF210", "a map does not pass its cache of keys and values")


def _scale_values(step: Step, m: AffineMap, of_bias: Array) -> None:
    _require_tokens(step)
    if not m.shifts_nothing or set(m.axes) - {2}:
        raise step.refuse("NF015", "only a scale over its features passes it")
    if step.input(_BIAS) is None:
        return
    bias, size = step.edit(_BIAS), step.view.require_shape(step.data(2), step.node)[2]
    if bias is None or not isinstance(size, int):
        raise step.refuse("NF014", "its bias is not constant, or the number of its features is not fixed")
    factor = np.ones(bias.shape)
    factor[-size:] = of_bias.reshape(-1)
    step.put(_BIAS, bias.scaled(left=factor))


def evaluate_multi_head(
    attributes: Mapping[str, Any],
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    padding: np.ndarray | None = None,
    added: Array | None = None,
) -> list[Array]:
    """Evaluate by the ONNX Runtime, contrib operators, com.microsoft.MultiHeadAttention: one bias for Q, K and V,
    masks left out.
    """
    del padding, added  # the rows of the softmax add up to 1 whatever they hide
    if bias is not None:
        queries, keys, values = np.split(bias, [q.shape[-1], q.shape[-1] + k.shape[-1]])
        q, k, v = q + queries, k + keys, v + values
    heads = {"q_num_heads": attributes["num_heads"], "kv_num_heads": attributes["num_heads"]}
    return attention.evaluate({**heads, "scale": attributes.get("scale") or None}, q, k, v)


def _multi_head_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape]:
    """Return a shape for each input: three queries and four keys of two samples."""
    del maps, known
    sizes = [(2, 3), (2, 4), (2, 4)]
    shapes: list[Shape] = [(*size, *fixed(view, value)[2:]) for size, value in zip(sizes, node.inputs[:3], strict=True)]
    return [*shapes, *[()] * (len(node.inputs) - 3)]


ROWS = (
    Row(
        ("com.microsoft::MultiHeadAttention",), multi_head_up, multi_head_down, heavy=True, shift=Shift.STOPPED,
        parameters={0: all_but(), 1: all_but(), 2: all_but(), _BIAS: along()}, evaluate=evaluate_multi_head,
        probing=Probing(
            shapes=_multi_head_shapes,
            draws={_PADDING: lambda random, shapes: random.integers(0, 2, shapes[_PADDING])},
        ),
    ),
)  # fmt: skip
