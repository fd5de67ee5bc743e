"""The nearest input specs that work, where those that were asked for do not."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from normdeploy.specs import Dim, TensorSpec, dynamic_dims

UNITS = (*range(2, 65), 96, 128, 256)
"""The multiples that networks ask for: halvings of an image, patches, windows."""

_PACKING, _LAYERS = Path(nn.utils.rnn.__file__), Path(nn.modules.rnn.__file__)

_ROUND = 3**3 * 5**2 * 7**2


def of_multiple(dim: Dim, unit: int) -> Dim | None:
    """Return ``dim`` with the multiples of ``unit`` in its range alone, None where it has fewer than two."""
    low, high = -(-dim.min // unit) * unit, dim.max // unit * unit
    if low >= high:
        return None
    return replace(dim, min=low, opt=min(max(round(dim.opt / unit) * unit, low), high), max=high, multiple=unit)


def with_dims(specs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> tuple[TensorSpec, ...]:
    """Return ``specs`` in which the dimensions named in ``dims`` are those."""
    left = {name: Dim(None, dim.min, dim.min, dim.min) if dim.min == dim.max else dim for name, dim in dims.items()}
    return tuple(
        replace(spec, dims=tuple(left.get(dim.name, dim) if dim.name else dim for dim in spec.dims)) for spec in specs
    )


def spelled(specs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> str:
    """Return the ``--input`` options of those of ``specs`` that ``dims`` change."""
    changed = [new for old, new in zip(specs, with_dims(specs, dims), strict=True) if old != new]
    return " ".join(f'--input "{spec}"' for spec in changed)


def multiples_that_run(specs: Sequence[TensorSpec], runs: Callable[[Mapping[str, int]], bool]) -> dict[str, Dim] | None:
    """Return the dimensions of which forward takes multiples only, None where that is not what it asks for.

    ``runs`` tells whether forward runs at given sizes. They are distinct, and multiples of as little else as their
    ranges allow: a size that works by chance is no advice.
    """
    dims = dynamic_dims(specs)
    for unit in UNITS:
        coarser = {name: of_multiple(dim, math.lcm(dim.multiple, unit)) for name, dim in dims.items()}
        found = {name: dim for name, dim in coarser.items() if dim is not None and dim != dims[name]}
        if found and runs(_bare_sizes(dims | found)):
            for name in list(found):  # most need none: the batch, a length
                fewer = {other: dim for other, dim in found.items() if other != name}
                if runs(_bare_sizes(dims | fewer)):
                    found = fewer
            return found
    return None


def _bare_sizes(dims: Mapping[str, Dim]) -> dict[str, int]:
    """Return a size near opt for each dimension, distinct, and a multiple of as little but its unit as can be."""
    sizes: dict[str, int] = {}
    for name, dim in dims.items():
        unit = dim.multiple
        factors = [n for n in range(-(-dim.min // unit), dim.max // unit + 1)[:1024] if n * unit not in sizes.values()]
        rank = {n: (n == 1, n & -n, math.gcd(n, _ROUND), abs(n * unit - dim.opt)) for n in factors}
        sizes[name] = unit * min(rank, key=rank.__getitem__) if rank else dim.opt
    return sizes


def of_lengths(error: BaseException) -> str:
    """Return what to do where forward cannot pack sequences of the lengths at hand; empty if ``error`` is not that."""
    if not packs(error):
        return ""
    return (
        "let no length be 0 or beyond the padded input: give the lengths a range, as lengths:N@i64[1..8] beside an "
        "input of at least 8 steps, and let forward pack with enforce_sorted=False"
    )


def packs(error: BaseException) -> bool:
    """Return True if ``error`` arose where PyTorch packs, runs or unpacks a PackedSequence."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file == _PACKING or (file == _LAYERS and isinstance(frame.f_locals.get("batch_sizes"), torch.Tensor)):
            return True
    return False
