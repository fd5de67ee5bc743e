"""What is given to a bundle is checked against its specs: nothing is cast, broadcast or dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError
from normdeploy.specs import Dim, TensorSpec

Array = npt.NDArray[Any]


def check(specs: Sequence[TensorSpec], given: Mapping[str, Any]) -> dict[str, Array]:
    """``given`` as arrays in the order of ``specs``; InputError that lists everything that does not fit.

    The names must be those of the specs, each dtype the spec's own, each size within its range and the same wherever
    its dimension's name appears, each value within the spec's range where it states one.
    """
    names = [spec.name for spec in specs]
    arrays = {spec.name: _array(spec.name, given[spec.name]) for spec in specs if spec.name in given}
    problems = [f"input {name} is missing" for name in names if name not in given]
    problems += [f"there is no input {name!r}" for name in given if name not in names]
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name in arrays:
            problems += _problems(spec, arrays[spec.name], sizes)
    if problems:
        wanted = " ".join(map(str, specs))
        raise InputError("; ".join(problems), where="the inputs of the bundle", fix=f"give {wanted}")
    return arrays


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # what a foreign object's conversion raises is its own affair
        raise InputError(f"{name} cannot be made an array: {error}", where="the inputs of the bundle") from error


def _problems(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> Iterator[str]:
    """What is wrong with one input; ``sizes`` collects the named dimensions of all of them."""
    if array.dtype != np.dtype(spec.dtype):
        yield f"{spec.name} is {array.dtype}, not {spec.dtype}"
    elif spec.low is not None and spec.high is not None and not _within(array, spec.low, spec.high):
        yield f"{spec.name} has values outside [{spec.low}..{spec.high}]"
    if array.ndim != len(spec.dims):
        yield f"{spec.name} has shape {array.shape}, not {len(spec.dims)} dimensions"
        return
    for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
        if not dim.min <= size <= dim.max:
            yield f"axis {axis} of {spec.name} has size {size}, not {_range(dim)}"
        elif dim.name is not None and sizes.setdefault(dim.name, size) != size:
            yield f"axis {axis} of {spec.name} has size {size}, but dimension {dim.name} is {sizes[dim.name]} elsewhere"


def _within(array: Array, low: float, high: float) -> bool:
    """Whether no value lies outside; NaN is no value, and passes as it does through the model."""
    return not bool(((array < low) | (array > high)).any())


def _range(dim: Dim) -> str:
    return str(dim.min) if dim.fixed else f"{dim.min} to {dim.max}"
