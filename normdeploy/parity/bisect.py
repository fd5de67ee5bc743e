"""Where a graph goes wrong: the first module, by its PyTorch name, whose output leaves the bound, all in float64.

The last value that each module produces in the deployed graph, run in float64, is compared with what a forward hook saw
in the float64 module. Then the graph is walked upward from the outputs that failed, never past a value that agrees. Of
the values met, the one that comes first names the module. No runtime takes part, but for a graph that has no float64.

So a value that differs rightly, because a fold moved something linear across it, accuses nobody as long as what
follows agrees; and the ledger names the values that such a move explains, which cannot accuse at all. Where LayerNorms
became RMSNorms, a value of their stream has lost its mean over the features, and is compared with eager's without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.fold.ledger import METADATA_KEY, Ledger
from normdeploy.graph import operator
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, USELESS, Errors, errors, is_float
from normdeploy.parity.reference import Arrays
from normdeploy.parity.taps import OUTPUT, Observed, observe, run_with_taps, taps_of
from normdeploy.parity.verdict import Criteria, Measurement, judge_one
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error
from normdeploy.specs import TensorSpec

Array = npt.NDArray[Any]

_RMS_NORMS = frozenset({"RMSNormalization", "SimplifiedLayerNormalization"})


def first_divergent_module(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    model: ir.Model,
    feed: Feed,
    criteria: Criteria | None = None,
    *,
    ledger: Ledger | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, str] | None = None,
) -> str | None:
    """Return the name of the first module whose output leaves the bound on ``feed``; None where no output of the
    model does.

    Compared are the modules, of several tensors by the first; of one that runs several times the last value in the
    graph, with each of its own, for the graph may run them in another order. Where all that failed lies between them,
    the root module is named by its class. ``ledger`` is the model's own where None is given, ``options`` are those of
    its session; ``model`` is not changed.
    """
    observed = observe(module, specs, feed, dtype)
    deployed = _values(model, feed, options)
    compare = _Comparison(observed, deployed, criteria or Criteria(), centred=_centred(model))
    eager = observed.eager
    failed = [value for value in model.graph.outputs if compare.differs(OUTPUT + str(value.name), str(value.name))]
    if not failed:
        return None
    ledger = ledger or _own_ledger(model)
    taps = {name: tap for name, tap in taps_of(model).items() if name in eager}
    agreeing = {
        tap
        for name, tap in taps.items()
        if any(compare.agrees(own, tap) for own in (name, *_folded_into(ledger, name)))
    }
    met = _upstream(failed, agreeing) - agreeing
    excused = _excused(ledger, observed.calls())
    accused = (name for name in eager if taps.get(name) in met and name not in excused)
    return next((name for name in accused if compare.differs(name, taps[name])), type(module).__name__)


def _values(model: ir.Model, feed: Feed, options: Mapping[str, str] | None) -> Arrays:
    """Return the last value of each module and the outputs, in float64; by the runtime where that cannot be."""
    try:
        return Float64Runner(model).run(feed.arrays, wanted=set(taps_of(model).values()))
    except NoFloat64Error:
        return run_with_taps(model, feed, options)


class _Comparison:
    """Values of the module (by module name, or ``OUTPUT`` + output name) against values of the graph, by name."""

    def __init__(self, observed: Observed, deployed: Arrays, criteria: Criteria, *, centred: bool) -> None:
        self._observed, self._deployed = observed, deployed
        self._criteria, self._centred, self._calls = criteria, centred, observed.calls()

    def agrees(self, own: str, value: str) -> bool:
        """Return True if both can be compared, on any of the module's calls, and lie within the bound."""
        return any(self._passes(call, value) for call in self._calls.get(own, [own]))

    def differs(self, own: str, value: str) -> bool:
        """Return True if both can be compared, and lie within the bound on none of the module's calls."""
        return self._passes(own, value) is False and not self.agrees(own, value)

    def _passes(self, own: str, value: str) -> bool | None:
        eager, actual = self._observed.eager.get(own), self._deployed.get(value)
        if eager is None or not isinstance(actual, np.ndarray) or eager.shape != actual.shape:
            return None
        if is_float(eager.dtype.name) != is_float(actual.dtype.name):
            return None
        if self._is_within(own, actual, lambda array: array):
            return True
        if not self._centred or own.startswith(OUTPUT) or not is_float(eager.dtype.name):
            return False
        return any(self._is_within(own, actual, _mean_taken_off(axis)) for axis in range(actual.ndim))

    def _is_within(self, own: str, actual: Array, changed: Callable[[Array], Array]) -> bool:
        eager, exact = changed(self._observed.eager[own]), self._observed.exact.get(own)
        dtype = eager.dtype.name
        base = Measurement("", own, eager.shape, dtype, EXACT, EXACT, part="graph")
        if exact is None or exact.shape != eager.shape:
            return judge_one(
                replace(base, deployed=errors(actual, eager, dtype), reference="eager"), self._criteria
            ).passed
        exact = changed(exact)
        others = [changed(values[own]) for values in self._observed.rounded if own in values] or [eager]
        costs = [errors(other, exact, dtype) for other in others if other.shape == exact.shape]
        usable = [cost for cost in costs if cost.finite and cost.rms < USELESS]
        rms, largest = (max((cost[i] for cost in map(_both, usable)), default=0.0) for i in (0, 1))
        allowed = replace(EXACT, rms=rms, max=largest)
        measured = replace(base, eager=allowed, deployed=errors(actual, exact, dtype))
        return judge_one(measured, self._criteria).passed


def _both(found: Errors) -> tuple[float, float]:
    return found.rms, found.max


def _mean_taken_off(axis: int) -> Callable[[Array], Array]:
    return lambda array: _without_mean(array, axis)


def _centred(model: ir.Model) -> bool:
    """Return True if there are RMSNorms in ``model``, so that the values they read may have been centred."""
    return any(operator(node) in _RMS_NORMS for node in model.graph.all_nodes())


def _without_mean(array: Array, axis: int) -> Array:
    """``array`` centred over ``axis`` in float64, and rounded to its own dtype."""
    wide = array.astype(np.float64)
    centred: Array = (wide - wide.mean(axis, keepdims=True)).astype(array.dtype)
    return centred


def _upstream(values: Iterable[ir.Value], barriers: AbstractSet[str]) -> set[str]:
    """Names of ``values`` and of all that they are computed from, going up no further than ``barriers``."""
    met: set[str] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or value.name is None or value.name in met:
            continue
        met.add(value.name)
        if value.name not in barriers:
            todo.extend(_read_by(node))
    return met


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, by its subgraphs too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _own_ledger(model: ir.Model) -> Ledger:
    text = model.metadata_props.get(METADATA_KEY)
    return Ledger.from_json(text) if text else Ledger()


def _folded_into(ledger: Ledger, name: str) -> list[str]:
    """The modules whose work ``name`` has taken over, so that its value may rightly be theirs."""
    return [entry.module for entry in ledger if name in entry.into]


def _excused(ledger: Ledger, calls: Mapping[str, Sequence[str]]) -> set[str]:
    """The modules whose value a fold changes rightly: from the norm to where its map went, in order of execution.

    A module that took the map of a norm right behind it is none of them: its value is the norm's, and can be compared.
    Of a norm that runs several times, at several places, it is itself. ``calls`` are in the order of execution.
    """
    order = list(calls)
    place = {name: index for index, name in enumerate(order)}
    excused = {entry.module for entry in ledger if len(calls.get(entry.module, ())) > 1}
    for entry in ledger:
        for into in entry.into:
            if entry.module in place and into in place and entry.module not in excused:
                start, end = sorted((place[entry.module], place[into]))
                direct = place[into] == start and not entry.through
                excused.update(order[start + direct : end])
    return excused
