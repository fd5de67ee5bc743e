"""What is given to a bundle is checked against its specs, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError
from normdeploy.parity.feeds import problems
from normdeploy.specs import TensorSpec

Array = npt.NDArray[Any]


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
