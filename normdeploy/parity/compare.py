"""Runs the module, the graph and the artefact on the same feeds and measures every output of every feed, in two parts.

The graph is measured in float64 against the module in float64; the artefact against the float64 run of that graph. Of a
graph in 16 bits the one that it was rounded from is measured first, and then what the rounding costs.
Without a graph, as where a plan is all there is, the artefact is measured against the module in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.errors import InputError, NormdeployError, UnavailableError, VerdictError
from normdeploy.parity.doubts import TAKES_ANY, require_repeatable, tied
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, Errors, added, differing, eps, errors, is_float, usable
from normdeploy.parity.output import comparable, measurement, no_reference
from normdeploy.parity.overflow import overflows
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.single import DRAWS, MANY_DRAWS, Single, beside_draws
from normdeploy.parity.verdict import SIXTEEN, Criteria, Measurement, Part, Reference, judge_one
from normdeploy.runtime.float64 import RANDOM, Float64Runner, NoFloat64Error
from normdeploy.runtime.isolated import PatienceError
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import Runner, first_line
from normdeploy.specs import TensorSpec

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


class RuntimeFailureError(VerdictError):
    """The artefact does not run, or returns other outputs than eager; ``feed`` is where."""

    def __init__(self, what: str, *, where: str, fix: str, feed: Feed) -> None:
        self.feed = feed
        super().__init__(what, where=where, fix=fix)


class Unfolded(NamedTuple):
    """The unfolded graph, and a session of the same runtime that runs it."""

    runner: Runner
    graph: ir.Model


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
        session = _Session(Oracle(module, specs, dtype, placement), deployed, graph, make, criteria or Criteria())
        session.computes = _computes(module, specs, dtype)
        session.wider = dtype is not None
        if graph is not None and single is not None:
            session.single = Single.of(module, specs, single, graph, session.notes)
        measurements = [each for feed in feeds for each in session.measured(feed)]
    reference: Reference = "float64" if session.served else "eager"
    misrounded = session.single.misrounded if session.single is not None else ()
    return Measured(tuple(measurements), reference, (*notes, *session.oracle.notes, *session.notes), misrounded)


def _computes(module: nn.Module, specs: Sequence[TensorSpec], dtype: torch.dtype | None) -> str:
    """Return the coarsest real type of the weights and inputs: what the network computes in."""
    if dtype is not None:
        return str(dtype).removeprefix("torch.")
    tensors = [tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    names = [str(each).removeprefix("torch.") for each in tensors] + [spec.dtype for spec in specs]
    return max((name for name in names if is_float(name)), key=eps, default="float32")


class _Session:
    """Everything that is run on a feed."""

    computes, wider = "float32", False
    single: Single | None = None

    def __init__(
        self,
        oracle: Oracle,
        deployed: Runner | None,
        graph: ir.Model | None,
        unfolded: Callable[[], Unfolded] | None,
        criteria: Criteria,
    ) -> None:
        self.oracle, self.deployed, self.criteria = oracle, deployed, criteria
        self.notes: dict[str, None] = {}
        self.served = False
        self._usual: dict[str, float] = {}
        self._room: dict[str, bool] = {}
        self._drawn: dict[tuple[str, int], Arrays] = {}
        kinds = set() if graph is None else {node.op_type for node in graph.graph.all_nodes()}
        self._repeatable, self._draws, self._takes_any = False, bool(kinds & RANDOM), bool(kinds & TAKES_ANY)
        self._model, self._graph = graph, None if graph is None else Float64Runner(graph)
        self._make_unfolded = unfolded
        self._unfolded: Unfolded | None = None

    def measured(self, feed: Feed) -> Iterator[Measurement]:
        """Return the measurements on one feed, those of the graph first."""
        try:
            eager = self.oracle.eager(feed.arrays)
        except InputError as error:
            if not feed.corner:
                raise
            yield from self._replaced(feed, f"eager PyTorch does not run there ({error.what})")
            return
        if not self._repeatable:
            require_repeatable(self.oracle, feed.arrays, eager)
            self._repeatable = True
        exact = self.oracle.exact(feed.arrays)
        if feed.corner and (why := self._unusable(feed, eager, exact or {})):
            yield from self._replaced(feed, why)
            return
        self.oracle.other_path(feed.name, feed.arrays, eager)
        if not self._usual:
            self._usual = {name: _rms(value) for name, value in eager.items() if is_float(value.dtype.name)}
        self.served = self.served or exact is not None
        actual = None if self.deployed is None else self._run(self.deployed, feed)
        if self.deployed is not None and actual is not None:
            self._require_same_outputs(self.deployed.name, eager, actual, feed)
        meant = self._meant(feed)
        if feed.corner and (why := self._hangs(feed, exact, meant, actual)):
            yield from self._replaced(feed, why)
            return
        if meant is not None:
            yield from self._of_graph(feed, eager, exact, meant)
        if actual is not None:
            yield from self._of_runtime(feed, eager, exact, meant, actual)

    def _replaced(self, feed: Feed, why: str) -> Iterator[Measurement]:
        """Return the measurements on what is taken in place of a corner, and note it."""
        self.notes[f"{feed.name}: {why}: {'left out' if feed.instead is None else 'replaced by a random feed'}"] = None
        if feed.instead is not None:
            yield from self.measured(feed.instead)

    def _unusable(self, feed: Feed, eager: Arrays, exact: Arrays) -> str:
        """Return why a corner can judge nobody; empty where it can."""
        sixteen = self.computes in SIXTEEN
        for name, value in eager.items():
            if not is_float(value.dtype.name) and not sixteen:
                continue
            if is_float(value.dtype.name) and not np.isfinite(value.astype(np.float64)).all():
                return f"eager PyTorch itself gives NaN or infinity in {name}"
            if name in exact and (why := no_reference(value, exact[name], self._wide(value.dtype.name))):
                return f"eager PyTorch itself is no guide to {name}: {why}"
            if is_float(value.dtype.name) and 0 < _rms(value) < _VANISHES * self._usual.get(name, 0.0):
                return f"{name} all but vanishes there, and an error relative to it says nothing"
            if sixteen and name in exact and usable(cost := self._rounding(feed, name, exact[name], 0)) != cost:
                return f"rounding the weights to {self.computes} alone decides {name}"
        return ""

    def _hangs(self, feed: Feed, exact: Arrays | None, meant: Arrays | None, actual: Arrays | None) -> str:
        """Return on what the outputs of a corner hang that no graph can be held to; empty where they do not."""
        if exact is not None and self._takes_any and (why := tied(self.oracle, feed.arrays, exact, (meant, actual))):
            return why
        if self.single is None or meant is None or not (names := self.single.hang_on_limits(feed, meant)):
            return ""
        return f"how far a mask reaches, which {self.computes} cuts at its largest number, decides {', '.join(names)}"

    # -- the graph -----------------------------------------------------------------------------

    def _meant(self, feed: Feed) -> Arrays | None:
        """Return the outputs of the graph in float64; None, and a note, where it cannot be run so."""
        if self._graph is None:
            return None
        try:
            return self._graph(feed.arrays)
        except NoFloat64Error as error:
            self._graph = None
            self.notes[f"{error.what} ({error.where}): the graph is judged by its runtime alone"] = None
            return None

    def _of_graph(self, feed: Feed, eager: Arrays, exact: Arrays | None, meant: Arrays) -> Iterator[Measurement]:
        if self.single is not None and exact is not None:
            yield from self.single.measured(feed, exact, self.criteria)
        for name, value in eager.items():
            wanted = value if exact is None else exact[name]
            if meant[name].shape != wanted.shape:
                self.notes[f"{name} on {feed.name}: its shape follows its values, which float64 changes"] = None
                continue
            yield self._graph_measurement(feed, name, value, None if exact is None else wanted, meant[name])

    def _graph_measurement(self, feed: Feed, name: str, eager: Array, exact: Array | None, meant: Array) -> Measurement:
        dtype = eager.dtype.name
        base = Measurement(feed.name, name, eager.shape, dtype, EXACT, EXACT, part="graph", computes=self._wide(dtype))
        if exact is None:
            return replace(base, deployed=errors(meant, eager, dtype), reference="eager")
        sixteen = self.computes in SIXTEEN
        found = errors(meant, exact, dtype) if is_float(dtype) or not sixteen else differing(meant, exact)
        if not is_float(dtype) and found != EXACT and np.array_equal(meant, eager):
            return replace(base, reference="eager")
        own = usable(self._rounding(feed, name, exact, 0) if sixteen else errors(eager, exact, dtype))
        part: Part = "rounding" if sixteen and self.single is not None else "graph"
        measured = beside_draws(
            replace(base, eager=own, deployed=found, part=part),
            self.criteria,
            lambda draw: usable(self._rounding(feed, name, exact, draw)),
        )
        if self.single is not None and sixteen and is_float(dtype) and not judge_one(measured, self.criteria).passed:
            measured = replace(measured, eager=added(measured.eager, self.single.of_constants(feed, name, dtype)))
        return measured

    def _rounding(self, feed: Feed, name: str, exact: Array, draw: int) -> Errors:
        """Return what rounding the weights costs this output."""
        if (feed.name, draw) not in self._drawn:
            self._drawn = {(feed.name, draw): self.oracle.rounded(feed.arrays, draw)}
        rounded = self._drawn[feed.name, draw][name]
        if rounded.shape != exact.shape:
            return EXACT
        return errors(rounded, exact, self.computes) if is_float(exact.dtype.name) else differing(rounded, exact)

    def _wide(self, dtype: str) -> str:
        """Return what the network computes in, where that is coarser than the output's own type."""
        if not is_float(dtype):
            return self.computes if self.computes in SIXTEEN else ""
        return self.computes if eps(self.computes) > eps(dtype) else ""

    # -- the runtime ---------------------------------------------------------------------------

    def _of_runtime(
        self, feed: Feed, eager: Arrays, exact: Arrays | None, meant: Arrays | None, actual: Arrays
    ) -> Iterator[Measurement]:
        found = []
        for name, value in eager.items():
            # what draws numbers draws others in float64: that is no error of eager's, and allows nothing
            wanted = None if exact is None or self._draws else exact[name]
            graph = None if meant is None else meant[name]
            computes = self._wide(value.dtype.name)
            fits = partial(self._fits, feed)
            found.append(
                measurement(feed.name, name, value, wanted, actual[name], graph=graph, computes=computes, fits=fits)
            )
            why = "" if wanted is None else no_reference(value, wanted, computes)
            whole = not is_float(value.dtype.name)
            if why and not whole:
                found[-1] = self._beside_float32(feed, found[-1], exact)
            elif wanted is not None and self.computes in SIXTEEN:
                found[-1] = self._beside_other_draws(feed, found[-1])
            if why:
                self.notes[f"{name} on {feed.name}: {why}: judged against {_held_to(found[-1])}"] = None
        if meant is not None and not all(judge_one(each, self.criteria).passed for each in found):
            found = self._beside_unfolded(feed, found)
        yield from found

    def _fits(self, feed: Feed) -> bool:
        """Return True if the graph makes no number on ``feed`` that is beyond the largest of its 16-bit type."""
        if self._model is None or self.computes not in SIXTEEN:
            return False
        if feed.name not in self._room:
            try:
                self._room[feed.name] = not overflows(self._model, [feed])
            except (NormdeployError, OSError):  # no kernel, no room on disk: it is not known
                self._room[feed.name] = False
        return self._room[feed.name]

    def _beside_float32(self, feed: Feed, found: Measurement, exact: Arrays | None) -> Measurement:
        """Return ``found``, of an output that eager has lost in 16 bits, with what eager loses of it in float32."""
        lost = found.reference == "float64" and not judge_one(found, self.criteria).passed
        if not lost or self.single is None or exact is None:
            return found
        return replace(found, eager=self.single.of_float32(feed, exact, found.output))

    def _beside_other_draws(self, feed: Feed, found: Measurement) -> Measurement:
        """Return ``found`` with what computing in 16 bits loses on other draws, where it fails beside the one of eager.

        Behind a quantization an output moves by whole steps, and eager itself makes another step or none by chance.
        """
        if found.reference != "float64":
            return found

        def cost(draw: int) -> Errors:
            narrow, exact = (outputs[found.output] for outputs in self.oracle.moved(feed.arrays, draw))
            if not is_float(found.dtype):
                return usable(differing(narrow, exact)) if narrow.shape == exact.shape else EXACT
            lost = no_reference(narrow, exact, found.computes)
            return EXACT if lost else usable(errors(narrow, exact, found.dtype))

        return beside_draws(found, self.criteria, cost, DRAWS if is_float(found.dtype) else MANY_DRAWS)

    def _beside_unfolded(self, feed: Feed, found: list[Measurement]) -> list[Measurement]:
        """Return ``found`` with the errors of the unfolded graph in the same runtime, where it can be run."""
        other = self._other()
        if other is None:
            return found
        try:
            actual, meant = other.runner(feed.arrays), Float64Runner(other.graph)(feed.arrays)
        except Exception as error:  # whatever the runtime raises: what does not run excuses nothing
            self.notes[f"the unfolded graph does not run on {feed.name}: {first_line(error)}"] = None
            return found
        return [
            replace(each, unfolded=errors(actual[each.output], meant[each.output], each.dtype))
            if is_float(each.dtype) and actual[each.output].shape == meant[each.output].shape
            else each
            for each in found
        ]

    def _other(self) -> Unfolded | None:
        if self._make_unfolded is not None:
            make, self._make_unfolded = self._make_unfolded, None
            try:
                self._unfolded = make()
            except Exception as error:  # an export or a session that fails is no reason to pass, nor to stop
                self.notes[f"the unfolded graph cannot be run beside it: {first_line(error)}"] = None
        return self._unfolded

    def _run(self, deployed: Runner, feed: Feed) -> Arrays:
        try:
            return deployed(feed.arrays)
        except (UnavailableError, PatienceError):
            raise
        except Exception as error:  # eager took this feed, so whatever it is, the artefact is not its equal
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.arrays.items())
            raise RuntimeFailureError(
                f"the artefact does not run where eager PyTorch does: {first_line(error)}",
                where=f"{deployed.name}, feed {feed.name!r}, inputs {shapes}",
                fix="narrow the ranges in --input to what the artefact supports, or export it again",
                feed=feed,
            ) from error

    def _require_same_outputs(self, runner: str, eager: Arrays, actual: Arrays, feed: Feed) -> None:
        problems = []
        if missing := [name for name in eager if name not in actual]:
            problems.append(f"missing {', '.join(missing)}")
        if unexpected := [name for name in actual if name not in eager]:
            problems.append(f"unexpected {', '.join(unexpected)}")
        for name in eager.keys() & actual.keys():
            if not comparable(eager[name], actual[name], wider=self.wider):
                problems.append(f"{name} is {_kind(actual[name])}, eager's is {_kind(eager[name])}")
        if problems:
            raise RuntimeFailureError(
                f"the outputs of {runner} are not eager's: {'; '.join(sorted(problems))}",
                where=f"feed {feed.name!r}",
                fix="export the module again; a shape that follows a traced size belongs to a dimension given as fixed",
                feed=feed,
            )


def _held_to(found: Measurement) -> str:
    """Return what an output that eager has lost is held to, in words."""
    if found.reference == "eager":
        return "eager in its own dtype"
    if not found.eps and found.eager != EXACT:
        return "float64, by the share of eager's that differs from it"
    return "float64, which it is nearer to, with nothing allowed"


def _rms(array: Array) -> float:
    wide = array.astype(np.float64)
    return float(np.sqrt(np.mean(wide * wide))) if array.size else 0.0


def _kind(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
