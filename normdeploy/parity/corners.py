"""Feeds that look into corners, where a wrong graph shows that random numbers of ordinary size never reach.

Masks that hide everything, nothing, or the end of a row; integers at both ends; floats that are large, alike, zero or
subnormal; sizes that are odd. A corner where eager PyTorch itself gives NaN, or loses the output, judges nobody: it is
replaced, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed, is_mask, random_arrays
from normdeploy.specs import Dim, TensorSpec, dynamic_dims, sizes_at

Array = npt.NDArray[Any]
Draw = Callable[[tuple[int, ...], np.random.Generator], Array]

_ROWS = 3
"""Rows of a batch of masks, where the specs allow them: some differ from others then."""


def corner_feeds(specs: Sequence[TensorSpec], *, seed: int = 0) -> tuple[Feed, ...]:
    """Return the corners of ``specs``: odd sizes, masks, ends of integers, kinds of floats; none that is no corner.

    Each kind of corner is one feed, in which all inputs that have it take it, and the others are random. Raises
    InputError as random_feeds does.
    """
    generator = np.random.default_rng([seed, 1])
    return tuple(_corners(specs, generator))


def _corners(specs: Sequence[TensorSpec], generator: np.random.Generator) -> Iterator[Feed]:
    usual = sizes_at(specs, "opt")
    odd = {name: _odd(dim) for name, dim in dynamic_dims(specs).items()}
    if odd and odd != usual:
        told = " ".join(f"{name}={size}" for name, size in odd.items())
        yield Feed(f"odd {told}", random_arrays(specs, odd, generator))
    groups: list[tuple[str, Mapping[str, Draw], Callable[[TensorSpec], bool], dict[str, int]]] = [
        ("mask", _MASKS, is_mask, _with_rows(specs)),
        ("integers", _ENDS, _is_integer, sizes_at(specs, "min")),
        ("range", _ENDS, _is_bounded, sizes_at(specs, "min")),
        ("floats", _FLOATS, _is_free, sizes_at(specs, "min")),
    ]
    for kind, draws, belongs, sizes in groups:
        if any(belongs(spec) for spec in specs):
            for name, draw in draws.items():
                yield _corner(f"{kind}: {name}", specs, sizes, belongs, draw, generator)


def _corner(
    name: str,
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    belongs: Callable[[TensorSpec], bool],
    draw: Draw,
    generator: np.random.Generator,
) -> Feed:
    plain = random_arrays(specs, sizes, generator)
    drawn = {spec.name: _fitted(draw(plain[spec.name].shape, generator), spec) for spec in specs if belongs(spec)}
    # as little of a judge as the corner where eager gives NaN on it too: the random feeds themselves judge that
    instead = Feed(f"random, in place of {name}", plain, corner=True)
    return Feed(name, plain | drawn, corner=True, instead=instead)


def _fitted(values: Array, spec: TensorSpec) -> Array:
    """Return ``values`` in the spec's dtype; those of a range are shares of it."""
    dtype = np.dtype(spec.dtype)
    if spec.low is None or spec.high is None or is_mask(spec):
        return values.astype(dtype)
    return np.where(values > 0, np.asarray(spec.high, dtype), np.asarray(spec.low, dtype)).astype(dtype)


def _odd(dim: Dim) -> int:
    """Return a size of ``dim`` that is none of its three, an odd one first; the usual one where there is no other."""
    known = {dim.min, dim.opt, dim.max}
    near = [size for step in range(1, 65) for size in (dim.opt + step, dim.opt - step)]
    others = [size for size in near if dim.takes(size) and size not in known]
    return next((size for size in others if size % 2), others[0] if others else dim.opt)


def _with_rows(specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the usual sizes, with a few rows in the batch of each mask."""
    sizes = sizes_at(specs, "opt")
    for spec in specs:
        first = spec.dims[0] if spec.dims and len(spec.dims) > 1 else None
        if is_mask(spec) and first is not None and first.name is not None and first.takes(_ROWS):
            sizes[first.name] = max(sizes[first.name], _ROWS)
    return sizes


def _is_integer(spec: TensorSpec) -> bool:
    return np.dtype(spec.dtype).kind in "iu" and not is_mask(spec)


def _is_free(spec: TensorSpec) -> bool:
    return spec.low is None and not _is_integer(spec) and not is_mask(spec) and spec.dtype != "bool"


def _is_bounded(spec: TensorSpec) -> bool:
    return spec.low is not None and not _is_integer(spec) and not is_mask(spec) and spec.dtype != "bool"


# -- masks: the last axis is what they hide ----------------------------------------------------


def _lengths(shape: tuple[int, ...]) -> Array:
    """Return how much of each row is kept: all of the first, less of each that follows, at least one."""
    rows = int(np.prod(shape[:-1]))
    return np.maximum(1, shape[-1] - np.arange(rows) * max(1, shape[-1] // max(rows, 2))).reshape(*shape[:-1], 1)


def _prefix(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    del generator
    return np.arange(shape[-1]) < _lengths(shape) if shape else np.ones(shape, bool)


def _one_element(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if not shape:
        return np.ones(shape, bool)
    chosen = generator.integers(0, shape[-1], (*shape[:-1], 1))
    return np.asarray(np.arange(shape[-1]) == chosen)


def _mixed_rows(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Return random rows, but the first, which is all false, and the last, which is all true."""
    mask = generator.random(shape) < 0.5
    if len(shape) > 1:
        mask[0], mask[-1] = False, True
    return mask


_MASKS: dict[str, Draw] = {
    "all false": lambda shape, _: np.zeros(shape, bool),
    "all true": lambda shape, _: np.ones(shape, bool),
    "true, then false": _prefix,
    "false, then true": lambda shape, generator: ~_prefix(shape, generator),
    "one true": _one_element,
    "one false": lambda shape, generator: ~_one_element(shape, generator),
    "a row of each": _mixed_rows,
}
_ENDS: dict[str, Draw] = {
    "all at the low end": lambda shape, _: np.zeros(shape),
    "all at the high end": lambda shape, _: np.ones(shape),
}


def _outlier(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    x = generator.standard_normal(shape)
    if x.size:
        x.flat[generator.integers(x.size)] = 1e3
    return x


def _constant_rows(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    rows = generator.standard_normal(shape[:-1] + (1,) * bool(shape))
    return np.broadcast_to(rows, shape)


_FLOATS: dict[str, Draw] = {
    "mean 100": lambda shape, generator: generator.standard_normal(shape) + 1e2,
    "mean 10,000": lambda shape, generator: generator.standard_normal(shape) + 1e4,
    "tiny variance": lambda shape, generator: 1 + 1e-3 * generator.standard_normal(shape),
    "constant rows": _constant_rows,
    "one outlier": _outlier,
    "zeros": lambda shape, _: np.zeros(shape),
    "subnormal": lambda shape, generator: 1e-40 * generator.standard_normal(shape),
}


def statistics_feed(module: nn.Module, specs: Sequence[TensorSpec], *, seed: int = 0) -> Feed | None:
    """Return inputs with the mean and variance, by channel, that the first BatchNorm has seen.

    None where that norm does not look at an input: no free float input has as many channels, on its second axis, as the
    first norm of running statistics has.
    """
    norms = (part for part in module.modules() if isinstance(getattr(part, "running_mean", None), torch.Tensor))
    first: Any = next(norms, None)
    if first is None:
        return None
    mean, variance = (stat.detach().double().numpy() for stat in (first.running_mean, first.running_var))
    fits = [spec for spec in specs if _is_free(spec) and len(spec.dims) > 1 and spec.dims[1].min == mean.size]
    if not fits or not np.isfinite(variance).all() or (variance < 0).any():
        return None
    generator = np.random.default_rng([seed, 2])
    try:
        arrays = random_arrays(specs, sizes_at(specs, "opt"), generator)
    except InputError:
        return None
    for spec in fits:
        channels = (1, -1, *[1] * (len(spec.dims) - 2))
        x = generator.standard_normal(arrays[spec.name].shape) * np.sqrt(variance).reshape(channels)
        arrays[spec.name] = (x + mean.reshape(channels)).astype(np.dtype(spec.dtype))
    return Feed("statistics of the first norm", arrays, corner=True, instead=None)
