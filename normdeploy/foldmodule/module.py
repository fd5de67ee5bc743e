"""``fold_module``: the weights of a PyTorch module take in its norms, as the fold of its exported graph says.

    export → fold the graph → read every weight back → what a module cannot express stays → judge

There is no second set of rules: which norm goes where, and with which numbers, is the graph's fold's. A module has less
room than a graph (one weight for all calls of a layer, constants in code, no merged branches), so what cannot be read
back is left as it was, and the graph is folded again without it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from normdeploy.doctor.inventory import norms
from normdeploy.errors import NormdeployError
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import Entry, Note, Outcome
from normdeploy.foldmodule import graph
from normdeploy.foldmodule.agreement import require_agreement
from normdeploy.foldmodule.examples import example_feed
from normdeploy.foldmodule.readback import Readback, Refusal
from normdeploy.foldmodule.recipe import Recipe
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
            other inputs the path that it takes for these: no norm may be skipped there.

    Raises:
        InputError: the module cannot be exported on these inputs, has hooks, computes in 16 bits, or has a norm that
            was left in training mode.
        NormdeployError: the copy is not the module in float64 on the examples, on zeros, or at another batch size.
    """
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
    folded, recipe = folded_recipe(work, specs)
    result = recipe.applied(copy.deepcopy(work))
    require_agreement(work, result, folded.model, specs, feed)
    return Folded(result, folded.ledger, recipe)


def folded_recipe(module: nn.Module, specs: Signature) -> tuple[FoldResult, Recipe]:
    """Return the fold of ``module``, exported at fixed ``specs``, kept to what it can express, and its recipe."""
    before = to_graph(module, specs).model
    labels = graph.prepared(before)
    readback = Readback(module, before, labels)
    kept: dict[str, Refusal] = dict(readback.untouchable())
    while True:
        folded = fold(before, keep=[*kept])
        recipe = readback.read(folded.model, folded.ledger)
        new = _to_keep(readback.refusals, folded.ledger, kept)
        if not new:
            return replace(folded, ledger=_told(folded.ledger, module, labels, kept)), recipe
        kept |= new


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

    def label(name: str) -> str:
        return labels.get(name.partition("/")[0], "") or name

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


def _joined(before: Entry | None, entry: Entry) -> Entry:
    """Return what became of a norm of which ``before`` says some operators, and ``entry`` another."""
    if before is None or before.outcome == entry.outcome == "left":
        return before or entry
    outcome: Outcome = before.outcome if before.outcome == entry.outcome else "reduced"
    into = tuple(dict.fromkeys(before.into + entry.into))
    return replace(
        entry, outcome=outcome, into=into, reason=before.reason or entry.reason, codes=before.codes or entry.codes
    )
