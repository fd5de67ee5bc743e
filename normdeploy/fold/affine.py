"""Affine maps: ``y = scale ⊙ x + shift``, the linear part of every norm.

A map is held in float64 as two arrays of the rank of the tensor it acts on, of size 1 along every
axis it does not vary over, so that moving an axis of the tensor is the same move on the arrays:

    BatchNorm over NCHW     scale (1, C, 1, 1)
    LayerScale over NTC     scale (1, 1, C)
    attention scaling       scale (1, 1, 1, 1)

Composition, with ``a`` acting first:  ``(b ∘ a)(x) = b.scale * a.scale * x + (b.scale * a.shift + b.shift)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """``y = scale * x + shift``; both float64, of one rank, and each axis either 1 or the tensor's size."""

    scale: Array
    shift: Array

    @classmethod
    def of(cls, scale: npt.ArrayLike, shift: npt.ArrayLike, rank: int) -> AffineMap:
        """Return a map from arrays that broadcast against a tensor of ``rank`` axes from the right (as in numpy)."""
        return cls(_of_rank(scale, rank), _of_rank(shift, rank))

    @classmethod
    def identity(cls, rank: int) -> AffineMap:
        """Return the map that changes nothing, for tensors of ``rank`` axes."""
        return cls.of(1.0, 0.0, rank)

    @property
    def rank(self) -> int:
        """Number of axes of the tensors the map acts on."""
        return self.scale.ndim

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the axes the map varies over."""
        return tuple(i for i in range(self.rank) if self.scale.shape[i] != 1 or self.shift.shape[i] != 1)

    def size(self, axis: int) -> int:
        """Return the extent of ``axis`` that the map asks for; 1 where it does not vary."""
        return int(max(self.scale.shape[axis], self.shift.shape[axis]))

    @property
    def is_identity(self) -> bool:
        """Return True if the map changes nothing, exactly."""
        return self.scales_nothing and self.shifts_nothing

    @property
    def scales_nothing(self) -> bool:
        """Return True if every scale is exactly 1."""
        return bool(np.all(self.scale == 1.0))

    @property
    def shifts_nothing(self) -> bool:
        """Return True if every shift is exactly 0."""
        return not np.any(self.shift)

    @property
    def is_finite(self) -> bool:
        """Return True if no coefficient is infinite or NaN."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def __call__(self, x: Array) -> Array:
        """Apply the map to ``x`` in float64."""
        y: Array = self.scale * x
        if np.broadcast_shapes(y.shape, self.shift.shape) != y.shape:
            return y + self.shift
        y += self.shift  # large probes are written to memory once
        return y

    def after(self, first: AffineMap) -> AffineMap:
        """Return the composition ``self ∘ first``."""
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever asks is_finite
            both = AffineMap(self.scale * first.scale, self.scale * first.shift + self.shift)
        return AffineMap(_shrunk(both.scale), _shrunk(both.shift))

    def without_shift(self) -> AffineMap:
        """Return only the scale of the map."""
        return AffineMap(self.scale, np.zeros((1,) * self.rank))

    def only_shift(self) -> AffineMap:
        """Return only the shift of the map: what is left when the scale acted before."""
        return AffineMap(np.ones((1,) * self.rank), self.shift)

    def shift_before_scale(self) -> AffineMap | None:
        """Return the shift to add when the scale acts after it, ``shift / scale``; None where a scale is 0."""
        if not np.all(self.scale):
            return None
        with np.errstate(all="ignore"):
            return AffineMap(np.ones((1,) * self.rank), self.shift / self.scale)

    def divides(self, other: AffineMap) -> AffineMap | None:
        """Return the scale to go before the scale of this map, without a 0, for both together to be that of ``other``.

        None where the two act on tensors of different shape.
        """
        if not _fits(self.scale, other.scale):
            return None
        with np.errstate(all="ignore"):
            return AffineMap(other.scale / self.scale, np.zeros((1,) * self.rank)).moved(lambda a: a)

    def equals(self, other: AffineMap) -> bool:
        """Return True if both are the same function of tensors of one shape, exactly."""
        return _equal(self.scale, other.scale) and _equal(self.shift, other.shift)

    def moved(self, move: Callable[[Array], Array]) -> AffineMap:
        """Return the map after ``move`` (a transpose, a reshape, ...) was done to the tensor it acts on.

        ``move`` sees both arrays at one common shape; axes along which the result is constant shrink to 1.
        """
        scale, shift = np.broadcast_arrays(self.scale, self.shift)
        return AffineMap(_shrunk(move(scale)), _shrunk(move(shift)))

    def broadcast(self, sizes: Sequence[int]) -> AffineMap:
        """Return the same map with its arrays written out at ``sizes`` (1 or the tensor's size, an axis each)."""
        return AffineMap(np.broadcast_to(self.scale, sizes), np.broadcast_to(self.shift, sizes))


def _equal(left: Array, right: Array) -> bool:
    return _fits(left, right) and bool(np.all(left == right))


def _fits(left: Array, right: Array) -> bool:
    """Return True if both may act on tensors of one shape."""
    return left.ndim == right.ndim and all(n == m or 1 in (n, m) for n, m in zip(left.shape, right.shape, strict=True))


def _of_rank(values: npt.ArrayLike, rank: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _shrunk(array: Array) -> Array:
    """Return ``array`` with every axis along which it is constant reduced to size 1."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1 and _is_constant(array, axis):
            array = array.take([0], axis=axis)
    return array


def _is_constant(array: Array, axis: int) -> bool:
    """Return True if ``array`` is the same all along ``axis``, of size 2 or more; two cells tell most that are not."""
    if array.strides[axis] == 0:  # it was broadcast
        return True
    first, second = (array.take([cell], axis=axis) for cell in (0, 1))
    return _repeats(first, second) and _repeats(first, array)


def _repeats(first: Array, array: Array) -> bool:
    """Return True if ``array`` is ``first`` over and over; NaN equals NaN."""
    if np.all(array == first):
        return True
    return bool(np.isnan(first).any()) and np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=True)
