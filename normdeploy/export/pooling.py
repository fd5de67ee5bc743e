"""Pooling at dynamic sizes, and where torch's own translation computes something else or is missing.

Part i of ``parts`` in an axis of n elements reaches from floor(i n / parts) to ceil((i + 1) n / parts), as in torch's
AdaptiveAveragePooling.cpp and AdaptiveMaxPooling2d.cpp. Both means and maxima can be taken axis by axis.
"""

# No "from __future__ import annotations" here: the exporter reads the types from the signature.
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_avg_pool2d, aten_avg_pool3d

from normdeploy.errors import InputError

op: Any = opset18  # its type stubs know no value of unknown dtype
_ATEN = torch.ops.aten

MAX_POOL1D = _ATEN.max_pool1d.default
_MEANS = {_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default, _ATEN._adaptive_avg_pool2d.default}
_MAXIMA = {getattr(_ATEN, f"adaptive_max_pool{rank}d").default for rank in (1, 2, 3)}


def max_pool1d(
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> torch.Tensor:
    """Compute max_pool1d by the pooling of two dimensions, which keeps a dynamic length; torch's own fixes it."""
    sizes = ((1, *kernel_size), (1, *(stride or kernel_size)), (0, *padding), (1, *dilation))
    return torch.max_pool2d(x.unsqueeze(-2), *sizes, ceil_mode).squeeze(-2)


def translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return translations of pooling for ``program``; at fixed sizes an average is torch's own."""
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        _ATEN._adaptive_avg_pool3d.default: _adaptive_avg,
        _ATEN.avg_pool2d.default: _divided(aten_avg_pool2d),
        _ATEN.avg_pool3d.default: _divided(aten_avg_pool3d),
    }
    nodes = list(program.graph.nodes)
    if any(isinstance(size, torch.SymInt) for n in nodes if n.target in _MEANS for size in n.args[0].meta["val"].shape):
        table[_ATEN._adaptive_avg_pool2d.default] = _adaptive_avg
    if not any(user.args[1] == 1 and user.users for n in nodes if n.target in _MAXIMA for user in n.users):
        table[_ATEN.adaptive_max_pool2d.default] = table[_ATEN.adaptive_max_pool3d.default] = _adaptive_max
    return table


def _adaptive_avg(x: Any, output_size: Sequence[Any]) -> Any:
    """Average by matrices that are made of the sizes; torch's own decomposition holds for the traced size alone."""
    rank = len(x.shape)
    for axis, parts in enumerate(output_size, rank - len(output_size)):
        if parts == 1:
            x = op.ReduceMean(x, op.Constant(value_ints=[axis]), keepdims=1)
            continue
        shares = _shares(op.Squeeze(op.Shape(x, start=axis, end=axis + 1)), parts, x)
        if axis == rank - 1:
            x = op.MatMul(x, op.Transpose(shares, perm=[1, 0]))
        else:
            swapped = [{axis: rank - 2, rank - 2: axis}.get(each, each) for each in range(rank)]
            x = op.Transpose(op.MatMul(shares, op.Transpose(x, perm=swapped)), perm=swapped)
    return x


def _shares(size: Any, parts: Any, like: Any) -> Any:
    """Return the matrix, parts x size, of the share that each element has in the average of each part."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    parts = op.Constant(value_int=parts) if isinstance(parts, int) else op.Squeeze(parts)
    part, element = op.Range(zero, parts, one), op.Range(zero, size, one)
    first = op.Div(op.Mul(part, size), parts)
    behind = op.Div(op.Sub(op.Add(op.Mul(op.Add(part, one), size), parts), one), parts)
    column = op.Constant(value_ints=[1])
    begun = op.LessOrEqual(op.Unsqueeze(first, column), element)
    inside = op.And(begun, op.Less(element, op.Unsqueeze(behind, column)))
    count = op.Unsqueeze(op.Sub(behind, first), column)
    return op.Div(op.CastLike(inside, like), op.CastLike(count, like))


def _adaptive_max(x: Any, output_size: Sequence[int]) -> Any:
    """Return the maxima and no indices; torch has no translation, and a decomposition for the traced size alone."""
    rank = len(x.shape)
    axes, sizes = list(range(rank - len(output_size), rank)), list(x.shape)[rank - len(output_size) :]
    if all(parts == 1 for parts in output_size):
        y = op.ReduceMax(x, op.Constant(value_ints=axes), keepdims=1)
        return y, op.Identity(y)  # in place of the indices, which nothing reads
    windows = [_window(size, parts) for size, parts in zip(sizes, output_size, strict=True)]
    if rank == len(output_size) + 2 and None not in windows:
        y, indices = op.MaxPool(x, kernel_shape=windows, strides=windows)
        return y, indices
    for axis, parts in zip(axes, output_size, strict=True):
        x = _maxima(x, axis, parts)
    return x, op.Identity(x)


def _window(size: Any, parts: int) -> int | None:
    """Return how many elements each part has, None where that is not known or not the same."""
    return size // parts if isinstance(size, int) and size % parts == 0 else None


def _maxima(x: Any, axis: int, parts: int) -> Any:
    along = op.Constant(value_ints=[axis])
    size, maxima = op.Shape(x, start=axis, end=axis + 1), []
    for part in range(parts):
        first = op.Div(op.Mul(size, _number(part)), _number(parts))
        behind = op.Div(op.Add(op.Mul(size, _number(part + 1)), _number(parts - 1)), _number(parts))
        maxima.append(op.ReduceMax(op.Slice(x, first, behind, along), along, keepdims=1))
    return op.Concat(*maxima, axis=axis) if parts > 1 else maxima[0]


def _number(value: int) -> Any:
    return op.Constant(value_ints=[value])


def _divided(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``plain``, the translation of an average, with what it leaves out: a divisor of the user's own."""

    def translate(
        x: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:
        if divisor_override is None:
            return plain(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
        if ceil_mode:
            raise InputError(
                "an average over windows that reach beyond the input, by a divisor of its own, cannot be exported",
                where="AvgPool with ceil_mode=True and divisor_override",
                fix="pad the input by torch.nn.functional.pad, and leave ceil_mode out",
            )
        rank = len(x.shape) - 2
        elements = math.prod(kernel_size if len(kernel_size) == rank else [*kernel_size] * rank)
        y = plain(x, kernel_size, stride, padding, False, True)
        factor = ir.tensor(np.array(elements / divisor_override))  # a value_float would be float32 in float64 too
        return op.Mul(y, op.CastLike(op.Constant(value=factor), y))

    return translate
