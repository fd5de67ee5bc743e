"""The first part of a comparison: the graph in float64 against the module in float64, and what rounding it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, Errors, added, allowance, differing, errors, is_float, usable
from normdeploy.parity.output import no_reference
from normdeploy.parity.reference import Arrays
from normdeploy.parity.setting import Run, Setting
from normdeploy.parity.shapes import of_another_shape
from normdeploy.parity.single import DRAWS, beside_draws
from normdeploy.parity.verdict import Measurement, Part, judge_one
from normdeploy.parity.whole import over_more_feeds
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error

Array = npt.NDArray[Any]


class GraphPart:
    """The graph in float64; None where it is not known."""

    def __init__(self, setting: Setting, graph: ir.Model | None) -> None:
        self._setting = setting
        self._graph = None if graph is None else Float64Runner(graph)
        self._drawn: dict[tuple[str, int], Arrays] = {}

    def run(self, feed: Feed) -> Arrays | None:
        """Return the outputs of the graph in float64; None, and a note, where it cannot be run so."""
        if self._graph is None:
            return None
        try:
            return self._graph(feed.arrays)
        except NoFloat64Error as error:
            self._graph = None
            self._setting.note(f"{error.what} ({error.where}): the graph is judged by its runtime alone")
            return None

    def measured(self, run: Run) -> Iterator[Measurement]:
        """Return the errors of the graph on a feed that it was run on; those of the float32 one first."""
        single, exact, meant = self._setting.single, run.exact, run.meant
        if meant is None:
            return
        if single is not None and exact is not None:
            yield from single.measured(run.feed, exact, self._setting.criteria, self._setting.note)
        for name, value in run.eager.items():
            wanted = None if exact is None else exact[name]
            if meant[name].shape == (value if wanted is None else wanted).shape:
                yield self._of_output(run.feed, name, value, wanted, meant[name])
            elif meant[name].shape == value.shape:  # the module has another in float64, which the runtime's part says
                yield self._of_output(run.feed, name, value, None, meant[name])
            else:
                base = replace(self._base(run.feed, name, value), part=self._part)
                yield from of_another_shape(
                    self._setting.oracle, run.feed, base, wanted, meant[name], self._setting.note
                )

    def rounding(self, feed: Feed, name: str, exact: Array, draw: int) -> Errors:
        """Return what rounding the weights costs the output ``name``, ``exact`` in float64."""
        if (feed.name, draw) not in self._drawn:
            self._drawn = {(feed.name, draw): self._setting.oracle.rounded(feed.arrays, draw)}
        rounded = self._drawn[feed.name, draw][name]
        if rounded.shape != exact.shape:
            return EXACT
        real = is_float(exact.dtype.name)
        return errors(rounded, exact, self._setting.computes) if real else differing(rounded, exact)

    @property
    def _part(self) -> Part:
        """Return what is judged: of a graph in 16 bits whose float32 graph is known, the rounding."""
        return "rounding" if self._setting.sixteen and self._setting.single is not None else "graph"

    def _base(self, feed: Feed, name: str, eager: Array) -> Measurement:
        wide = self._setting.wide(eager.dtype.name)
        return Measurement(feed.name, name, eager.shape, eager.dtype.name, EXACT, EXACT, part="graph", computes=wide)

    def _of_output(self, feed: Feed, name: str, eager: Array, exact: Array | None, meant: Array) -> Measurement:
        dtype, sixteen = eager.dtype.name, self._setting.sixteen
        base = self._base(feed, name, eager)
        if exact is None:
            return replace(base, deployed=errors(meant, eager, dtype), reference="eager")
        found = errors(meant, exact, dtype) if is_float(dtype) or not sixteen else differing(meant, exact)
        if not is_float(dtype) and found != EXACT and np.array_equal(meant, eager):
            return replace(base, reference="eager")
        own = usable(self.rounding(feed, name, exact, 0)) if sixteen else allowance(eager, exact, dtype)
        measured = beside_draws(
            replace(base, eager=own, deployed=found, part=self._part),
            self._setting.criteria,
            lambda draw: usable(self.rounding(feed, name, exact, draw)),
        )
        return self._beside_constants(feed, measured, eager, exact) if self._part == "rounding" else measured

    def _beside_constants(self, feed: Feed, measured: Measurement, eager: Array, exact: Array) -> Measurement:
        """Return ``measured``, of a rounding that costs more than that of the weights, with what else may cost it.

        That the graph in float32 is right, and that each constant was rounded once, is proven apart. What is left to
        ask is whether the fold has made constants that 16 bits hold worse than the module's: a bias of 0.3 merged with
        an offset of 500 is rounded as coarsely as eager rounds the sum. So eager's own loss in 16 bits, where it
        rounds each result, is what it may cost at most, twice as with the weights.
        """
        single, name = self._setting.single, measured.output
        if single is None or self._passes(measured):
            return measured
        if not is_float(measured.dtype):
            return over_more_feeds(measured, feed, self._setting.oracle, self._again)
        measured = replace(measured, eager=added(measured.eager, single.of_constants(feed, name, measured.dtype)))
        if self._passes(measured) or no_reference(eager, exact, measured.computes):
            return measured
        draws = {0: (eager, exact)}

        def computing(draw: int) -> Errors:
            narrow, wide = draws.get(draw) or (each[name] for each in self._setting.oracle.moved(feed.arrays, draw))
            return EXACT if no_reference(narrow, wide, measured.computes) else errors(narrow, wide, measured.dtype)

        return beside_draws(measured, self._setting.criteria, computing, (0, *DRAWS))

    def _passes(self, measured: Measurement) -> bool:
        return judge_one(measured, self._setting.criteria).passed

    def _again(self, inputs: Arrays, exact: Arrays) -> tuple[Arrays, Arrays]:
        assert self._graph is not None  # it has run
        return self._graph(inputs), exact
