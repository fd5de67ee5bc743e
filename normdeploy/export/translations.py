"""Translations of torch operators to ONNX that differ from torch's own."""

# No "from __future__ import annotations" here: the exporter reads the types from the signature.
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.common import merge_dims
from onnxscript.function_libs.torch_lib.ops.core import (
    aten_as_strided,
    aten_index,
    aten_index_put,
    aten_native_batch_norm,
    aten_sort,
    aten_topk,
)
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch.onnx._internal.exporter._torchlib.ops.nn import aten_scaled_dot_product_attention_23

from normdeploy.export import bags, packed, pooling, recurrent

op: Any = opset18  # its type stubs know no value of unknown dtype


def _instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Any:
    """InstanceNorm with running statistics is BatchNormalization; torch's own detours over N * C channels."""
    del momentum, cudnn_enabled
    channels = op.Shape(x, start=1, end=2)
    if weight is None:
        weight = op.Expand(op.CastLike(op.Constant(value_float=1.0), x), channels)
    if bias is None:
        bias = op.Expand(op.CastLike(op.Constant(value_float=0.0), x), channels)
    if use_input_stats:
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)
    running_var, eps = _variance_and_eps(x, running_var, eps)
    return op.BatchNormalization(x, weight, bias, running_mean, running_var, epsilon=eps)


def _batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> Any:
    """BatchNorm in eval mode as torch's own translation has it, with an eps that is float64's in float64."""
    running_var, eps = _variance_and_eps(x, running_var, eps)
    return aten_native_batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)


def _variance_and_eps(x: Any, variance: Any, eps: float) -> tuple[Any, float]:
    """Return a variance and an eps of the same sum: ONNX's attribute is float32, where 1e-5 is off by 2.5e-8 of it.

    In float64 that is a million times what the computation loses. The rest, never below 0, goes to the variance.
    """
    if x.dtype != ir.DataType.DOUBLE:
        return variance, eps
    below = np.float32(eps)
    if float(below) > eps:
        below = np.nextafter(below, np.float32(-np.inf))
    rest = ir.tensor(np.array(eps - float(below)))
    return op.Add(variance, op.Constant(value=rest)), float(below)


def _as_strided(x: Any, size: Any, stride: Any, storage_offset: Any = None) -> Any:
    """A view that keeps shape and order is no Gather of all elements; AdaptiveAvgPool1d(1) ends in one."""
    if storage_offset in (None, 0) and _keeps_order(x.shape, size, stride):
        return op.Reshape(x, merge_dims(size), allowzero=1)
    return aten_as_strided(x, size, stride, storage_offset)


def _keeps_order(shape: Any, size: Sequence[Any], stride: Sequence[Any]) -> bool:
    """Return True if strides are those of a contiguous tensor of ``size``, and all sizes but the first are known to
    be its.
    """
    if shape is None or len(shape) != len(size) or list(shape[1:]) != list(size[1:]):
        return False
    if isinstance(size[0], int) and shape[0] != size[0]:
        return False
    elements = 1
    for dim, step in zip(size[:0:-1], stride[:0:-1], strict=True):
        if not isinstance(dim, int) or (dim != 1 and step != elements):
            return False
        elements *= dim
    return bool(stride[0] == elements)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention whose query may look at nothing returns zeros, as in PyTorch; torch's own returns a mean, or NaN."""
    q, k, v, mask = _in_four_axes(query, key, value, attn_mask)
    y = aten_scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, scale, enable_gqa)
    return _zero_where_blind(_in_its_axes(y, query, value), attn_mask)


def _attention_23(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """The same with the operator that ONNX has from opset 23 on."""
    q, k, v, mask = _in_four_axes(query, key, value, attn_mask)
    y = aten_scaled_dot_product_attention_23(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return _zero_where_blind(_in_its_axes(y, query, value), attn_mask)


def _in_four_axes(query: Any, key: Any, value: Any, mask: Any) -> list[Any]:
    """Return all with a batch, heads, positions and elements, as torch's own asks for.

    What is missing stands in front, as in broadcasting. What is more, as the windows of Hiera and Twins, is the batch.
    """
    more = query.shape[:-3]
    if len(more) < 2 or any(list(each.shape[:-3]) != list(more) for each in (key, value)):
        return [_with_heads(each) for each in (query, key, value, mask)]
    if mask is not None and len(mask.shape) > 3:
        every = op.Concat(op.Shape(query, end=-3), op.Constant(value_ints=[1, 1, 1]), axis=0)
        spread = op.Expand(mask, every)
        spread.shape, spread.dtype = ir.Shape([*more, *mask.shape[-3:]]), mask.dtype
        return [_with_one_batch(each) for each in (query, key, value, spread)]
    return [*map(_with_one_batch, (query, key, value)), _with_heads(mask)]


def _with_one_batch(x: Any) -> Any:
    y = op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), op.Shape(x, start=-3), axis=0))
    y.shape, y.dtype = ir.Shape([None, *x.shape[-3:]]), x.dtype
    return y


def _with_heads(x: Any) -> Any:
    if x is None or not (missing := _missing_axes(x)):
        return x
    y = op.Unsqueeze(x, op.Constant(value_ints=missing))
    y.shape, y.dtype = ir.Shape([*[1] * len(missing), *x.shape]), x.dtype
    return y


def _in_its_axes(y: Any, query: Any, value: Any) -> Any:
    if len(query.shape) > 4:
        return op.Reshape(y, op.Concat(op.Shape(query, end=-1), op.Shape(value, start=-1), axis=0))
    missing = _missing_axes(query)
    return op.Squeeze(y, op.Constant(value_ints=missing)) if missing else y


def _missing_axes(x: Any) -> list[int]:
    return list(range(4 - len(x.shape)))


def _zero_where_blind(y: Any, mask: Any) -> Any:
    if mask is None:
        return y
    last = op.Constant(value_ints=[-1])
    if mask.dtype == ir.DataType.BOOL:
        blind = op.Not(op.Cast(op.ReduceMax(op.Cast(mask, to=ir.DataType.INT32), last), to=ir.DataType.BOOL))
    else:
        blind = op.Equal(op.ReduceMax(mask, last), op.CastLike(op.Constant(value_float=float("-inf")), mask))
    return op.Where(blind, op.CastLike(op.Constant(value_float=0.0), y), y)


def _any(x: Any) -> Any:
    """Any of nothing is False; torch's own takes the maximum, which of nothing is ONNX's lowest integer: True."""
    return _exists(x, None, False)


def _any_dim(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _exists(x, [dim], keepdim)


def _any_dims(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return _exists(x, list(dim or ()) or None, keepdim)


def _exists(x: Any, dims: list[int] | None, keepdim: bool) -> Any:
    holds = op.Cast(x, to=ir.DataType.BOOL)
    if len(x.shape) == 0:
        return holds
    count = op.ReduceSum(op.Cast(holds, to=ir.DataType.INT64), _axes(dims or ()), keepdims=keepdim)
    return op.Greater(count, op.Constant(value_int=0))


def _amax(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    """Take the maximum over ``dim``, over all where there is none; torch's own asks for one."""
    return op.ReduceMax(x, _axes(dim), keepdims=keepdim)


def _amin(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    return op.ReduceMin(x, _axes(dim), keepdims=keepdim)


def _axes(dim: Sequence[int]) -> Any:
    return op.Constant(value_ints=list(dim)) if dim else None


def _index(x: Any, indices: Sequence[Any]) -> Any:
    """Index by int32 as by int64; torch's own writes it as it is, which ONNX does not take."""
    return aten_index(x, _whole(indices))


def _index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    return aten_index_put(x, _whole(indices), values, accumulate)


def _whole(indices: Sequence[Any]) -> list[Any]:
    return [_int64(each) if each is not None and each.dtype == ir.DataType.INT32 else each for each in indices]


def _int64(index: Any) -> Any:
    cast = op.Cast(index, to=ir.DataType.INT64)
    cast.shape, cast.dtype = index.shape, ir.DataType.INT64  # by which torch's own counts the dimensions
    return cast


def _stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Sort as ONNX always does: stably; torch has no translation."""
    del stable
    return aten_sort(x, dim, descending)


def _topk(x: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Take the k in their order, where any may be taken too: what runtimes make of ``sorted=0`` differs."""
    del sorted
    return aten_topk(x, k, dim, largest, True)


def _round(x: Any, ndigits: Any = None) -> Any:
    """Round a size as Python does, to even; torch has no translation."""
    if ndigits is not None:
        raise NotImplementedError("a size that is rounded to decimals")
    return op.Cast(op.Round(x), to=ir.DataType.INT64)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.instance_norm.default: _instance_norm,
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
    torch.ops.aten.as_strided.default: _as_strided,
    torch.ops.aten.amax.default: _amax,
    torch.ops.aten.amin.default: _amin,
    torch.ops.aten.any.default: _any,
    torch.ops.aten.any.dim: _any_dim,
    torch.ops.aten.any.dims: _any_dims,
    torch.ops.aten.index.Tensor: _index,
    torch.ops.aten._unsafe_index.Tensor: _index,
    torch.ops.aten.index_put.default: _index_put,
    torch.ops.aten._unsafe_index_put.default: _index_put,
    torch.ops.aten.sort.stable: _stable_sort,
    torch.ops.aten.topk.default: _topk,
    round: _round,
}
"""Those of every opset."""


def translations(program: torch.export.ExportedProgram, opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` of torch.onnx.export for ``program``."""
    attention = {torch.ops.aten.scaled_dot_product_attention.default: _attention if opset < 23 else _attention_23}
    return (
        TRANSLATIONS | attention | bags.TRANSLATIONS | recurrent.TRANSLATIONS | packed.TRANSLATIONS
        | pooling.translations(program)
    )  # fmt: skip
