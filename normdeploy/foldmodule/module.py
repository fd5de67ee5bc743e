"""``fold_module``: the weights of a PyTorch module take in its norms, as the fold of its exported graph says.

    export → fold the graph → read every weight back → what a module cannot express stays → judge

There is no second set of rules: which norm goes where, and with which numbers, is the graph's fold's. A module has less
room than a graph (one weight for all calls of a layer, constants in code, no merged branches), so what cannot be read
back is left as it was, and the graph is folded again without it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from normdeploy.doctor.inventory import norms
from normdeploy.errors import InputError, NormdeployError
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import Entry, Note, Outcome
from normdeploy.foldmodule import graph
from normdeploy.foldmodule.agreement import require_agreement, require_other_batches
from normdeploy.foldmodule.examples import example_feed
from normdeploy.foldmodule.halves import refused
from normdeploy.foldmodule.readback import Readback, Refusal
from normdeploy.foldmodule.recipe import Recipe
from normdeploy.foldmodule.words import in_python
from normdeploy.foldmodule.working import working_copy
from normdeploy.parity.feeds import Feed
from normdeploy.specs import Dim, Signature


def fold_module(module: nn.Module, example_inputs: Any) -> tuple[nn.Module, Ledger]:
    """Return a copy of ``module`` whose weights absorbed its norms, and what became of each of them.

    Norms that went become ``nn.Identity``, or keep their class with statistics that change nothing where they do more;
    LayerNorms whose scale and bias went have none; biases appear where there were none. Every other module stays what
    and where it was. The copy is on the CPU, in eval mode, and requires no gradients. Values between its layers are
    others than before.

    Args:
        module: in eval mode, or as a whole in training mode; it is not changed. In float32 or float64.
        example_inputs: a tensor, a tuple of forward's arguments, or a dictionary of them by name. Forward must take for
            other inputs the path that it takes for these: no norm may be skipped there. That is tried at one item and
            at twice as many, at no other batch sizes.

    Raises:
        InputError: the module cannot be exported on these inputs, has hooks, computes in 16 bits, or has a norm that
            was left in training mode.
        NormdeployError: the copy is not the module in float64 on the examples, on zeros, or at another batch size.
    """
    with in_python():
        work, notes = working_copy(module)
        specs, feed = example_feed(work, example_inputs)
        folded = _folded(work, specs, feed)
    told = (*(Note("NT006", text) for text in notes), *folded.ledger.notes)
    return folded.module, replace(folded.ledger, notes=told)


class Folded(NamedTuple):
    """A folded module, what became of its norms, and what makes its architecture the folded one."""

    module: nn.Module
    ledger: Ledger
    recipe: Recipe


def folded_at(module: nn.Module, specs: Signature, feed: Feed) -> Folded:
    """Return ``module`` folded as by :func:`fold_module`, at the sizes of ``feed``, which fits ``specs``."""
    work, _ = working_copy(module)
    fixed = [
        replace(spec, dims=tuple(Dim(None, size, size, size) for size in feed.arrays[spec.name].shape))
        for spec in specs
    ]
    return _folded(work, Signature(fixed, specs.values, specs.outputs), feed)


def _folded(work: nn.Module, specs: Signature, feed: Feed) -> Folded:
    folding = _Folding(work, specs, feed)
    try:
        found = folding.proven({})
    except NormdeployError as error:
        if folding.narrow:
            raise _computes_narrow(folding.narrow) from error
        if not (seen := folding.seen_by_forward()):
            raise
        try:
            found = folding.proven(seen)
        except NormdeployError:
            raise error from None
    require_other_batches(work, found.module, specs, feed)
    return found


class _Folding:
    """The graph of a module, exported at fixed ``specs``, and the folds of it that a module can express."""

    def __init__(self, module: nn.Module, specs: Signature, feed: Feed) -> None:
        self._module, self._specs, self._feed = module, specs, feed
        self._graph = to_graph(module, specs).model
        self.narrow = graph.computed_narrow(self._graph)
        self._labels = graph.prepared(self._graph)
        self._readback = Readback(module, self._graph, self._labels)

    def proven(self, kept: Mapping[str, Refusal]) -> Folded:
        """Return the module that lacks all norms but ``kept`` and those that it cannot express, by their nodes.

        Raises NormdeployError where it is not its graph, or not the module.
        """
        folded, recipe, kept = self._folded(kept)
        result = recipe.applied(copy.deepcopy(self._module))
        require_agreement(self._module, result, folded.model, self._specs, self._feed)
        return Folded(result, _told(folded.ledger, self._module, self._labels, kept), recipe)

    def seen_by_forward(self) -> dict[str, Refusal]:
        """Return the norms, by their nodes, without which forward does not run, or takes another path.

        There is none where the module is another one with all of its norms, as one that draws numbers.
        """
        nodes: dict[str, list[str]] = defaultdict(list)
        for entry in self._folded({})[0].ledger:
            if entry.outcome != "left":
                nodes[_label(self._labels, entry.node)].append(entry.node)

        def kept(names: Collection[str], reason: str) -> dict[str, Refusal]:
            return {node: Refusal("NT007", reason) for name in names for node in nodes[name]}

        try:
            self.proven(kept(nodes, ""))
        except NormdeployError:
            return {}
        found = refused([*nodes], lambda names: self.proven(kept(nodes.keys() - set(names), "")))
        return {node: refusal for name, error in found.items() for node, refusal in kept([name], _seen(error)).items()}

    def _folded(self, kept: Mapping[str, Refusal]) -> tuple[FoldResult, Recipe, Mapping[str, Refusal]]:
        """Return the largest fold without ``kept`` that can be read back, its recipe, and all that it keeps."""
        kept = {**kept, **self._readback.untouchable()}
        while True:
            # PyTorch runs what stands there, so no norm need keep its scale for a runtime that knows it by that.
            folded = fold(self._graph, keep=[*kept], target="tensorrt")
            recipe = self._readback.read(folded.model, folded.ledger)
            new = _to_keep(self._readback.refusals, folded.ledger, kept)
            if not new:
                return folded, recipe, kept
            kept |= new


def _computes_narrow(modules: Collection[str]) -> InputError:
    return InputError(
        "forward computes in 16 bits, which round what the weights become",
        where=", ".join(sorted(filter(None, modules))[:5]) or "forward",
        fix="take torch.autocast and casts to 16 bits out of forward, and call this outside of autocast",
    )


def _seen(error: NormdeployError) -> str:
    what = error.what
    for known in ("the folded module does not run: ", "the folded module is not the module: "):
        what = what.removeprefix(known)
    return f"forward looks at the layer itself: without it {what}"


def _to_keep(refusals: Mapping[str, Refusal], ledger: Ledger, kept: Mapping[str, Refusal]) -> dict[str, Refusal]:
    """Return which norms and maps to keep, by their nodes, so that nothing is refused again."""
    found: dict[str, Refusal] = {}
    for name, refusal in refusals.items():
        guilty = [entry.node for entry in ledger if entry.outcome != "left" and name in (entry.node, *entry.into)]
        found |= {node: refusal for node in guilty if node not in kept}
    if refusals and not found:  # whoever did it cannot be told: nothing moves
        everyone = [entry.node for entry in ledger if entry.outcome != "left" and entry.node not in kept]
        if not everyone:
            raise NormdeployError("the folded graph cannot be read back", where=", ".join(refusals), fix="report this")
        found = dict.fromkeys(everyone, Refusal("NT004", "what became of it cannot be told apart"))
    return found


def _told(ledger: Ledger, module: nn.Module, labels: Mapping[str, str], kept: Mapping[str, Refusal]) -> Ledger:
    """Return ``ledger`` by the names of modules; the operators of a norm that is exported as several are one entry."""

    label = partial(_label, labels)
    kinds = {norm.name: norm.kind for norm in norms(module)}
    spelled = {name for entry in ledger if not entry.norm and (name := label(entry.node)) in kinds}
    entries: dict[str, Entry] = {}
    for entry in ledger:
        refusal, name = kept.get(entry.node), label(entry.node)
        told = replace(entry, module=name, into=tuple(dict.fromkeys(map(label, entry.into))))
        if refusal is not None:
            told = replace(told, outcome="left", reason=refusal.reason, fix="", codes=(refusal.code,))
        if name in spelled:
            entries[name] = _joined(entries.get(name), replace(told, norm=True, kind=kinds[name]))
        elif told.norm or told.outcome != "left":
            entries[entry.node] = told
    return replace(ledger, entries=tuple(entries.values()))


def _label(labels: Mapping[str, str], node: str) -> str:
    return labels.get(node.partition("/")[0], "") or node


def _joined(before: Entry | None, entry: Entry) -> Entry:
    """Return what became of a norm of which ``before`` says some operators, and ``entry`` another."""
    if before is None or before.outcome == entry.outcome == "left":
        return before or entry
    outcome: Outcome = before.outcome if before.outcome == entry.outcome else "reduced"
    into = tuple(dict.fromkeys(before.into + entry.into))
    return replace(
        entry, outcome=outcome, into=into, reason=before.reason or entry.reason, codes=before.codes or entry.codes
    )
