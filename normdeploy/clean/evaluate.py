"""What constant operators compute, as a runtime would: bit for bit, or rounded once where runtimes differ.

Three kinds of operators are known. *Moves* copy elements. *Exact* ones are correctly rounded by IEEE 754, or integer
arithmetic, so that there is one right answer. *Rounded* ones (transcendental functions, sums of floats) no two runtimes
compute alike: they are computed in float64 and rounded once. Nothing else is evaluated, nor is anything that overflows,
divides by zero, meets NaN in arithmetic, or casts what the target cannot hold: what happens there is the runtime's.

The operators themselves are those of ``onnx.reference``, in the version in force, but where it has another: a Softmax
of several axes (below opset 13) is left, and an Unsqueeze's axes are those of its result, in whichever order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.reference.ops import load_op

Arrays = Sequence[np.ndarray | None]

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_PLAIN = frozenset(np.dtype(code) for code in ("?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d"))
"""dtypes that numpy computes as ONNX does."""
_MOVED = _PLAIN | {np.dtype(ml_dtypes.bfloat16)}
"""dtypes whose elements are only copied or cast."""


Given = Sequence[np.ndarray]
"""The inputs that are there."""
Attributes = Mapping[str, ir.Attr]
Size = Callable[[Given, Attributes], int]
"""An upper bound of the elements that an operator makes."""


def _broadcast(given: Given, attributes: Attributes) -> int:
    return int(math.prod(np.broadcast_shapes(*(array.shape for array in given))))


def _no_larger(given: Given, attributes: Attributes) -> int:
    return given[0].size


def _sum(given: Given, attributes: Attributes) -> int:
    return sum(array.size for array in given)


def _expanded(given: Given, attributes: Attributes) -> int:
    data, shape = given
    return int(math.prod(np.broadcast_shapes(data.shape, tuple(shape.tolist()))))


def _tiled(given: Given, attributes: Attributes) -> int:
    data, repeats = given
    return int(data.size * math.prod(repeats.tolist()))


def _filled(given: Given, attributes: Attributes) -> int:
    return int(math.prod(given[0].tolist()))


def _counted(given: Given, attributes: Attributes) -> int:
    start, limit, delta = (float(array.item()) for array in given)
    return max(0, math.ceil((limit - start) / delta))


def _gathered(given: Given, attributes: Attributes) -> int:
    data, indices = given
    axis = attributes["axis"].as_int() if "axis" in attributes else 0
    return int(data.size // max(1, data.shape[axis]) * indices.size)


def _gathered_slices(given: Given, attributes: Attributes) -> int:
    data, indices = given
    batch = attributes["batch_dims"].as_int() if "batch_dims" in attributes else 0
    return math.prod(indices.shape[:-1]) * math.prod(data.shape[batch + indices.shape[-1] :])


def _multiplied(given: Given, attributes: Attributes) -> int:
    a, b = given
    inner = max(1, a.shape[-1] if a.ndim else 1)
    return max(1, a.size // inner) * max(1, b.size // inner)


MOVES: Mapping[str, Size] = {
    "Reshape": _no_larger, "Flatten": _no_larger, "Squeeze": _no_larger, "Unsqueeze": _no_larger,
    "Transpose": _no_larger, "Slice": _no_larger, "Trilu": _no_larger, "Identity": _no_larger,
    "Concat": _sum, "Gather": _gathered, "GatherND": _gathered_slices, "Where": _broadcast,
    "Equal": _broadcast, "Greater": _broadcast, "Less": _broadcast, "GreaterOrEqual": _broadcast,
    "LessOrEqual": _broadcast, "And": _broadcast, "Or": _broadcast, "Xor": _broadcast, "Not": _no_larger,
    "Expand": _expanded, "Tile": _tiled, "ConstantOfShape": _filled, "Cast": _no_larger, "CastLike": _no_larger,
    "ScatterElements": _no_larger, "ScatterND": _no_larger,
}  # fmt: skip

_SCATTERS = ("ScatterElements", "ScatterND")

EXACT: Mapping[str, Size] = {
    "Add": _broadcast, "Sub": _broadcast, "Mul": _broadcast, "Div": _broadcast, "Min": _broadcast, "Max": _broadcast,
    "Neg": _no_larger, "Abs": _no_larger, "Sqrt": _no_larger, "Floor": _no_larger, "Ceil": _no_larger,
    "Round": _no_larger, "Sign": _no_larger, "Relu": _no_larger, "Clip": _no_larger,
    "ReduceMax": _no_larger, "ReduceMin": _no_larger, "Range": _counted,
}  # fmt: skip

INTEGERS: Mapping[str, Size] = {
    "Mod": _broadcast, "ReduceSum": _no_larger, "ReduceProd": _no_larger, "CumSum": _no_larger, "MatMul": _multiplied,
}  # fmt: skip
"""Exact where all that is given are integers; some are rounded otherwise."""

_OVERFLOWING = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Abs", "ReduceSum", "ReduceProd", "CumSum", "MatMul"})
"""Operators whose result of integers may be one that their type does not hold: some runtimes wrap it, some saturate."""
_ALONG_AXES = frozenset({"ReduceSum", "ReduceProd", "CumSum"})
"""Those of them whose second input is no number, but says along which axes."""

ROUNDED: Mapping[str, Size] = {
    "Exp": _no_larger, "Log": _no_larger, "Sin": _no_larger, "Cos": _no_larger, "Tan": _no_larger,
    "Tanh": _no_larger, "Sigmoid": _no_larger, "Erf": _no_larger, "Atan": _no_larger, "Pow": _broadcast,
    "Reciprocal": _no_larger, "Softmax": _no_larger, "MatMul": _multiplied, "CumSum": _no_larger,
    "ReduceSum": _no_larger, "ReduceMean": _no_larger, "ReduceL2": _no_larger, "ReduceSumSquare": _no_larger,
}  # fmt: skip
_SUMMED = frozenset({"MatMul", "CumSum", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"})
_SQUARED = 1e18
"""The square of what is smaller is finite in float32, in which a runtime may compute it."""

_BOUNDED = 3
"""What a Clip with two bounds is given."""
_OF_ONE_AXIS = 13
"""The opset from which on a Softmax is of one axis; before, it is of all from one on, which the reference is not."""

KNOWN = frozenset({*MOVES, *EXACT, *INTEGERS, *ROUNDED})


class NotEvaluated(Exception):
    """Raised for what is left to the runtime."""


def size(operator: str, inputs: Arrays, attributes: Attributes) -> int:
    """Return an upper bound of the elements that ``operator`` makes, before it makes them."""
    bound = next(table[operator] for table in (MOVES, EXACT, INTEGERS, ROUNDED) if operator in table)
    return bound([array for array in inputs if array is not None], attributes)


def evaluate(operator: str, opset: int, inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """Return what ``operator`` of ``opset`` makes of constant ``inputs``; None stands for an input that is left out.

    Raises:
        NotEvaluated: its answer is not the same in every runtime, or it is none of ``KNOWN``.
    """
    given = [array for array in inputs if array is not None]
    dtypes = _MOVED if operator in MOVES else _PLAIN
    if not given or any(array.dtype not in dtypes for array in given):
        raise NotEvaluated(operator)
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
            result = _evaluated(operator, opset, inputs, attributes)
    except NotEvaluated:
        raise
    except Exception as error:  # numpy and the reference raise many kinds where the model is at fault
        raise NotEvaluated(operator) from error
    if not isinstance(result, np.ndarray | np.generic) or np.asarray(result).dtype not in dtypes:
        raise NotEvaluated(operator)
    return np.asarray(result)


def _evaluated(operator: str, opset: int, inputs: Arrays, attributes: Attributes) -> Any:
    given = [array for array in inputs if array is not None]
    has_floats = any(array.dtype in FLOATS for array in given)
    if operator in MOVES:
        return _moved(operator, opset, inputs, attributes)
    if any(array.dtype in FLOATS and np.isnan(array).any() for array in given):
        raise NotEvaluated(operator)
    if operator == "Range":
        return _range(given)
    if operator == "Clip" and len(given) + len(attributes) < _BOUNDED and any(np.isinf(array).any() for array in given):
        raise NotEvaluated(operator)  # the largest number is the bound that is left out, or there is none
    if operator in EXACT or (operator in INTEGERS and not has_floats):
        if operator in _OVERFLOWING and not has_floats:
            numbers = given[:1] if operator in _ALONG_AXES else given
            wide = [array.astype(np.float64) for array in numbers] + given[len(numbers) :]
            _require_held(np.asarray(_reference(operator, opset, wide, attributes)), given[0].dtype)
        return _reference(operator, opset, inputs, attributes)
    if operator in ROUNDED and not (operator == "Softmax" and opset < _OF_ONE_AXIS):
        if operator in _SUMMED:
            require_moderate(given)
        return rounded_once(inputs, lambda precise: _reference(operator, opset, precise, attributes))
    raise NotEvaluated(operator)


def rounded_once(inputs: Arrays, compute: Callable[[Arrays], Any]) -> np.ndarray:
    """Return what ``compute`` makes of ``inputs``, none of them NaN, in float64, in the type of the first.

    Raises:
        NotEvaluated: the first is of no floats.
        FloatingPointError: something overflows on the way, or that type does not hold the result.
    """
    first = next(array for array in inputs if array is not None)
    if not _is_float(first.dtype):
        raise NotEvaluated(first.dtype)
    with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
        result = np.asarray(compute([None if array is None else _precise(array) for array in inputs]))
        return np.asarray(result.astype(first.dtype))


def require_moderate(given: Given) -> None:
    """Refuse numbers whose products or sums a runtime may lose on the way, which float64 does not.

    Raises:
        NotEvaluated: a float is NaN, infinite, or so large that its square is no float32.
    """
    if any(not (np.abs(_precise(array)) < _SQUARED).all() for array in given if _is_float(array.dtype)):
        raise NotEvaluated


def _precise(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if _is_float(array.dtype) else array


def _moved(operator: str, opset: int, inputs: Arrays, attributes: Attributes) -> Any:
    data = inputs[0]
    assert data is not None
    if operator == "Identity":
        return data
    if operator == "Cast":
        return cast(data, ir.DataType(attributes["to"].as_int()))
    if operator == "Expand":
        shape = inputs[1]
        assert shape is not None
        return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape.tolist()))).copy()
    if operator == "ConstantOfShape":
        value = attributes["value"].as_tensor().numpy() if "value" in attributes else np.zeros(1, np.float32)
        return np.full(tuple(data.tolist()), value.reshape(()))
    if operator == "Unsqueeze":
        return np.expand_dims(data, _axes(inputs, attributes) or ())
    if operator == "Slice":
        _require_one_reading(data, inputs)
    if operator == "Squeeze" and _axes(inputs, attributes) == ():
        raise NotEvaluated(operator)  # no axis, or each of size 1: runtimes differ
    if operator in _SCATTERS:
        _require_one_writer(operator, opset, inputs, attributes)
    return _reference(operator, opset, inputs, attributes)


def _axes(inputs: Arrays, attributes: Attributes) -> tuple[int, ...] | None:
    """Return the axes that are listed, in an attribute or an input; None where no list is given."""
    given = inputs[1] if len(inputs) > 1 else None
    if given is not None:
        return tuple(given.reshape(-1).tolist())
    return tuple(attributes["axes"].as_ints()) if "axes" in attributes else None


def _require_one_reading(data: np.ndarray, inputs: Arrays) -> None:
    """Refuse what runs backwards from before the first element, or to behind the last: runtimes differ there."""
    starts, ends, axes, steps = (
        None if array is None else array.reshape(-1) for array in (*inputs[1:], *[None] * 4)[:4]
    )
    if starts is None or ends is None or steps is None:
        return
    sizes = np.array(data.shape)[np.arange(len(starts)) if axes is None else axes]
    if np.any((steps < 0) & ((starts < -sizes) | (ends >= sizes))):
        raise NotEvaluated("Slice")


def _require_one_writer(operator: str, opset: int, inputs: Arrays, attributes: Attributes) -> None:
    """Refuse a scatter where two elements go to one place: ONNX does not say which of them stays."""
    data, indices, updates = inputs
    assert data is not None
    assert updates is not None
    if "reduction" in attributes and attributes["reduction"].as_string() != "none":
        raise NotEvaluated(operator)
    numbers = np.arange(1, updates.size + 1).reshape(updates.shape)
    marked = _reference(operator, opset, [np.zeros(data.shape, np.int64), indices, numbers], attributes)
    if np.count_nonzero(marked) != updates.size:
        raise NotEvaluated(operator)


def _is_float(dtype: np.dtype) -> bool:
    return dtype in FLOATS or dtype == ml_dtypes.bfloat16


def cast(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Return ``array`` in ``dtype``, as a runtime casts it: by truncation to integers, by way of float32 to 16 bits.

    Raises:
        NotEvaluated: ``dtype`` cannot hold an element, or is no plain one.
    """
    try:
        target = dtype.numpy()
    except TypeError as error:
        raise NotEvaluated(f"Cast to {dtype}") from error
    if target not in _MOVED or array.dtype not in _MOVED:
        raise NotEvaluated(f"Cast to {dtype}")
    if _is_float(array.dtype) and np.issubdtype(target, np.integer):
        _require_held(np.trunc(array.astype(np.float64)), target)
    try:
        with np.errstate(over="raise", invalid="raise", under="ignore"):
            if _is_float(target) and target.itemsize == 2 and target != array.dtype:
                array = array.astype(np.float32)
            return array.astype(target)
    except FloatingPointError as error:
        raise NotEvaluated(f"Cast to {dtype}") from error


def _require_held(whole: np.ndarray, target: np.dtype) -> None:
    """Refuse numbers that the integers of ``target`` do not hold, for sure."""
    held, close = np.iinfo(target), 2.0**11 if target.itemsize == 8 else 0.0  # to which float64 knows the largest
    least = held.min + close if held.min else 0.0
    if not np.isfinite(whole).all() or (whole < least).any() or (whole > held.max - close).any():
        raise NotEvaluated(target)


def _range(given: Arrays) -> np.ndarray:
    """Return ``start, start + delta, …``; of floats only where every partial sum is exact, in whichever order."""
    start, limit, delta = (array.reshape(()) for array in given if array is not None)
    if start.dtype in FLOATS:
        largest = 2.0 ** np.finfo(start.dtype).nmant
        if any(float(x) != math.trunc(float(x)) or abs(float(x)) > largest for x in (start, limit, delta)):
            raise NotEvaluated("Range")
    return np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype)


@lru_cache(maxsize=256)
def _implementation(operator: str, opset: int) -> Any:
    return load_op("", operator, opset)


def _reference(operator: str, opset: int, inputs: Arrays, attributes: Attributes) -> Any:
    plain = {name: attribute.value for name, attribute in attributes.items()}
    return _implementation(operator, opset).eval(*inputs, **plain)
