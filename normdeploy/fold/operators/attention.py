"""Attention: ``softmax(c Q Kᵀ + mask) V`` by heads, as ONNX has it and as ONNX Runtime has it.

It is linear in V, and the rows of the softmax add up to 1: a map over heads and features of V passes, in both
directions, its shift only where every query sees some key. Of Q and K a scale that comes down to one number goes into
``c``: only their product is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators.rows import Maps, Row, Shift, all_but, along, only_first, require_not_over
from normdeploy.fold.operators.sizes import Known, Probe, Probing, Shape, fixed, spanned
from normdeploy.fold.plan import Step

_MASK, _LENGTHS, _PAST = 3, 6, (4, 5)
_EQUAL = 1e-14
"""Largest relative difference of products that are one number."""


def attention_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Send the map of the output up to V."""
    return {2: _of_values(step, only_first(step, outs), upward=True)}


def attention_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Send the map of V down, and put the scales of Q and K into the scale of their product."""
    queries, keys, values, *others = ins
    if any(m is not None for m in others):
        raise step.refuse("NF011", "the map is on its mask or cache")
    if queries is not None or keys is not None:
        _scale_product(step, queries, keys)
    passed = None if values is None else _of_values(step, values, upward=False)
    return [passed, *[None] * (len(step.node.outputs) - 1)]


# -- V ---------------------------------------------------------------------------------------------


def _of_values(step: Step, m: AffineMap, *, upward: bool) -> AffineMap:
    """Return the map of V that makes that of the output, or the other way round."""
    _require_no_cache(step, values=True)
    require_not_over(step, m, [m.rank - 2])
    if not m.shifts_nothing:
        _require_a_key_for_each_query(step)
    return _regrouped(step, m, upward=upward)


def _regrouped(step: Step, m: AffineMap, *, upward: bool) -> AffineMap:
    """Return ``m`` over the heads of queries as one over those of keys (``upward``), each of which some queries
    share.
    """
    if not set(m.axes) - {0, m.rank - 1 if m.rank == 4 else 0}:
        return m
    queries, keys = _heads(step, m.rank)
    if queries == keys:
        return m
    share = queries // keys

    def repeated(array: Array) -> Array:
        if m.rank == 4:
            return np.repeat(array, share, axis=1)
        by_head = array.reshape(*array.shape[:2], keys, -1)
        return np.repeat(by_head, share, axis=2).reshape(*array.shape[:2], -1)

    def first(array: Array) -> Array:
        if m.rank == 4:
            return array[:, ::share]
        by_head = array.reshape(*array.shape[:2], queries, -1)
        return by_head[:, :, ::share].reshape(*array.shape[:2], -1)

    if not upward:
        return m.moved(repeated)
    one = m.moved(first)
    if not one.equals(m) and not (one.axes and one.moved(repeated).equals(m)):
        raise step.refuse("NF018", "heads that share their values need different maps")
    return one


def _heads(step: Step, rank: int) -> tuple[int, int]:
    """Return how many heads queries have, and keys and values."""
    if rank == 3:
        counts = [step.attr("q_num_heads"), step.attr("kv_num_heads")]
    else:
        counts = [step.view.require_shape(step.data(index), step.node)[1] for index in (0, 2)]
    if not all(isinstance(count, int) for count in counts):
        raise step.refuse("NF014", "the number of its heads is not fixed")
    return counts[0], counts[1]


def _require_a_key_for_each_query(step: Step) -> None:
    windows = any(step.attr(f"{side}_window_size", -1) >= 0 for side in ("left", "right"))
    if windows or step.input(_MASK) is not None or step.input(_LENGTHS) is not None:
        raise step.refuse("NF201", "a query that may see no key comes out as 0, so a shift does not pass")


def _require_no_cache(step: Step, *, values: bool) -> None:
    used = step.view.is_used(step.node, 2 if values else 1)
    if used or any(step.input(index) is not None for index in _PAST):
        raise step.refuse("NF210", "a map does not pass its cache of keys and values")


# -- Q and K ---------------------------------------------------------------------------------------


def _scale_product(step: Step, queries: AffineMap | None, keys: AffineMap | None) -> None:
    for m in (queries, keys):
        if m is not None and not m.shifts_nothing:
            raise step.refuse("NF207", "a shift of queries or keys does more to their product than to scale it")
    if keys is not None:
        _require_no_cache(step, values=False)
    if step.view.is_used(step.node, 3):
        raise step.refuse("NF211", "the product of queries and keys is an output")
    put_scale(step, _scale(step) * _factor(step, queries, keys))


def _factor(step: Step, queries: AffineMap | None, keys: AffineMap | None) -> float:
    """Return the one number that both scales come to in every product."""
    both = [m for m in (queries, keys) if m is not None]
    rank = both[0].rank
    if all(not m.axes for m in both):
        return float(np.prod([m.scale.reshape(()) for m in both]))
    if len(both) < 2:
        raise step.refuse("NF208", "the scale varies over features of the queries or keys alone")
    left, right = (m.scale if rank == 4 else _by_head(step, m, count)
                   for m, count in zip(both, _heads(step, rank), strict=True))  # fmt: skip
    if left.ndim == right.ndim == 4 and 1 < right.shape[1] < left.shape[1]:
        right = np.repeat(right, left.shape[1] // right.shape[1], axis=1)
    product = left * right
    if product[..., :1, :].shape != product.shape or np.ptp(product) > _EQUAL * np.abs(product).max():
        raise step.refuse("NF208", "the scales of queries and keys do not come to one number")
    return float(product.flat[0])


def _by_head(step: Step, m: AffineMap, heads: int) -> Array:
    """Return the scale over (sample, position, head * feature) as one over (sample, head, position, feature)."""
    if m.size(2) == 1:
        return m.scale.reshape(m.scale.shape[0], 1, m.scale.shape[1], 1)
    return m.scale.reshape(*m.scale.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _scale(step: Step) -> float:
    given = step.attr("scale")
    if given:
        return float(given)
    size = step.view.require_shape(step.data(), step.node)[-1]
    heads = step.attr("q_num_heads", 1) if step.rank() == 3 else 1
    if not isinstance(size, int):
        raise step.refuse("NF014", "the number of features of a head is not fixed, on which its scale depends")
    return float(1.0 / np.sqrt(size // heads))


def put_scale(step: Step, scale: float) -> None:
    """Let the product be scaled by ``scale``, an attribute in float32 of which the root is taken."""
    if not np.finfo(np.float32).tiny <= scale <= np.finfo(np.float32).max:
        raise step.refuse("NF209", "its scale must be a positive float32 number")
    if step.data().dtype == ir.DataType.DOUBLE and float(np.float32(scale)) != scale:
        raise step.refuse("NF209", "its scale is a float32 number, which would lose digits of its float64 data")
    step.plan.attributes[step.node, "scale"] = scale
    step.absorbed()


# -- the proof -------------------------------------------------------------------------------------


def evaluate(
    attributes: Mapping[str, Any],
    q: Array,
    k: Array,
    v: Array,
    mask: np.ndarray | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    lengths: np.ndarray | None = None,
) -> list[Array]:
    """Evaluate by the ONNX specification, Attention-25: (samples, heads, positions, features), or (samples,
    positions, hidden).

    The output, and keys and values by head. A query that sees no key comes out as 0.
    """
    if past_key is not None or past_value is not None:
        raise NotImplementedError("no map passes a cache")
    rank, counts = q.ndim, [attributes.get(name) for name in ("q_num_heads", "kv_num_heads")]
    if rank == 3:
        q, k, v = (_split(a, int(n or 1)) for a, n in ((q, counts[0]), (k, counts[1]), (v, counts[1])))
    share = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(a, share, axis=1) for a in (k, v))
    logits = (attributes.get("scale") or 1.0 / np.sqrt(q.shape[-1])) * (q @ keys.swapaxes(-1, -2))
    if cap := attributes.get("softcap"):
        logits = cap * np.tanh(logits / cap)
    y = _softmax(_masked(attributes, logits, mask, lengths)) @ values
    return [y if rank == 4 else y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1), k, v]


def _split(array: Array, heads: int) -> Array:
    """Return (samples, positions, heads * features) as (samples, heads, positions, features)."""
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def _masked(attributes: Mapping[str, Any], logits: Array, mask: np.ndarray | None, lengths: np.ndarray | None) -> Array:
    queries, keys = np.indices(logits.shape[-2:])
    offset = np.zeros((1, 1, 1, 1)) if lengths is None else lengths.reshape(-1, 1, 1, 1) - logits.shape[-2]
    seen = np.ones(logits.shape, bool) if lengths is None else keys < lengths.reshape(-1, 1, 1, 1)
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    ahead = keys - (queries + offset)
    seen = seen & (ahead <= 0) if attributes.get("is_causal") else seen
    seen = seen & (ahead >= -left) if left >= 0 else seen
    seen = seen & (ahead <= right) if right >= 0 else seen
    if mask is not None and mask.dtype == bool:
        seen = seen & mask
    elif mask is not None:
        logits = logits + mask
    return np.where(seen, logits, -np.inf)


def _softmax(logits: Array) -> Array:
    largest = logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits - np.where(np.isfinite(largest), largest, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    weights: Array = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    return weights


def probe_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape] | None:
    """Return a shape for each input: three queries and four keys of two samples, where no constant says else."""
    rank = next((m.rank for m in maps), 0)
    if rank not in (3, 4):
        return None
    q, k, v = (list(fixed(view, value) or (2,) * rank) for value in node.inputs[:3])
    stored = [value is not None and known(value) for value in node.inputs]
    tokens = rank - 2  # the axis of the positions
    samples = next(
        (s[0] for s, constant in zip((q, k, v), stored, strict=False) if constant), spanned(maps).get(-rank, 2)
    )
    keys = next((s[tokens] for s, constant in zip((k, v), stored[1:], strict=False) if constant), 4)
    queries = q[tokens] if stored[0] else 3
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    if mask is not None and stored[_MASK]:
        rows, columns = (1, 1, *fixed(view, mask))[-2:]
        queries, keys = rows if rows > 1 else queries, columns if columns > 1 else keys
    for shape, positions in ((q, queries), (k, keys), (v, keys)):
        shape[0], shape[tokens] = samples, positions
    heads = q[1] if rank == 4 else int(view.attr(node, "q_num_heads", 1))
    whole = (q[0], heads, q[tokens], k[tokens])
    told = fixed(view, mask, otherwise=0) if mask is not None else ()
    wide = tuple(1 if n == 1 else whole[axis - len(told)] for axis, n in enumerate(told))
    shapes = [tuple(q), tuple(k), tuple(v), wide, (), (), (q[0],)]
    return shapes[: len(node.inputs)]


def _given(probe: Probe, value: ir.Value, shape: Shape) -> np.ndarray | None:
    """Return a mask that hides about half of all keys, and all of them from some query; from none to all keys of a
    sample.
    """
    index = probe.node.inputs.index(value)
    random = np.random.default_rng(0)
    if index == _MASK:
        hidden = random.random(shape) < 0.5
        return ~hidden if probe.is_whole(value) else np.where(hidden, -np.inf, random.standard_normal(shape))
    if index == _LENGTHS:
        return np.arange(shape[0]) * 2 + 1
    return None


ROWS = (
    Row(
        ("Attention",), attention_up, attention_down, since=23, heavy=True, shift=Shift.STOPPED,
        parameters={0: all_but(), 1: all_but(), 2: all_but(), None: along()}, evaluate=evaluate,
        probing=Probing(shapes=probe_shapes, given=_given),
    ),
)  # fmt: skip
