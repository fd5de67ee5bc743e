"""The float32 graph that one in 16 bits was rounded from: judged as any in float32, beside eager in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, Errors, added, allowance, eps, errors, is_float, larger
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.rounding import (
    Pair,
    UnlikeError,
    faults,
    pairs,
    prepared,
    with_constants,
    without_limits,
)
from normdeploy.parity.shapes import of_another_shape
from normdeploy.parity.verdict import Criteria, Judgement, Measurement, judge_one
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.specs import TensorSpec


class Single:
    """The float32 graph that a graph in 16 bits was rounded from, and eager in float32."""

    def __init__(
        self, module: nn.Module, specs: Sequence[TensorSpec], single: ir.Model, narrow: ir.Model, found: list[Pair]
    ) -> None:
        self.misrounded = faults(found)
        unlimited = without_limits(narrow, found)
        self._unlimited = None if unlimited is None else Float64Runner(unlimited)
        self._oracle = Oracle(module, specs, torch.float32)
        weights = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        self._graph, self._constants = Float64Runner(single), Float64Runner(with_constants(single, found, weights))

    @classmethod
    def of(
        cls,
        module: nn.Module,
        specs: Sequence[TensorSpec],
        single: ir.Model,
        narrow: ir.Model,
        notes: dict[str, None],
    ) -> Single | None:
        """Return it; None, and a note, where the two graphs are not one network."""
        single, narrow = prepared(single), prepared(narrow)
        try:
            return cls(module, specs, single, narrow, pairs(single, narrow))
        except UnlikeError as error:
            told = f"the graph in 16 bits is not the float32 graph that this normdeploy makes, rounded ({error})"
            notes[f"{told}: it is judged by its outputs alone, which see less"] = None
            return None

    def measured(
        self, feed: Feed, exact: Arrays, criteria: Criteria, note: Callable[[str], None]
    ) -> Iterator[Measurement]:
        """Return the errors of the float32 graph, beside those of eager in float32; ``note`` says what has none."""
        eager, meant = self._oracle.eager(feed.arrays), self._graph(feed.arrays)
        for name, value in eager.items():
            dtype = value.dtype.name
            base = Measurement(feed.name, name, value.shape, dtype, EXACT, EXACT, part="graph")
            if meant[name].shape != exact[name].shape:
                yield from of_another_shape(self._oracle, feed, base, exact[name], meant[name], note)
                continue
            own, found = allowance(value, exact[name], dtype), errors(meant[name], exact[name], dtype)
            first = replace(base, eager=own, deployed=found)
            if is_float(dtype):
                yield beside_draws(first, criteria, partial(self._cost, feed, exact, name))
            else:  # at a tie as eager decides it, too
                yield replace(first, deployed=EXACT) if np.array_equal(meant[name], value) else first

    def _cost(self, feed: Feed, exact: Arrays, name: str, draw: int) -> Errors:
        """Return what rounding the constants to float32 costs the module."""
        rounded = self._oracle.rounded(feed.arrays, draw)[name]
        return allowance(rounded, exact[name], "float32")

    def of_float32(self, feed: Feed, exact: Arrays, name: str) -> Errors:
        """Return what eager in float32 loses of the output ``name``."""
        own = self._oracle.eager(feed.arrays)[name]
        return allowance(own, exact[name], own.dtype.name)

    def hang_on_limits(self, feed: Feed, meant: Arrays) -> list[str]:
        """Return the outputs, ``meant`` by the graph, that are others with masks at full length.

        A row that its mask hides wholly is what the softmax makes of the mask alone: of -1e9 it is another than of
        the -65504 that float16 has for it.
        """
        if self._unlimited is None:
            return []
        other = self._unlimited(feed.arrays)
        return [name for name, value in meant.items() if is_float(value.dtype.name) and not _same(other[name], value)]

    def of_constants(self, feed: Feed, name: str, dtype: str) -> Errors:
        """Return what rounding the constants of the code costs, which are no weights."""
        rounded, meant = self._constants(feed.arrays)[name], self._graph(feed.arrays)[name]
        return allowance(rounded, meant, dtype)


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    if one.shape != other.shape:
        return False
    off = errors(one, other, "float32")
    return off.finite and off.rms <= eps("float32")


DRAWS = (1, 2, 3)
"""Roundings of the weights at random."""
MANY_DRAWS = tuple(range(1, 13))
"""As many for whole numbers, where one of few is rarely another, and in float32 for what nearly passes."""
_FAR = 2.0
"""How far above its bound after a few draws many more are of no use: none of a dozen is so much larger."""


def beside_draws(
    measured: Measurement, criteria: Criteria, cost: Callable[[int], Errors], draws: Sequence[int] = ()
) -> Measurement:
    """Return ``measured`` with what a rounding of the weights costs allowed, where it fails without.

    Eager's error, and the cost of rounding to nearest, are one draw of chance each, and the folded graph's weights were
    rounded by another draw. Where an output has few elements, or hangs on the sum of a weight's errors, one draw may
    happen to cost next to nothing. So more ``draws`` are made, which move each weight by at most half a unit in the
    last place: as far as a weight may lie from what training meant. The largest counts. In float32 it is allowed beside
    eager's error, which has no rounding of weights in it.
    """
    own, narrow = measured.eager, (measured.computes or measured.dtype) in ("float16", "bfloat16")
    most = own if narrow else EXACT
    for draw in draws or (DRAWS if narrow else MANY_DRAWS):
        judged = judge_one(measured, criteria)
        if judged.passed or not measured.deployed.finite or (not narrow and draw > DRAWS[-1] and _is_far(judged)):
            break
        most = larger(most, cost(draw))
        measured = replace(measured, eager=most if narrow else added(own, most))
    return measured


def _is_far(judged: Judgement) -> bool:
    found = judged.measurement.deployed
    return found.rms > _FAR * judged.bound_rms or found.max > _FAR * judged.bound_max
