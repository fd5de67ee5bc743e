"""Runs the module, the graph and the artefact on the same feeds and measures every output of every feed, in two parts.

The graph is measured in float64 against the module in float64 (:mod:`normdeploy.parity.graph_part`); the artefact
against the float64 run of that graph (:mod:`normdeploy.parity.runtime_part`). Of a graph in 16 bits the one that it was
rounded from is measured first, and then what the rounding costs. Without a graph, as where a plan is all there is, the
artefact is measured against the module in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.errors import InputError
from normdeploy.parity.doubts import TAKES_ANY, require_repeatable, tied
from normdeploy.parity.feeds import Feed
from normdeploy.parity.graph_part import GraphPart
from normdeploy.parity.metrics import eps, is_float, sizes, usable
from normdeploy.parity.output import is_noise, no_reference
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.runtime_part import RuntimeFailureError, RuntimePart, Unfolded
from normdeploy.parity.setting import Run, Setting, computes_in
from normdeploy.parity.single import Single
from normdeploy.parity.verdict import Criteria, Measurement, Reference
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec

__all__ = ["Measured", "RuntimeFailureError", "Unfolded", "measure"]

Array = npt.NDArray[Any]

_VANISHES = 1e-4
"""Share of an output's usual size below which a corner does not judge it."""


class Measured(NamedTuple):
    """The measurements, the reference ("eager" where float64 served for none of them) and what is to be said.

    ``misrounded`` are the constants of a 16-bit graph that are no rounding of those of the float32 graph, in words.
    """

    measurements: tuple[Measurement, ...]
    reference: Reference
    notes: tuple[str, ...]
    misrounded: tuple[str, ...] = ()


def measure(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    deployed: Runner | None,
    feeds: Sequence[Feed],
    *,
    dtype: torch.dtype | None = None,
    graph: ir.Model | None = None,
    single: ir.Model | None = None,
    unfolded: Callable[[], AbstractContextManager[Unfolded]] | None = None,
    criteria: Criteria | None = None,
    placement: Placement = CPU,
) -> Measured:
    """Return the errors of ``graph`` and of ``deployed``, which runs it, for each output and feed.

    Args:
        module: in eval mode.
        specs: its inputs.
        deployed: the artefact; None where nothing here runs ``graph``, which is then measured alone.
        feeds: what all are run on.
        dtype: eager runs in it; None leaves the module as it is. Only where one is given may the artefact return wider
            floats than eager: a graph that computes in 16 bits keeps float32 borders.
        graph: what ``deployed`` runs; None where it is not known.
        single: the float32 graph that ``graph`` was rounded from; None where there is none, or it is not known.
        unfolded: asked for only where the runtime fails beside eager.
        criteria: by which it is decided what else to measure.
        placement: where eager runs, so that its error is that of the device that ``deployed`` runs on.

    Raises RuntimeFailureError, by feed and output, where the artefact does not run, where outputs are missing or
    unexpected, and where one has another shape or dtype: nothing is broadcast or cast to make it comparable.
    """
    notes = dict.fromkeys(note for feed in feeds for note in feed.notes)
    with ExitStack() as stack:
        make = None if unfolded is None else lambda: stack.enter_context(unfolded())
        oracle = Oracle(module, specs, dtype, placement)
        setting = Setting(oracle, criteria or Criteria(), computes_in(module, specs, dtype))
        if graph is not None and single is not None:
            setting.single = Single.of(module, specs, single, graph, setting.notes)
        of_runtime = RuntimePart(setting, deployed, graph, make, wider=dtype is not None)
        session = _Session(setting, GraphPart(setting, graph), of_runtime, _takes_any(graph))
        measurements = [each for feed in feeds for each in session.measured(feed)]
    reference: Reference = "float64" if session.served else "eager"
    misrounded = setting.single.misrounded if setting.single is not None else ()
    return Measured(tuple(measurements), reference, (*notes, *oracle.told(), *setting.notes), misrounded)


def _takes_any(graph: ir.Model | None) -> bool:
    return graph is not None and any(node.op_type in TAKES_ANY for node in graph.graph.all_nodes())


class _Session:
    """Everything that is run on a feed; ``served`` once float64 was of use."""

    def __init__(self, setting: Setting, graph: GraphPart, runtime: RuntimePart, takes_any: bool) -> None:
        self._setting, self._oracle = setting, setting.oracle
        self._graph, self._runtime, self._takes_any = graph, runtime, takes_any
        self.served = self._repeatable = False
        self._usual: dict[str, float] = {}

    def measured(self, feed: Feed) -> Iterator[Measurement]:
        """Return the measurements on one feed, those of the graph first."""
        try:
            eager = self._oracle.eager(feed.arrays)
        except InputError as error:
            if not feed.corner:
                raise
            yield from self._replaced(feed, f"eager PyTorch does not run there ({error.what})")
            return
        if not self._repeatable:
            require_repeatable(self._oracle, feed.arrays, eager)
            self._repeatable = True
        exact = self._oracle.exact(feed.arrays)
        if feed.corner and (why := self._unusable(feed, eager, exact or {})):
            yield from self._replaced(feed, why)
            return
        self._oracle.other_path(feed.name, feed.arrays, eager)
        if not self._usual:
            self._usual = {name: sizes(value)[0] for name, value in eager.items() if is_float(value.dtype.name)}
        self.served = self.served or exact is not None
        actual = self._runtime.run(feed, eager)
        run = Run(feed, eager, exact, self._graph.run(feed), actual)
        if feed.corner and (why := self._hangs(run)):
            yield from self._replaced(feed, why)
            return
        noise = {name for name, value in eager.items() if exact is not None and is_noise(value, exact[name])}
        for each in chain(self._graph.measured(run), self._runtime.measured(run)):
            yield replace(each, noise=each.output in noise)

    def _replaced(self, feed: Feed, why: str) -> Iterator[Measurement]:
        """Return the measurements on what is taken in place of a corner, and note it."""
        self._setting.note(f"{feed.name}: {why}: {'left out' if feed.instead is None else 'replaced by a random feed'}")
        if feed.instead is not None:
            yield from self.measured(feed.instead)

    def _unusable(self, feed: Feed, eager: Arrays, exact: Arrays) -> str:
        """Return why a corner can judge nobody; empty where it can."""
        sixteen = self._setting.sixteen
        for name, value in eager.items():
            if not is_float(value.dtype.name) and not sixteen:
                continue
            if is_float(value.dtype.name) and not np.isfinite(value.astype(np.float64)).all():
                return f"eager PyTorch itself gives NaN or infinity in {name}"
            if name in exact and (why := no_reference(value, exact[name], self._setting.wide(value.dtype.name))):
                return f"eager PyTorch itself is no guide to {name}: {why}"
            if is_float(value.dtype.name) and 0 < sizes(value)[0] < _VANISHES * self._usual.get(name, 0.0):
                return f"{name} all but vanishes there, and an error relative to it says nothing"
            if sixteen and name in exact and usable(cost := self._graph.rounding(feed, name, exact[name], 0)) != cost:
                return f"rounding the weights to {self._setting.computes} alone decides {name}"
        return ""

    def _hangs(self, run: Run) -> str:
        """Return on what the outputs of a corner hang that no graph can be held to; empty where they do not."""
        setting = self._setting
        others = run.meant, run.actual
        if (
            run.exact is not None
            and self._takes_any
            and (why := tied(self._oracle, run.feed.arrays, run.exact, others))
        ):
            return why
        if why := self._cancels(run):
            return why
        if (
            setting.single is None
            or run.meant is None
            or not (names := setting.single.hang_on_limits(run.feed, run.meant))
        ):
            return ""
        return (
            f"how far a mask reaches, which {setting.computes} cuts at its largest number, decides {', '.join(names)}"
        )

    def _cancels(self, run: Run) -> str:
        """Return why an output that the module makes 0 judges nobody: a graph that adds in another order has a rest.

        Such a rest is below what rounding costs the output where it is of its usual size; nothing else is, but what a
        norm makes of a rest in front of it. That much is the runtime's alone: of the graph, in float64, it is a fault.
        """
        for name, value in (run.exact or run.eager).items():
            usual = self._usual.get(name, 0.0)
            if not usual or value.any():
                continue
            graph, runtime = (0.0 if each is None else sizes(each[name])[0] for each in (run.meant, run.actual))
            least = eps(self._setting.computes) * usual  # no NaN is less
            if graph + runtime and graph <= least and (runtime <= least or self._runtime.leaves_rounding(run, name)):
                return f"{name} is 0 there but for what rounding leaves, and an error relative to it says nothing"
        return ""
