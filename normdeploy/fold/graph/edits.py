"""Weight edits are data: original tensor, two diagonals, a shift and a centring, in float64.

    new = C(original ⊙ left ⊙ right + shift),   C(w) = w - mean(w) over one axis, or the identity

Edits compose; the tensor is evaluated in float64 and rounded once, when it is written, in its own dtype.
So a product that overflows only in between is no problem, and one that overflows in the end is refused.
"""

from __future__ import annotations

import math
import sys
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.reader import Refused

Part = slice | EllipsisType
"""Some rows of a tensor, or all of it."""


@dataclass(frozen=True)
class Channels:
    """Which elements of a tensor go into one output channel, so that what is lost of one can be told from the others.

    Attributes:
        axes: the axes that tell output channels apart; negative ones count from the back.
        others: ``axes`` are all the other axes: those that are summed over.
        groups: axis 0 is so many groups, each with channels of its own.
        varied: whatever the factor of an edit varies over, too.
    """

    axes: tuple[int, ...] = ()
    others: bool = False
    groups: int = 1
    varied: bool = False

    def largest(self, sizes: Array, factor: Array) -> Array:
        """Return for each element of ``sizes`` the largest of its channel, in an array that broadcasts against it."""
        named = {axis % sizes.ndim for axis in self.axes} if sizes.ndim else set()
        if self.varied:
            named |= {axis for axis in range(-factor.ndim, 0) if factor.shape[axis] != 1 and -axis <= sizes.ndim}
            named = {axis % sizes.ndim for axis in named}
        summed = tuple(axis for axis in range(sizes.ndim) if (axis in named) is self.others)
        if self.groups == 1:
            return np.asarray(sizes.max(axis=summed, keepdims=True, initial=0.0))
        grouped = sizes.reshape(self.groups, -1, *sizes.shape[1:])  # the groups are an axis of their own
        inner = tuple(axis + 1 for axis in summed)
        largest = grouped.max(axis=inner, keepdims=True, initial=0.0)
        return np.broadcast_to(largest, grouped.shape).reshape(sizes.shape)


WHOLE = Channels()
"""A bias: what is lost of it is measured against all of it."""
EACH = Channels(others=True)
"""Each element is a channel of its own."""
VARIED = Channels(varied=True)
"""What moves elements only: channels are what the map tells apart."""

ONE: Array = np.ones(())
ZERO: Array = np.zeros(())


@dataclass(frozen=True, eq=False)
class Edit:
    """What is done to one stored tensor.

    Attributes:
        original: the tensor as it was; None for a bias that did not exist.
        dtype: the dtype it is stored in.
        left: factor over the producing side (output channels), broadcasts against the tensor.
        right: factor over the consuming side (input channels), broadcasts against the tensor.
        shift: added to that, broadcasts against the tensor (a whole tensor where ``original`` is None).
        centred: the axis whose mean is taken off in the end; None for none.
    """

    original: ir.TensorProtocol | None
    dtype: ir.DataType
    left: Array = field(default_factory=lambda: ONE)
    right: Array = field(default_factory=lambda: ONE)
    shift: Array = field(default_factory=lambda: ZERO)
    centred: int | None = None

    def scaled(self, *, left: Array = ONE, right: Array = ONE) -> Edit:
        """Return this edit with further factors."""
        if self.centred is not None:
            return replace(self._settled(), shift=self.exact() * left * right)
        shift = self.shift * left * right if np.any(self.shift) else self.shift
        return replace(self, left=_times(self.left, left), right=_times(self.right, right), shift=shift)

    def shifted(self, shift: Array) -> Edit:
        """Return this edit with a further shift."""
        if self.centred is not None:
            return replace(self._settled(), shift=self.exact() + shift)
        return replace(self, shift=self.shift + shift) if np.any(shift) else self

    def without_mean(self, axis: int) -> Edit:
        """Return this edit, and then the mean over ``axis`` taken off; a projection, kept as data."""
        before = self if self.centred in (None, axis) else self._settled()
        return replace(before, centred=axis)

    def _settled(self) -> Edit:
        """Return this edit as a tensor of its own: no factor passes a centring."""
        return Edit(None, self.dtype, shift=self.exact())

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the edited tensor: a vector may take the place of a scalar."""
        original = () if self.original is None else tuple(self.original.shape.numpy())
        return np.broadcast_shapes(original, self.left.shape, self.right.shape, self.shift.shape)

    def untouched(self) -> np.ndarray | None:
        """Return the tensor as it is stored, in its own dtype, where nothing is done to it; else None."""
        is_same = self.left is ONE and self.right is ONE and self.shift is ZERO and self.centred is None
        return self._terms.original if is_same else None

    @property
    def nbytes(self) -> int:
        """Return the size of the edited tensor in bytes."""
        return int(math.prod(self.shape) * self.dtype.itemsize)

    @cached_property
    def _exact(self) -> Array:
        exact, terms = np.empty(self.shape), self._terms
        with np.errstate(all="ignore"):
            for part in self._parts():
                self._evaluate(terms, part, exact[part])
        return exact

    @cached_property
    def _terms(self) -> _Terms:
        """Return what the tensor is made of; the original is read once, since it may have to be evaluated itself."""
        factors = [] if self.original is None else [each for each in (self.left, self.right) if each is not ONE]
        return _Terms(
            None if self.original is None else self._wide(self.original.numpy()),
            [self._wide(each) for each in factors],
            self._wide(self.shift),
            bool(np.any(self.shift)),
        )

    def _wide(self, array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array, self.shape)

    def _evaluate(self, terms: _Terms, part: Part, into: Array) -> Array:
        """Return some rows of the edited tensor, or all, in ``into``; what is centred needs all of the mean's axis."""
        if terms.original is None:
            into[...] = terms.shift[part]
        else:
            into[...] = terms.original[part]
            for factor in terms.factors:
                into *= factor[part]
            if terms.has_shift and np.any(shift := terms.shift[part]):
                into += shift
        if self.centred is not None:
            into -= into.mean(axis=self.centred, keepdims=True)
        return into

    def _parts(self) -> list[slice] | list[EllipsisType]:
        """Return rows that fit into a cache with what is computed from them; the whole where rows hang together."""
        shape = self.shape
        if not shape or (self.centred is not None and self.centred % len(shape) == 0):
            return [...]
        rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
        return [slice(start, start + rows) for start in range(0, shape[0], rows)]

    def evaluate(self) -> None:
        """Evaluate the exact tensor and the rounded one together, part by part: each part is in the cache for both."""
        if self.dtype.is_integer() or "_rounded" in self.__dict__:
            return
        exact = np.empty(self.shape)
        self.__dict__.update(_rounded=self._round(exact), _exact=exact)

    @cached_property
    def _rounded(self) -> _Rounded:
        if self.dtype.is_integer():
            integers = self._exact.astype(self.dtype.numpy())
            return _Rounded(integers, bool(np.all(integers.astype(np.float64) == self._exact)), 0, 0, 0.0)
        return self._round(None)

    def _round(self, whole: Array | None) -> _Rounded:
        """Return what is stored; the exact tensor is left in ``whole``."""
        array, terms, known = np.empty(self.shape, self.dtype.numpy()), self._terms, self.__dict__.get("_exact")
        smallest = _finfo(array.dtype).smallest_normal
        fits, small, zeros, ulps = True, 0, 0, 0.0 if terms.original is not None else math.inf
        with np.errstate(all="ignore"):
            for part in self._parts():
                stored = array[part]
                if known is not None:
                    exact = known[part]
                else:
                    exact = self._evaluate(terms, part, np.empty(stored.shape) if whole is None else whole[part])
                stored[...] = exact
                sizes = np.abs(stored)
                fits &= bool(np.isfinite(sizes.max(initial=0)))
                least = sizes.min(initial=1)
                if least < smallest:
                    below = sizes < smallest
                    lost = below & (exact != 0)
                    small += int(np.count_nonzero(lost))
                    if self.dtype == ir.DataType.FLOAT:
                        # Subnormal weights run 5 to 7 times slower on CPUs, and mean nothing beside their channel.
                        stored[below] = 0.0
                    zeros += int(np.count_nonzero(lost & (stored == 0)))
                if terms.original is not None:
                    if not least >= smallest:  # to take the maximum takes longer than all the rest
                        sizes = np.maximum(sizes, smallest, dtype=sizes.dtype)
                    ulps = max(ulps, _largest_change(stored, terms.original[part], sizes))
        return _Rounded(array, fits, small, zeros, ulps)

    def summands(self) -> Array:
        """Return the sizes of what is added up in each element, in float64: more than the element where it cancels."""
        sizes = np.abs(self.shift) * np.ones(self.shape)
        if self.original is not None:
            with np.errstate(all="ignore"):
                sizes += np.abs(self.original.numpy().astype(np.float64)) * np.abs(self.left) * np.abs(self.right)
        return sizes if self.centred is None else sizes + sizes.mean(axis=self.centred, keepdims=True)

    def exact(self) -> Array:
        """Return the edited tensor in float64, not rounded to the dtype it is stored in."""
        return self._exact

    def rounded(self) -> np.ndarray:
        """Return the edited tensor in the dtype it is stored in, subnormal float32 results flushed to zero."""
        return self._rounded.array

    def release(self) -> None:
        """Forget both tensors, and the original; they are computed again when asked for."""
        for name in ("_exact", "_rounded", "_terms"):
            self.__dict__.pop(name, None)

    def ulps(self) -> float:
        """Return the largest change of an element, in units in the last place of the new value; inf for a new
        tensor.
        """
        return self._rounded.ulps

    def require_storable(self, channels: Channels = WHOLE) -> Lost:
        """Refuse a tensor that does not fit its dtype; return what became of numbers that are too small for it.

        Args:
            channels: which elements go into one output channel.

        Raises:
            Refused: an element overflows, or underflow loses more than one ulp of its channel.
        """
        if not self._rounded.fits:
            largest = float(np.abs(self.exact()).max())
            raise Refused("NF111", f"the folded weight overflows {self.dtype.name.lower()}: {largest:.3g}")
        if self._rounded.small:
            self._require_small_loss(channels)
        return Lost(self._rounded.small, self._rounded.zeros)

    def _require_small_loss(self, channels: Channels) -> None:
        exact, stored = self.exact(), self.rounded()
        limits = _finfo(stored.dtype)
        small = np.abs(stored) < limits.smallest_normal
        loss = np.where(small, np.abs(stored.astype(np.float64) - exact), 0.0)
        worst = loss > float(limits.eps) * channels.largest(np.abs(exact), self.left)
        if np.any(worst):
            raise Refused(
                "NF112", f"the folded weight underflows {self.dtype.name.lower()} in {int(worst.sum())} elements"
            )


@dataclass(frozen=True)
class Lost:
    """How many elements that are not 0 are below the smallest normal number, and how many of these are stored as 0."""

    small: int
    zeros: int


@dataclass(frozen=True)
class _Rounded:
    """What is stored, and what became of the numbers.

    Attributes:
        array: the edited tensor in its dtype.
        fits: whether every element is finite.
        small: the number of elements that are not 0, and smaller than the smallest normal number.
        zeros: how many of these are stored as 0.
        ulps: the largest change of an element, in units in the last place of the new value.
    """

    array: np.ndarray
    fits: bool
    small: int
    zeros: int
    ulps: float


@dataclass(frozen=True)
class _Terms:
    """What an edited tensor is made of, each at its shape: the original, what that is multiplied by, what is added."""

    original: np.ndarray | None
    factors: list[np.ndarray]
    shift: np.ndarray
    has_shift: bool


_BLOCK = 1 << 17
"""Elements that fit into a cache with what is computed from them."""


_EXPONENT = {np.dtype(np.float32): 0x7F800000, np.dtype(np.float64): 0x7FF0000000000000}
"""The exponent bits of a float; a float with nothing else is the power of 2 below it."""


def _largest_change(new: np.ndarray, old: np.ndarray, sizes: np.ndarray) -> float:
    """Return the largest change of an element, in units in the last place of its size, which is that of ``new`` or the
    smallest normal number; ``sizes`` are used up.
    """
    limits, dtype = _finfo(new.dtype), np.promote_types(np.float32, new.dtype)
    after, before, power = (np.atleast_1d(array).astype(dtype, copy=False) for array in (new, old, sizes))
    bits = power.view(f"u{dtype.itemsize}")
    bits &= _EXPONENT[dtype]
    worst = _largest_ratio(after - before, power)
    if not math.isfinite(worst):  # a weight that became 0 changed by more ulps than its dtype can count
        worst = _largest_ratio(after.astype(np.float64) - before, power)
    return min(worst / float(limits.eps), sys.float_info.max)


def _largest_ratio(change: np.ndarray, power: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        np.abs(change, out=change)
        change /= power
        return float(change.max(initial=0.0))


def _times(factor: Array, other: Array) -> Array:
    return factor if other is ONE else factor * other


def _finfo(dtype: np.dtype[Any]) -> Any:
    """Return the limits of a floating-point dtype, bfloat16 included."""
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # it has no annotations


def fingerprint(array: np.ndarray) -> int:
    """Return a checksum of the bytes of ``array``."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
