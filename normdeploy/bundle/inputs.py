"""What is given to a bundle is checked against its specs, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError
from normdeploy.parity.feeds import problems
from normdeploy.specs import TensorSpec

Array = npt.NDArray[Any]

_REMEMBERED = 1024
"""Different sets of shapes; a model that is called with more of them is checked in full for those."""


class Gate:
    """The checks of what is given: names, dtypes, shapes and values. Shapes that passed once are known from then on.

    Any number of threads may call it.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        self._dtypes = tuple((spec.name, np.dtype(spec.dtype)) for spec in specs)
        self._ranges = tuple((spec.name, spec.low, spec.high) for spec in specs if spec.low is not None)
        self._passed: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``given`` as arrays in the order of the specs; InputError that lists all that does not fit them."""
        arrays = self._known(given)
        if arrays is None:
            arrays = check(self._specs, given)
            if len(self._passed) < _REMEMBERED:
                self._passed.add(tuple(arrays[name].shape for name, _ in self._dtypes))
        return arrays

    def require_values(self, arrays: Mapping[str, Array]) -> None:
        """Raise InputError where ``arrays``, which passed before, now hold values outside their ranges."""
        if self._ranges and not self._within(arrays):
            check(self._specs, arrays)

    def _known(self, given: Mapping[str, Any]) -> dict[str, Array] | None:
        """Return ``given`` where it is certain to fit; None where it has to be looked at in full."""
        if len(given) != len(self._dtypes):
            return None
        arrays, shapes = {}, []
        for name, dtype in self._dtypes:
            array = given.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype:
                return None
            arrays[name] = array
            shapes.append(array.shape)
        known = tuple(shapes) in self._passed and (not self._ranges or self._within(arrays))
        return arrays if known else None

    def _within(self, arrays: Mapping[str, Array]) -> bool:
        """Return True where all values are in their ranges; False where not, or where there are none, or NaN."""
        return all(
            arrays[name].size and low <= arrays[name].min() and arrays[name].max() <= high
            for name, low, high in self._ranges
        )


def check(specs: Sequence[TensorSpec], given: Mapping[str, Any]) -> dict[str, Array]:
    """Return ``given`` as arrays in the order of ``specs``; InputError that lists everything that does not fit them."""
    arrays = {name: _array(name, value) for name, value in given.items()}
    if found := problems(specs, arrays):
        wanted = " ".join(map(str, specs))
        raise InputError("; ".join(found), where="the inputs of the bundle", fix=f"give {wanted}")
    return {spec.name: arrays[spec.name] for spec in specs}


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # what a foreign object's conversion raises is its own affair
        raise InputError(f"{name} cannot be made an array: {error}", where="the inputs of the bundle") from error
