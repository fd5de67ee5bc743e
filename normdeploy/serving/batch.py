"""Whether requests may be put together: Triton adds rows of different clients along the first axis.

The interface must allow it, and then the model is asked: a row must come out the same alone and beside others. A
softmax over the batch, or statistics of it, would mix what clients send.
"""

from __future__ import annotations

import numpy as np

from normdeploy.bundle import Bundle
from normdeploy.bundle.golden import allowed
from normdeploy.bundle.interface import Interface
from normdeploy.parity.metrics import errors

_ROWS = 4


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
    """Return how far a row of a batch along dimension ``name`` is off from that row alone; empty where it may be.

    It may be where it is within twice the bound of parity, as golden outputs of another machine.
    """
    largest = next(axis.max for axis in bundle.interface.inputs[0].dims if axis.name == name)
    rows = min(_ROWS, largest or 1)
    batch = {key: _rows(array, rows, bundle, key) for key, array in bundle.golden.inputs.items()}
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
