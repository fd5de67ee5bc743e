"""Feeds: the inputs that parity is judged on, seeded random ones over every dynamic dimension's range, or from a file.

Opt is where a model is used most, so it is the base: each dynamic dimension goes to its min and its max in turn while
the others stay at opt.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes  # also teaches numpy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from normdeploy.disk.arrays import Header, read_arrays
from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec, dynamic_dims, sizes_at
from normdeploy.trust import read_once

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Feed:
    """One set of inputs.

    Attributes:
        name: what reports call it.
        arrays: name → array of the spec's dtype and a shape within its ranges.
        notes: what is odd about it.
        corner: whether it judges nobody where eager PyTorch itself gives NaN or loses the output.
        instead: what is taken in its place then; None for nothing.
    """

    name: str
    arrays: dict[str, Array]
    notes: tuple[str, ...] = ()
    corner: bool = False
    instead: Feed | None = None


def random_feeds(specs: Sequence[TensorSpec], *, seed: int = 0) -> tuple[Feed, ...]:
    """Return a feed at opt, and one at the min and the max of each dynamic dimension, without repetitions.

    Floats are standard normal, or uniform where the spec gives a range; integers are uniform in their range, both
    ends included; booleans are true half the time. The same specs and seed give the same arrays. Raises InputError
    naming the integer inputs that have no range.
    """
    generator = np.random.default_rng(seed)
    return tuple(Feed(_name(sizes), random_arrays(specs, sizes, generator)) for sizes in _points(specs))


def random_arrays(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], generator: np.random.Generator
) -> dict[str, Array]:
    """Return random inputs at ``sizes``, as :func:`random_feeds` draws them. Raises InputError as that does."""
    unbounded = [spec.name for spec in specs if spec.low is None and np.dtype(spec.dtype).kind in "iu"]
    if unbounded:
        raise InputError(
            "integer inputs need the range of their values, to make random ones",
            where=", ".join(unbounded),
            fix=f"write e.g. --input {unbounded[0]}:...@i64[0..30521], or give real inputs by --data",
        )
    return {spec.name: _random(spec, spec.shape(sizes), generator) for spec in specs}


def batch_feed(specs: Sequence[TensorSpec], batch: int) -> Feed:
    """Return random inputs whose first dimension is ``batch``, at the usual sizes of all others.

    Raises InputError where that dimension is fixed, its range does not include ``batch``, or integers have no range.
    """
    first = next((spec.dims[0] for spec in specs if spec.dims and not spec.dims[0].fixed), None)
    if first is None or not first.takes(batch):
        told = "no input has a first dimension that changes" if first is None else f"the range is {first.span}"
        raise InputError(f"it cannot run a batch of {batch}: {told}", where=f"--batch {batch}", fix="stay in its range")
    sizes = sizes_at(specs, "opt") | {str(first.name): batch}
    try:
        return Feed(f"random {first.name}={batch}", random_arrays(specs, sizes, np.random.default_rng(0)))
    except InputError as error:  # data are of no other size than their own
        fix = "write e.g. --input ids:...@i64[0..30521], or leave --batch out"
        raise InputError(error.what, where=f"{error.where}, --batch {batch}", fix=fix) from error


def _points(specs: Sequence[TensorSpec]) -> list[dict[str, int]]:
    usual = sizes_at(specs, "opt")
    points = [usual]
    for name, dim in dynamic_dims(specs).items():
        for size in (dim.min, dim.max):
            point = usual | {name: size}
            if point not in points:
                points.append(point)
    return points


def _name(sizes: dict[str, int]) -> str:
    return " ".join(["random", *(f"{name}={size}" for name, size in sizes.items())])


def _random(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        whole = generator.integers(_whole(spec.low), _whole(spec.high), size=shape, dtype=dtype, endpoint=True)
        return _mixed(whole) if is_mask(spec) else whole
    if dtype.kind == "b":
        low, high = (0, 1) if spec.low is None else (_whole(spec.low), _whole(spec.high))
        drawn = generator.integers(low, high, size=shape, endpoint=True).astype(dtype)
        return _mixed(drawn) if is_mask(spec) else drawn
    if spec.low is None or spec.high is None:
        return generator.standard_normal(shape).astype(dtype)
    # a convex combination: high − low alone may overflow
    share = generator.random(shape)
    return (spec.low * (1 - share) + spec.high * share).astype(dtype)


def is_mask(spec: TensorSpec) -> bool:
    """Return True if an input is true or false, or 0 or 1."""
    whole = np.dtype(spec.dtype).kind in "iu" and (spec.low, spec.high) == (0, 1)
    return (spec.dtype == "bool" and (spec.low, spec.high) in ((None, None), (0, 1))) or whole


def _mixed(mask: Array) -> Array:
    """Return ``mask`` with one element turned in each row that is all alike: to hide all of one is a corner."""
    if mask.ndim and mask.shape[-1] > 1:
        alike = (mask == mask[..., :1]).all(-1)
        mask[..., -1] = np.where(alike, 1 - mask[..., -1].astype(np.uint8), mask[..., -1])
    return mask


def _whole(end: float | None) -> int:
    return int(end or 0)


def data_feed(specs: Sequence[TensorSpec], path: Path, name: str = "data") -> Feed:
    """Return the feed called ``name`` from an .npz or safetensors file with one array for each spec, by name.

    Nothing in the file is unpickled. Raises InputError that lists all of: missing and unexpected names, other dtypes,
    ranks and sizes outside the specs' ranges, sizes of one dimension that differ, values outside a spec's range.
    NaN and infinities are accepted and noted.
    """
    given = _read_safetensors(path) if path.suffix == ".safetensors" else _read(specs, path)
    return feed_of(specs, given, name, str(path))


def feed_of(specs: Sequence[TensorSpec], given: Mapping[str, Array], name: str, where: str) -> Feed:
    """Return the feed called ``name`` of ``given``, which comes from ``where``; InputError unless it fits the specs."""
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}
    arrays = {key: _native(array, dtypes.get(key)) for key, array in given.items()}
    _require_fit(specs, arrays, where)
    ordered = {spec.name: arrays[spec.name] for spec in specs}
    return Feed(name, ordered, tuple(_oddities(Path(where).name, ordered)))


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open

    from normdeploy.runtime.eager import array_of  # PyTorch, which only reading these files takes

    try:
        with safe_open(path, "pt") as file:  # "numpy" has no bfloat16
            return {name: array_of(file.get_tensor(name).clone()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        fix = "write it with safetensors.torch.save_file({name: tensor, ...}, path)"
        raise InputError(f"the data file cannot be read: {error}", where=str(path), fix=fix) from error


def _require_fit(specs: Sequence[TensorSpec], arrays: Mapping[str, Array], where: str) -> None:
    if found := problems(specs, arrays):
        wanted = " ".join(f"--input {spec}" for spec in specs)
        raise InputError("; ".join(found), where=where, fix=f"save arrays that fit {wanted} with numpy.savez")


def _read(specs: Sequence[TensorSpec], path: Path) -> dict[str, Array]:
    """The arrays, which are read only if shapes and dtypes fit: a small file can hold much that is unasked for."""
    fix = "write it with numpy.savez(path, name=array, ...), from arrays of numbers or booleans"
    free = [replace(spec, low=None, high=None) for spec in specs]
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}

    def accept(headers: Mapping[str, Header]) -> None:
        blank = {name: _blank(header, dtypes.get(name)) for name, header in headers.items()}
        _require_fit(free, blank, str(path))

    file = io.BytesIO(read_once(path).data)
    if not zipfile.is_zipfile(file):
        raise InputError("the data file is no .npz archive", where=str(path), fix=fix)
    try:
        return read_arrays(file, accept)
    except InputError:
        raise
    except Exception as error:  # a damaged or crafted file makes numpy and zipfile raise almost anything
        raise InputError(f"the data file cannot be read: {error}", where=str(path), fix=fix) from error


def _blank(header: Header, wanted: np.dtype[Any] | None) -> Array:
    """An array of this shape that takes no memory."""
    is_bfloat16 = wanted == ml_dtypes.bfloat16 and header.dtype == np.dtype("V2")
    dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else header.dtype.newbyteorder("=")
    return np.broadcast_to(np.zeros((), dtype), header.shape)


def _native(array: Array, wanted: np.dtype[Any] | None) -> Array:
    """``array``, contiguous and in this machine's byte order; bfloat16, which numpy writes as two bytes of no type."""
    if wanted == ml_dtypes.bfloat16 and array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def problems(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> list[str]:
    """Return everything about ``arrays`` that does not fit ``specs``; nothing is cast, broadcast or dropped in silence.

    The names must be those of the specs, each dtype the spec's own, each size within its range and the same wherever
    its dimension's name appears, each value within the spec's range where it states one. NaN is no value: it passes,
    as it does through a model.
    """
    names = [spec.name for spec in specs]
    found = [f"input {name} is missing" for name in names if name not in arrays]
    found += [f"there is no input {name!r}" for name in arrays if name not in names]
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name in arrays:
            found += _array_problems(spec, arrays[spec.name], sizes)
    return found


def _array_problems(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> Iterator[str]:
    """Return what does not fit in one array; ``sizes`` collects the sizes of named dimensions over all arrays."""
    if array.dtype != np.dtype(spec.dtype):
        yield f"{spec.name} is {array.dtype}, not {spec.dtype}"
    elif spec.low is not None and spec.high is not None and ((array < spec.low) | (array > spec.high)).any():
        yield f"{spec.name} has values from {array.min()} to {array.max()}, outside [{spec.low}..{spec.high}]"
    if array.ndim != len(spec.dims):
        yield f"{spec.name} has shape {array.shape}, not {len(spec.dims)} dimensions"
        return
    for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
        if not dim.takes(size):
            yield f"axis {axis} of {spec.name} has size {size}, not {dim.span}"
        elif dim.name is not None and (other := sizes.setdefault(dim.name, size)) != size:
            yield f"axis {axis} of {spec.name} has size {size}, but dimension {dim.name} is {other} elsewhere"


def _oddities(file: str, arrays: dict[str, Array]) -> Iterator[str]:
    for name, array in arrays.items():
        if array.dtype.kind not in "iub" and not (finite := np.isfinite(array.astype(np.float64))).all():
            yield f"{file}: {name} holds {array.size - int(finite.sum())} values that are NaN or infinite"
