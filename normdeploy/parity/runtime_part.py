"""The second part of a comparison: the artefact against the float64 run of the very graph that it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx_ir as ir

from normdeploy.errors import NormdeployError, UnavailableError, VerdictError
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, Errors, differing, errors, is_float, sizes, usable
from normdeploy.parity.nodes import rounded_alone
from normdeploy.parity.output import comparable, measurement, no_reference
from normdeploy.parity.overflow import overflows
from normdeploy.parity.reference import Arrays
from normdeploy.parity.setting import Run, Setting
from normdeploy.parity.single import DRAWS, MANY_DRAWS, beside_draws
from normdeploy.parity.verdict import Measurement, judge_one
from normdeploy.parity.whole import over_more_feeds
from normdeploy.runtime.float64 import RANDOM, Float64Runner
from normdeploy.runtime.isolated import PatienceError
from normdeploy.runtime.runner import Runner, first_line

Array = npt.NDArray[Any]


class RuntimeFailureError(VerdictError):
    """The artefact does not run, or returns other outputs than eager; ``feed`` is where."""

    def __init__(self, what: str, *, where: str, fix: str, feed: Feed) -> None:
        self.feed = feed
        super().__init__(what, where=where, fix=fix)


class Unfolded(NamedTuple):
    """The unfolded graph, and a session of the same runtime that runs it."""

    runner: Runner
    graph: ir.Model


class RuntimePart:
    """The artefact, the graph that it runs, and what makes the unfolded one in the same runtime, where they are known.

    With ``wider`` it may return wider floats than eager.
    """

    def __init__(
        self,
        setting: Setting,
        deployed: Runner | None,
        graph: ir.Model | None,
        unfolded: Callable[[], Unfolded] | None,
        *,
        wider: bool,
    ) -> None:
        self._setting, self._deployed, self._wider = setting, deployed, wider
        self._graph, self._make_unfolded = graph, unfolded
        self._draws = graph is not None and any(node.op_type in RANDOM for node in graph.graph.all_nodes())
        self._room: dict[str, bool] = {}
        self._unfolded: Unfolded | None = None

    def run(self, feed: Feed, eager: Arrays) -> Arrays | None:
        """Return its outputs, which must be of the names, shapes and dtypes of ``eager``; None where nothing runs it.

        Raises RuntimeFailureError where it does not run, or they are not.
        """
        if self._deployed is None:
            return None
        actual = self._run(self._deployed, feed)
        self._require_same_outputs(self._deployed.name, eager, actual, feed)
        return actual

    def measured(self, run: Run) -> Iterator[Measurement]:
        """Return the errors of the artefact on a feed that it ran on."""
        if run.actual is None:
            return
        found = list(self._found(run, run.actual))
        if run.meant is not None and not all(self._passes(each) for each in found):
            found = self._beside_unfolded(run.feed, found)
        yield from found

    def leaves_rounding(self, run: Run, name: str) -> bool:
        """Return True if what the artefact makes of the output ``name``, which is to be 0, is what rounding leaves.

        That much is what ONNX Runtime leaves with kernels of which each is off by no more than the floor by itself.
        """
        if self._graph is None or run.actual is None:
            return False
        criteria = self._setting.criteria
        try:
            made = rounded_alone(self._graph, run.feed, criteria.floor(self._setting.computes, "float64"))
        except (NormdeployError, OSError):  # no kernel, no room on disk: it is not known
            return False
        pairs = [] if made is None else [*zip(sizes(run.actual[name]), sizes(made[name]), strict=True)]
        return bool(pairs) and all(own <= criteria.k * left for own, left in pairs)

    def _found(self, run: Run, actual: Arrays) -> Iterator[Measurement]:
        feed, setting = run.feed, self._setting
        for name, value in run.eager.items():
            # what draws numbers draws others in float64: that is no error of eager's, and allows nothing
            wanted = None if run.exact is None or self._draws else run.exact[name]
            graph = None if run.meant is None else run.meant[name]
            computes = setting.wide(value.dtype.name)
            fits = partial(self._fits, feed)
            each = measurement(feed.name, name, value, wanted, actual[name], graph=graph, computes=computes, fits=fits)
            why = "" if wanted is None else no_reference(value, wanted, computes)
            if why and is_float(value.dtype.name):
                each = self._beside_float32(feed, each, run.exact)
            elif wanted is not None and setting.sixteen:
                each = self._beside_other_draws(feed, each)
            if why:
                setting.note(f"{name} on {feed.name}: {why}: judged against {_held_to(each)}")
            yield each

    def _passes(self, found: Measurement) -> bool:
        return judge_one(found, self._setting.criteria).passed

    def _fits(self, feed: Feed) -> bool:
        """Return True if the graph makes no number on ``feed`` that is beyond the largest of its 16-bit type."""
        if self._graph is None or not self._setting.sixteen:
            return False
        if feed.name not in self._room:
            try:
                self._room[feed.name] = not overflows(self._graph, [feed])
            except (NormdeployError, OSError):  # no kernel, no room on disk: it is not known
                self._room[feed.name] = False
        return self._room[feed.name]

    def _beside_float32(self, feed: Feed, found: Measurement, exact: Arrays | None) -> Measurement:
        """Return ``found``, of an output that eager has lost in 16 bits, with what eager loses of it in float32."""
        lost = found.reference == "float64" and not self._passes(found)
        if not lost or self._setting.single is None or exact is None:
            return found
        return replace(found, eager=self._setting.single.of_float32(feed, exact, found.output))

    def _beside_other_draws(self, feed: Feed, found: Measurement) -> Measurement:
        """Return ``found`` with what computing in 16 bits loses on other draws, where it fails beside the one of eager.

        Behind a quantization an output moves by whole steps, and eager itself makes another step or none by chance.
        """
        if found.reference != "float64":
            return found

        def cost(draw: int) -> Errors:
            narrow, exact = (outputs[found.output] for outputs in self._setting.oracle.moved(feed.arrays, draw))
            if not is_float(found.dtype):
                return usable(differing(narrow, exact)) if narrow.shape == exact.shape else EXACT
            lost = no_reference(narrow, exact, found.computes)
            return EXACT if lost else usable(errors(narrow, exact, found.dtype))

        if is_float(found.dtype):
            return beside_draws(found, self._setting.criteria, cost, DRAWS)
        found = beside_draws(found, self._setting.criteria, cost, MANY_DRAWS)
        more = self._deployed is not None and self._graph is not None and not self._passes(found)
        return over_more_feeds(found, feed, self._setting.oracle, self._again) if more else found

    def _again(self, inputs: Arrays, exact: Arrays) -> tuple[Arrays, Arrays]:
        assert self._deployed is not None
        assert self._graph is not None
        return self._deployed(inputs), Float64Runner(self._graph)(inputs)

    def _beside_unfolded(self, feed: Feed, found: list[Measurement]) -> list[Measurement]:
        """Return ``found`` with the errors of the unfolded graph in the same runtime, where it can be run."""
        other = self._other()
        if other is None:
            return found
        try:
            actual, meant = other.runner(feed.arrays), Float64Runner(other.graph)(feed.arrays)
        except Exception as error:  # whatever the runtime raises: what does not run excuses nothing
            self._setting.note(f"the unfolded graph does not run on {feed.name}: {first_line(error)}")
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
                self._setting.note(f"the unfolded graph cannot be run beside it: {first_line(error)}")
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
            if not comparable(eager[name], actual[name], wider=self._wider):
                problems.append(f"{name} is {_kind(actual[name])}, eager's is {_kind(eager[name])}")
        if problems:
            fix = "export the module again; a shape that follows a traced size belongs to a dimension given as fixed"
            if missing and len(missing) == len(unexpected):
                fix = f"where they are called otherwise in the artefact, give --output-names {','.join(actual)}"
            raise RuntimeFailureError(
                f"the outputs of {runner} are not eager's: {'; '.join(sorted(problems))}",
                where=f"feed {feed.name!r}",
                fix=fix,
                feed=feed,
            )


def _held_to(found: Measurement) -> str:
    """Return what an output that eager has lost is held to, in words."""
    if found.reference == "eager":
        return "eager in its own dtype"
    if not found.eps and found.eager != EXACT:
        return "float64, by the share of eager's that differs from it"
    return "float64, which it is nearer to, with nothing allowed"


def _kind(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
