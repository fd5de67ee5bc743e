"""Weights that are stored as integers, ``w = (q - z) s``: the parts of a weight that share one scale, and their signs.

ONNX specification, DequantizeLinear-23: one scale for the tensor, one for each index of ``axis``, or one for each block
of so many indices of ``axis`` at each index of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from normdeploy.fold.affine import Array


@dataclass(frozen=True)
class Granules:
    """How the scale of a quantized weight lies over it.

    Attributes:
        weight: the shape of the weight.
        scale: the shape of its scale, and of its zero point.
        axis: the axis of a scale with one axis, or the one that is cut into blocks; not negative.
        block: how many indices a block has; 0 where there are none.
    """

    weight: tuple[int, ...]
    scale: tuple[int, ...]
    axis: int
    block: int = 0

    def lengths(self) -> list[int]:
        """Return how many indices of each axis share a scale."""
        if self.block:
            return [self.block if axis == self.axis else 1 for axis in range(len(self.weight))]
        one = int(np.prod(self.scale)) == 1
        return [1 if axis == self.axis and not one else size for axis, size in enumerate(self.weight)]

    def shared(self, factor: Array) -> Array | None:
        """Return ``factor``, which broadcasts against the weight, as one against the scale; None where it cannot be."""
        few = factor.reshape((1,) * (len(self.weight) - factor.ndim) + factor.shape)
        for axis, (size, length) in enumerate(zip(self.weight, self.lengths(), strict=True)):
            if few.shape[axis] == 1:
                continue
            first = few.take(np.arange(0, size, length), axis=axis)
            if not np.array_equal(_spread(first, axis, length, size), few):
                return None
            few = first
        return few if self.block else few.reshape(-1) if len(self.scale) == 1 else few.reshape(())

    def over(self, array: np.ndarray) -> np.ndarray:
        """Return ``array``, a scale or zero point, so that it broadcasts against the weight."""
        if not array.ndim:
            return array
        if self.block:
            return _spread(array, self.axis, self.block, self.weight[self.axis])
        return array.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.weight))])


def _spread(array: np.ndarray, axis: int, length: int, size: int) -> np.ndarray:
    """Return ``array`` with each index of ``axis`` repeated, cut to ``size``."""
    return np.repeat(array, length, axis=axis).take(np.arange(size), axis=axis)


def fits(integers: Array, dtype: np.dtype[Any]) -> bool:
    """Return whether ``integers``, in float64, are numbers of ``dtype``, which may have 4 bits or fewer."""
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]  # it has no annotations
    return bool(np.all((integers >= info.min) & (integers <= info.max)))
