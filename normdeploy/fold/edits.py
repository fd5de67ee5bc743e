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
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.view import Refused

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
        """This edit with further factors."""
        if self.centred is not None:
            return replace(self._settled(), shift=self.exact() * left * right)
        shift = self.shift * left * right if np.any(self.shift) else self.shift
        return replace(self, left=_times(self.left, left), right=_times(self.right, right), shift=shift)

    def shifted(self, shift: Array) -> Edit:
        """This edit with a further shift."""
        if self.centred is not None:
            return replace(self._settled(), shift=self.exact() + shift)
        return replace(self, shift=self.shift + shift) if np.any(shift) else self

    def without_mean(self, axis: int) -> Edit:
        """This edit, and then the mean over ``axis`` taken off; a projection, kept as data."""
        before = self if self.centred in (None, axis) else self._settled()
        return replace(before, centred=axis)

    def _settled(self) -> Edit:
        """This edit as a tensor of its own: no factor passes a centring."""
        return Edit(None, self.dtype, shift=self.exact())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the edited tensor: a vector may take the place of a scalar."""
        original = () if self.original is None else tuple(self.original.shape.numpy())
        return np.broadcast_shapes(original, self.left.shape, self.right.shape, self.shift.shape)

    @property
    def nbytes(self) -> int:
        """The size of the edited tensor in bytes."""
        return int(math.prod(self.shape) * self.dtype.itemsize)

    @cached_property
    def _exact(self) -> Array:
        value = self._with_factors()
        return value if self.centred is None else value - value.mean(axis=self.centred, keepdims=True)

    def _with_factors(self) -> Array:
        with np.errstate(all="ignore"):
            if self.original is None:
                return np.asarray(self.shift, np.float64)
            value: Array = self.original.numpy().astype(np.float64)
            if value.shape != self.shape:
                value = np.broadcast_to(value, self.shape).copy()
            for factor in (self.left, self.right):
                if factor is not ONE:
                    value *= factor
            if np.any(self.shift):
                value += self.shift
            return value

    @cached_property
    def _stored(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            stored: np.ndarray = self._exact.astype(self.dtype.numpy())
        if self.dtype == ir.DataType.FLOAT:
            # Subnormal weights run 5 to 7 times slower on CPUs, and mean nothing beside their channel (see check).
            sizes = np.abs(stored)
            if sizes.min(initial=1.0) < (smallest := np.finfo(np.float32).smallest_normal):
                stored[sizes < smallest] = 0.0
        return stored

    def exact(self) -> Array:
        """The edited tensor in float64, not rounded to the dtype it is stored in."""
        return self._exact

    def rounded(self) -> np.ndarray:
        """The edited tensor in the dtype it is stored in, subnormal float32 results flushed to zero."""
        return self._stored

    def release(self) -> None:
        """Forget both tensors; they are computed again when asked for."""
        self.__dict__.pop("_exact", None)
        self.__dict__.pop("_stored", None)

    def ulps(self) -> float:
        """The largest change of an element, in units in the last place of the new value; inf for a new tensor."""
        if self.original is None:
            return float("inf")
        new = self.rounded()
        old = np.broadcast_to(self.original.numpy(), new.shape)
        if self.dtype == ir.DataType.BFLOAT16:  # float32 with 16 bits less
            return _largest_change(new.astype(np.float32), old.astype(np.float32)) / 2.0**16
        return _largest_change(new, old)

    def check(self, channel_axes: tuple[int, ...] = ()) -> int:
        """Refuse a tensor that does not fit its dtype; the number of elements that are flushed to zero.

        Args:
            channel_axes: the axes that tell output channels apart; the rest is summed into one channel.

        Raises:
            Refused: an element overflows, or underflow loses more than one ulp of its channel.
        """
        sizes = np.abs(self.rounded())
        if not np.isfinite(sizes.max(initial=0)):
            largest = float(np.abs(self.exact()).max())
            raise Refused(f"the folded weight overflows {self.dtype.name.lower()}: {largest:.3g}")
        smallest = ir_finfo(self.dtype).smallest_normal
        if sizes.min(initial=smallest) >= smallest:
            return 0
        small = (sizes < smallest) & (self.exact() != 0)
        if small.any():
            self._check_loss(small, channel_axes)
        return int(np.count_nonzero(small))

    def _check_loss(self, small: np.ndarray, channel_axes: tuple[int, ...]) -> None:
        exact, limits = self.exact(), ir_finfo(self.dtype)
        loss = np.where(small, np.abs(self.rounded().astype(np.float64) - exact), 0.0)
        others = tuple(axis for axis in range(exact.ndim) if axis not in channel_axes)
        norm = np.abs(exact).max(axis=others, keepdims=True, initial=0.0)
        worst = loss > float(limits.eps) * norm
        if np.any(worst):
            raise Refused(f"the folded weight underflows {self.dtype.name.lower()} in {int(worst.sum())} elements")


_BLOCK = 1 << 16
"""Elements that fit into a cache with what is computed from them."""

_EXPONENT: dict[int, np.unsignedinteger[Any]] = {
    2: np.uint16(0x7C00),
    4: np.uint32(0x7F800000),
    8: np.uint64(0x7FF0000000000000),
}
"""The exponent bits of a float, by its size in bytes; a float with nothing else is the power of 2 below it."""


def _largest_change(new: np.ndarray, old: np.ndarray) -> float:
    """The largest change of an element, in units in the last place of ``new``, or of the smallest normal number."""
    new, old, limits = new.reshape(-1), old.reshape(-1), np.finfo(new.dtype)
    bits = _EXPONENT[new.itemsize]
    worst = 0.0
    for start in range(0, new.size, _BLOCK):
        after, before = new[start : start + _BLOCK], old[start : start + _BLOCK]
        power = np.maximum(np.abs(after), limits.smallest_normal)
        power.view(bits.dtype)[...] &= bits
        # In float64: a weight that became 0 changed by more ulps than its dtype can count.
        change = np.abs(np.subtract(after, before, dtype=np.float64))
        with np.errstate(over="ignore"):  # and one in float64 by more than float64 can
            change /= power
        worst = max(worst, float(change.max()))
    return min(worst / float(limits.eps), sys.float_info.max)


def _times(factor: Array, other: Array) -> Array:
    return factor if other is ONE else factor * other


def ir_finfo(dtype: ir.DataType) -> Any:
    """The limits of a floating-point dtype, bfloat16 included."""
    return ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]  # it has no annotations


def fingerprint(array: np.ndarray) -> int:
    """A checksum of the bytes of ``array``."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
