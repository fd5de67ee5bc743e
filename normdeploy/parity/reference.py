"""What the artefact is compared with: the eager module in its own dtype, and in float64 on the same inputs.

A float64 run is a reference only where nothing in it is rounded to less. Modules cast to float32 themselves
(``x.float()``, ``softmax(..., dtype=torch.float32)``), so casts are kept in float64 while the reference runs; what
rounds in another way, or fails in float64, ends the float64 reference, and is said. Of equal elements a sort and a
top-k take the first, which PyTorch leaves open and a graph does not (:mod:`normdeploy.runtime.ties`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from normdeploy.errors import InputError, listed
from normdeploy.export.encoder import has_fast_path, one_path
from normdeploy.parity.metrics import eps, errors
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner, first_line
from normdeploy.runtime.ties import FirstOfEqual
from normdeploy.runtime.widths import Convert, KeepFloat64, RoundedError, rounded_to, to_dtype
from normdeploy.specs import TensorSpec

__all__ = ["Arrays", "KeepFloat64", "Oracle", "RoundedError"]

_SAME_EPS = 256.0
"""How far two of PyTorch's own paths may lie apart without a word, in ε."""

Arrays = dict[str, npt.NDArray[Any]]


class Oracle:
    """Eager PyTorch in the deployed dtype and, for as long as it can, in float64; ``notes`` says what it could not.

    ``dtype`` is the one that eager runs in; None leaves the module as it is. ``placement`` is where; float64 is the
    CPU's. Where the module does not run in 16 bits
    on the CPU, that is emulated: weights and the result of each operator are rounded.
    """

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[TensorSpec],
        dtype: torch.dtype | None = None,
        placement: Placement = CPU,
    ) -> None:
        self._module, self._specs, self._dtype, self._placement = module, specs, dtype, placement
        self.notes: dict[str, None] = {}
        self._fused: dict[str, tuple[float, list[str]]] = {}
        self._eager: Runner | None = None
        self._float64: EagerRunner | None = None
        self._rounded: dict[int, EagerRunner] = {}
        self._emulates = False
        try:
            self._float64 = EagerRunner(module, specs, dtype=torch.float64)
        except Exception as error:  # whatever tensors of a module's own kind raise
            self._give_up(f"the module cannot be made float64 ({first_line(error)})")

    def eager(self, feed: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Return the outputs in the deployed dtype. Raises InputError where forward raises."""
        if self._eager is None:
            self._eager = EagerRunner(self._module, self._specs, dtype=self._dtype, placement=self._placement)
        try:
            with self._one_way():
                return self._eager(feed)
        except InputError as error:
            if self._dtype not in (torch.float16, torch.bfloat16):
                raise
            emulated = EagerRunner(self._module, self._specs, dtype=self._dtype, emulate=True)
            with self._one_way():
                outputs = emulated(feed)
            name = str(self._dtype).removeprefix("torch.")
            why = f"the module does not run in {name} on the CPU ({error.what})"
            self.notes[f"{why}: eager in {name} is emulated, its weights and the result of each operator rounded"] = (
                None
            )
            self._eager, self._emulates = emulated, True
            return outputs

    def exact(self, feed: Mapping[str, npt.NDArray[Any]]) -> Arrays | None:
        """Return the outputs in float64, None where the module cannot run in it (from the first failure on)."""
        if self._float64 is None:
            return None
        try:
            with np.errstate(all="ignore"), self._one_way():
                outputs = self._float64(feed)
        except Exception as error:  # whatever a forward that was not written for float64 raises
            self._give_up(f"the module cannot run in float64 ({first_line(error)})")
            return None
        if self._float64.widened:
            self.notes["casts to a narrower dtype inside the module were kept in float64 in the reference"] = None
        return outputs

    def rounded(self, feed: Mapping[str, npt.NDArray[Any]], draw: int = 0) -> Arrays:
        """Return the outputs in float64 of the module with its weights rounded to the deployed dtype.

        Draw 0 rounds to nearest, others at random: the error is what a rounding of the weights costs, and the draws
        tell chance from size. In float32 all constants are rounded, those that the code makes of weights and of
        numbers too, after they were computed in their own dtype: a graph stores them so.
        """
        if draw not in self._rounded:
            narrow = self._dtype in (torch.float16, torch.bfloat16)
            convert = rounded_to(self._dtype or torch.float32, torch.float64, draw)
            weights, constants = (convert, None) if narrow else (None, convert)
            runner = EagerRunner(
                self._module, self._specs, dtype=torch.float64, weights=weights, constants=constants
            )  # fmt: skip
            self._rounded = {draw: runner}
        with np.errstate(all="ignore"), self._one_way():
            return self._rounded[draw](feed)

    def moved(self, feed: Mapping[str, npt.NDArray[Any]], draw: int) -> tuple[Arrays, Arrays]:
        """Return the outputs in the deployed dtype and in float64 of the module with other weights, the same in both.

        They are moved at random, by a unit in the last place or two. What lies between both results is what computing
        in the deployed dtype loses, on another draw of chance than :meth:`eager` is.
        """
        dtype, emulate = self._dtype or torch.float32, self._emulates
        narrow = EagerRunner(
            self._module, self._specs, dtype=dtype, emulate=emulate, placement=self._placement,
            weights=_moved(dtype, torch.float32 if emulate else dtype, draw),
        )  # fmt: skip
        exact = EagerRunner(self._module, self._specs, dtype=torch.float64, weights=_moved(dtype, torch.float64, draw))
        with np.errstate(all="ignore"), self._one_way():
            return narrow(feed), exact(feed)

    def other_path(self, name: str, feed: Mapping[str, npt.NDArray[Any]], eager: Arrays) -> None:
        """Note what PyTorch's fused attention makes otherwise of the feed ``name``: the reference runs without it."""
        if self._dtype is not None or not has_fast_path(self._module):
            return
        try:
            fused = EagerRunner(self._module, self._specs)(feed)
        except InputError as error:
            self.notes[f"PyTorch's fused attention does not run on {name}: {error.what}"] = None
            return
        for output, value in eager.items():
            other = fused[output]
            off = errors(other, value, value.dtype.name) if other.shape == value.shape else None
            size = off.rms if off is not None and off.finite else math.inf
            if size > _SAME_EPS * max(eps(value.dtype.name), eps("float32")):
                worst, feeds = self._fused.get(output, (0.0, []))
                self._fused[output] = max(worst, size), [*feeds, name]

    def told(self) -> tuple[str, ...]:
        """Return what is to be noted of the reference, after all feeds."""
        return (*self.notes, *(_of_fused(output, *found) for output, found in self._fused.items()))

    @contextmanager
    def _one_way(self) -> Iterator[None]:
        """Let PyTorch go the one way that a graph can, where it has several; what it chose otherwise is noted."""
        with one_path(), FirstOfEqual() as ties:
            yield
        if ties.chose:
            self.notes["sort and topk take the first of equal elements in the reference; PyTorch may take any"] = None

    def _give_up(self, reason: str) -> None:
        self._float64 = None
        self.notes[f"{reason}: judged against eager in its own dtype, with the floor raised"] = None


def _of_fused(output: str, worst: float, feeds: Sequence[str]) -> str:
    how = f"differs by up to {worst:.2g}" if math.isfinite(worst) else "gives NaN, infinity or another shape"
    return (
        f"{output}: PyTorch's fused path of attention (nested tensors, which it may take in inference) {how} on "
        f"{listed(feeds, 1)}; the deployed model is held to its plain path, and follows that"
    )


def _moved(dtype: torch.dtype, into: torch.dtype, draw: int) -> Convert:
    """Return what moves real tensors to a value of ``dtype`` within two units in the last place, held in ``into``.

    By the same for each draw; one number by itself stays, for it may be a constant of the code.
    """
    generator, hold = torch.Generator().manual_seed(draw), to_dtype(into)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() < 2:
            return hold(to_dtype(dtype)(tensor))
        wide = tensor.double()
        unit = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(wide.abs().clamp_min(1e-300))))
        share = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1
        return hold((wide + unit * share).to(dtype))

    return convert
