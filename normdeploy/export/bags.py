"""EmbeddingBag without a loop: the rows of each bag are added, or their maxima taken, by one scatter.

torch's own translation walks over bags and indices in two nested loops and collects the rows in a sequence: one row at
a time, and a session of ONNX Runtime dies of it in its constant folding.
"""

# No "from __future__ import annotations" here: the exporter reads the types from the signature.
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # its type stubs know no value of unknown dtype

_SUM, _MEAN, _MAX = range(3)


def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Reduce the rows of each bag; of a bag without rows the result is 0, as in torch's EmbeddingBag.cpp.

    Offsets must rise from 0, as torch asks for. An index that is ``padding_idx`` belongs to no bag.
    """
    del scale_grad_by_freq, sparse
    bags = op.Shape(offsets)
    bag = _bag_of_each(indices, offsets)
    if padding_idx is not None and padding_idx >= 0:
        bag = op.Where(op.Equal(indices, op.Constant(value_int=padding_idx)), bags, bag)
    rows = op.Gather(weight, indices)
    if per_sample_weights is not None:
        rows = op.Mul(rows, op.Unsqueeze(per_sample_weights, op.Constant(value_ints=[1])))
    one = op.Constant(value_ints=[1])
    beyond = op.Add(bags, one)  # one bag more, for what belongs to none
    counts = _scattered(beyond, bag, op.Expand(op.Constant(value_int=1), op.Shape(indices)), "add")
    result = _reduced(rows, bag, beyond, counts, mode)
    ends = op.Sub(bags, one) if include_last_offset else bags
    begin = op.Constant(value_ints=[0])
    unused = (op.Identity(bag) for _ in range(3))  # what serves the gradient
    return op.Slice(result, begin, ends, begin), *unused


def _bag_of_each(indices: Any, offsets: Any) -> Any:
    """Return which bag each index is in: how many offsets there are up to its place, less one."""
    one = op.Constant(value_int=1)
    places = op.Add(op.Shape(indices), op.Constant(value_ints=[1]))  # an offset may be behind the last index
    begun = _scattered(places, offsets, op.Expand(one, op.Shape(offsets)), "add")
    begin = op.Constant(value_ints=[0])
    return op.Slice(op.Sub(op.CumSum(begun, op.Constant(value_int=0)), one), begin, op.Shape(indices), begin)


def _scattered(shape: Any, index: Any, values: Any, reduction: str, start: Any = None) -> Any:
    """Return ``values`` reduced by ``index`` into a tensor of ``shape``, which begins as ``start``, else as 0."""
    start = op.CastLike(op.Constant(value_float=0.0) if start is None else start, values)
    return op.ScatterElements(op.Expand(start, shape), index, values, axis=0, reduction=reduction)


def _reduced(rows: Any, bag: Any, bags: Any, counts: Any, mode: int) -> Any:
    width = op.Shape(rows, start=1, end=2)
    column = op.Constant(value_ints=[1])
    index = op.Expand(op.Unsqueeze(bag, column), op.Shape(rows))
    shape = op.Concat(bags, width, axis=0)
    if mode != _MAX:
        total = _scattered(shape, index, rows, "add")
        if mode == _SUM:
            return total
        divisor = op.Max(counts, op.Constant(value_int=1))
        return op.Div(total, op.CastLike(op.Unsqueeze(divisor, column), rows))
    largest = _scattered(shape, index, rows, "max", op.Constant(value_float=float("-inf")))
    empty = op.Unsqueeze(op.Equal(counts, op.Constant(value_int=0)), column)
    return op.Where(empty, op.CastLike(op.Constant(value_float=0.0), rows), largest)


_ATEN: Any = torch.ops.aten
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = dict.fromkeys(
    (
        _ATEN.embedding_bag.padding_idx,
        _ATEN.embedding_bag.default,
        _ATEN._embedding_bag.default,
        _ATEN._embedding_bag_forward_only.default,
    ),
    embedding_bag,
)
