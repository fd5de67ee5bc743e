"""Whether requests may be put together: Triton adds rows of different clients along the first axis.

The interface must allow it, and then the model is asked: a row must come out the same alone and beside others, and no
operator may let it depend on them, whatever the values are. A softmax over the batch, or statistics of it, would mix
what clients send.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from normdeploy.bundle import Bundle
from normdeploy.bundle.golden import allowed
from normdeploy.bundle.interface import Interface
from normdeploy.parity.metrics import errors
from normdeploy.serving.rows.trace import MOST, meeting
from normdeploy.specs import Dim


def batch_axis(interface: Interface) -> str | None:
    """Return the name of the dimension that is axis 0 of every input and output, of any size from 1 on, and no other.

    None where there is no such dimension.
    """
    tensors = (*interface.inputs, *interface.outputs)
    first = interface.inputs[0].dims[:1]
    name = first[0].name if first else None
    if name is None or first[0].min != 1 or first[0].multiple != 1:
        return None
    axes = [[axis.name == name for axis in tensor.dims] for tensor in tensors]
    return name if all(axis[:1] == [True] and not any(axis[1:]) for axis in axes) else None


def mixed_rows(bundle: Bundle, name: str) -> str:
    """Return why requests may not be put together along dimension ``name``; empty where they may.

    They may where a row of a batch is within twice the bound of parity of that row alone, as golden outputs of another
    machine, and where no operator of the model makes it depend on the rows beside it.
    """
    largest = next(axis.max for axis in bundle.interface.inputs[0].dims if axis.name == name)
    rows = min(MOST, largest or 1)
    if rows == 1:
        return ""
    batch = {key: _rows(array, rows, bundle, key) for key, array in bundle.golden.inputs.items()}
    return _changed(bundle, batch, rows) or _meeting(bundle, batch, name)


def _meeting(bundle: Bundle, batch: Mapping[str, np.ndarray], name: str) -> str:
    """Return where rows can meet, at the golden sizes of the other dimensions and at other ones."""
    try:
        return _met(bundle, batch) or _met(bundle, _resized(bundle, batch, name))
    except Exception as error:  # a graph may hold anything: of one that cannot be followed nothing is known
        return f"what a row depends on cannot be told: {getattr(error, 'what', error)}"


def _met(bundle: Bundle, batch: Mapping[str, np.ndarray]) -> str:
    return meeting(bundle.model_path, batch, {key: array[:-1] for key, array in batch.items()})


def _resized(bundle: Bundle, batch: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return ``batch`` at the next sizes of the dimensions but ``name``."""
    made = {}
    for spec in bundle.specs:
        sizes = [
            _next(dim, size) if dim.name not in (None, name) else size
            for dim, size in zip(spec.dims, batch[spec.name].shape, strict=True)
        ]
        made[spec.name] = np.stack([np.resize(row, sizes[1:]) for row in batch[spec.name]])
    return made


def _next(dim: Dim, size: int) -> int:
    if size + dim.multiple <= dim.max:
        return size + dim.multiple
    return max(size - dim.multiple, dim.min)


def _changed(bundle: Bundle, batch: Mapping[str, np.ndarray], rows: int) -> str:
    """Return how far a row of ``batch`` is off from that row alone; empty where it is not."""
    together = bundle.runner(batch)
    alone = [bundle.runner({key: array[row : row + 1] for key, array in batch.items()}) for row in range(rows)]
    for output in bundle.manifest.outputs:
        single = np.concatenate([each[output] for each in alone])
        found = errors(together[output], single, single.dtype.name)
        rms, largest_error = allowed(output, single.dtype.name, bundle.report)
        if found.finite and not (found.rms <= rms and found.max <= largest_error):
            return f"{output} of a row changes by {found.max:.3g} with the rows beside it"
    return ""


def _rows(golden: np.ndarray, rows: int, bundle: Bundle, name: str) -> np.ndarray:
    """Return ``rows`` different rows: random where any number is an input, else the golden row, its values rotated."""
    spec = next(spec for spec in bundle.specs if spec.name == name)
    if spec.low is None and np.dtype(spec.dtype).kind not in "iub":
        drawn = np.random.default_rng(0).standard_normal((rows, *golden.shape[1:]))
        return drawn.astype(golden.dtype)
    return np.stack([np.roll(golden[row % len(golden)], row) for row in range(rows)])
