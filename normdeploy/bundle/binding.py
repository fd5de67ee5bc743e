"""Inputs and outputs of a bundle at fixed places in memory: a call copies nothing, and makes no arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from normdeploy.bundle.inputs import Array, Gate
from normdeploy.errors import InputError

_WHERE, _FIX = "the outputs of the bundle", "give an array for each output, or none, and outputs() has new ones"


@dataclass(frozen=True)
class Binding:
    """A model bound to arrays: write into ``inputs``, call it, read ``outputs``, which each call overwrites.

    Its arrays are one thread's at a time; each thread makes its own. Other shapes need another one.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    gate: Gate = field(repr=False)
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> dict[str, Array]:
        """Run once, and return the outputs. Raises InputError where the inputs' values leave their ranges."""
        self.gate.require_values(self.inputs)
        self.run()
        return self.outputs


def places(
    computed: Mapping[str, Array], given: Mapping[str, Array] | None, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the arrays for outputs like those ``computed``: those that are ``given``, or new ones.

    Raises InputError that lists what cannot be written to: another name, dtype or shape, memory that is not contiguous,
    read-only, or shared with an input or another output.
    """
    if given is None:
        return {name: np.empty_like(array, order="C") for name, array in computed.items()}
    found = [f"there is no output {name!r}" for name in given if name not in computed]
    found += [f"output {name} is missing" for name in computed if name not in given]
    taken = dict(inputs)
    for name, like in computed.items():
        if name in given:
            found += [f"{name} {problem}" for problem in _problems(given[name], like, taken)]
            taken[name] = given[name]
    if found:
        raise InputError("; ".join(found), where=_WHERE, fix=_FIX)
    return {name: given[name] for name in computed}


def _problems(array: Array, like: Array, taken: Mapping[str, Array]) -> list[str]:
    if not isinstance(array, np.ndarray):
        return [f"is a {type(array).__name__}, no array"]
    found = []
    if (array.dtype, array.shape) != (like.dtype, like.shape):
        found.append(f"is {array.dtype} {array.shape}, not {like.dtype} {like.shape}")
    if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
        found.append("is read-only, or not contiguous")
    return found + [f"shares memory with {name}" for name, other in taken.items() if np.may_share_memory(array, other)]
