"""``doctor``: what is wrong with the norms of a network, and what folding will do to each. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import onnx_ir as ir
from torch import nn

from normdeploy.arguments import checked
from normdeploy.checkpoint.prepare import on_cpu, settle, unwrapped
from normdeploy.doctor.checks import check
from normdeploy.doctor.findings import Finding, chosen, finding
from normdeploy.doctor.inventory import norms
from normdeploy.doctor.observed import check_calls, check_data, observe
from normdeploy.doctor.weights import check_weight
from normdeploy.errors import InputError
from normdeploy.export import Exported, to_graph
from normdeploy.export.guess import guess_inputs
from normdeploy.fold import FoldResult, fold
from normdeploy.fold.ledger import Ledger
from normdeploy.foldmodule.working import copied
from normdeploy.graph import label, module_name, operator
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.pipeline.keywords import Data, Source
from normdeploy.pipeline.source import app_dir_of, data_feeds, load
from normdeploy.pipeline.stages import Progress, Stages
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import Signature, parse


@dataclass(frozen=True)
class Norm:
    """One norm of a network.

    Attributes:
        module: dotted module name.
        kind: class name.
        behind: what it reads: module and operator; empty where the network was not exported.
        before: what reads it.
        fate: what folding makes of it, in words.
        codes: why it stays, for ``normdeploy explain``; none where it goes.
    """

    module: str
    kind: str
    behind: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    fate: str = ""
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        norms: every norm.
        findings: what is to be known of them, by module in the order of the network.
        notes: what could not be looked at.
    """

    norms: tuple[Norm, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings with which the deployed network is another one, or none."""
        return tuple(each for each in self.findings if each.severity == "error")


@checked(Source)
def doctor(
    model: str | nn.Module,
    inputs: Sequence[str] = (),
    *,
    data: Data = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
    **source: Unpack[Source],
) -> Diagnosis:
    """Return what is to be known of the norms of ``model``; nothing is written, and nothing stops at an error.

    Args:
        model: ``package.module:factory``, of which ``source`` says where its weights are; or a module.
        inputs: one spec an input, as for :func:`normdeploy.export`; guessed where none is given.
        data: real inputs, to hold the statistics to.
        select: patterns (fnmatch) of codes to look for; all by default.
        ignore: patterns of codes to leave out.
        progress: is told when a stage begins and ends.

    Raises InputError where the module cannot be loaded, or an argument cannot be used.
    """
    chosen((), select, ignore)
    stages, notes = Stages(progress), list[str]()
    with stages("load"):
        module = load(model, source, check=False).module if isinstance(model, str) else _taken(model)
    with stages("numbers"):
        found = list(check(module))
    module.eval()
    for part in module.modules():
        part.training = False
    specs = parse(inputs) if inputs else Signature(guess_inputs(module))
    if not specs:
        notes.append("no inputs are given, and none were guessed: the network was not run. Give --input")
        return Diagnosis(_plain(module), chosen(found, select, ignore), tuple(notes))
    if not inputs:
        notes.append(f"inputs were guessed: {' '.join(map(str, specs))}")
    with stages("run"):
        feeds = list(data_feeds(specs, data, app_dir_of(source)))
        notes += [note for feed in feeds for note in feed.notes]
        found += _on_runs(module, specs, feeds, notes)
    exported, folded = None, None
    with stages("fold"):
        try:
            exported = to_graph(module, specs)
            folded = fold(exported.model)
            found = _where_it_stays([*found, *_on_graph(exported.model, folded.model)], folded.ledger)
        except InputError as error:
            found.append(finding("ND019", "", f"the network cannot be exported: {error.what}"))
    rows = _plain(module) if exported is None or folded is None else _rows(module, exported, folded)
    return Diagnosis(rows, chosen(_in_order(found, module), select, ignore), tuple(notes))


def findings(module: nn.Module, exported: ir.Model, folded: FoldResult) -> list[Finding]:
    """Return what the numbers of ``module`` and of its ``folded`` graph tell, in the order of the network."""
    found = _where_it_stays([*check(module), *_on_graph(exported, folded.model)], folded.ledger)
    return _in_order(found, module)


def _where_it_stays(found: Sequence[Finding], ledger: Ledger) -> list[Finding]:
    """Return ``found``, of which what only a norm that is still there could do wrong is a note where it goes."""
    fates: dict[str, set[str]] = {}
    for entry in ledger:
        fates.setdefault(entry.module, set()).add(entry.outcome)
    return [
        replace(each, severity="note", message=f"{each.message}, in what computes them: the norm itself is folded away")
        if each.code == "ND015" and "left" not in fates.get(each.module, {"left"})
        else each
        for each in found
    ]


def _taken(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` that may be put into eval mode; InputError where there is none."""
    name = type(module).__name__
    work = on_cpu(unwrapped(copied(module), name)[0], name)
    settle(work, name)
    return work.requires_grad_(False)


def _on_runs(module: nn.Module, specs: Signature, feeds: Sequence[Feed], notes: list[str]) -> Iterator[Finding]:
    """Yield what runs of the module show: on ``feeds``, or where there are none on one that is drawn."""
    try:
        run = EagerRunner(module, specs)
        drawn = feeds or random_feeds(specs)[:1]
        observed = observe(module, [lambda feed=feed: run(feed.arrays) for feed in drawn])  # type: ignore[misc]  # a default that binds
    except InputError as error:
        notes.append(f"the network was not run: {error.what}; {error.fix}")
        return
    yield from check_calls(observed)
    if feeds:
        yield from check_data(observed)


def _on_graph(exported: ir.Model, folded: ir.Model) -> Iterator[Finding]:
    """Yield what 16 bits would make of the weights that the fold changed."""
    before = {name: value.const_value for name, value in exported.graph.initializers.items()}
    for node in folded.graph.all_nodes():
        axis = _output_axis(node)
        value = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = None if value is None else value.const_value
        if axis is None or value is None or tensor is None or not tensor.dtype.is_floating_point():
            continue
        old = before.get(str(value.name))
        if tensor is not old and len(tensor.shape) > 1:
            same = old is not None and old.shape == tensor.shape
            yield from check_weight(label(node), tensor.numpy(), axis, old.numpy() if old and same else None)


def _output_axis(node: ir.Node) -> int | None:
    """Return the axis of a weight that tells output channels apart; None where the operator has none."""
    if operator(node) == "Gemm":
        turned = node.attributes.get("transB")
        return 0 if turned is not None and turned.as_int() else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(operator(node))


def _plain(module: nn.Module) -> tuple[Norm, ...]:
    return tuple(Norm(norm.name, norm.kind) for norm in norms(module))


def _rows(module: nn.Module, exported: Exported, folded: FoldResult) -> tuple[Norm, ...]:
    nodes: dict[str, list[ir.Node]] = {}
    for node in exported.model.graph.all_nodes():
        nodes.setdefault(module_name(node), []).append(node)
    return tuple(
        Norm(
            norm.name,
            norm.kind,
            _neighbours(nodes.get(norm.name, []), norm.name, upward=True),
            _neighbours(nodes.get(norm.name, []), norm.name, upward=False),
            *_fate(folded.ledger, norm.name),
        )
        for norm in norms(module)
    )


def _neighbours(nodes: Sequence[ir.Node], name: str, *, upward: bool) -> tuple[str, ...]:
    """Return what stands next to the operators of one norm, each as ``module (operator)``."""
    found: dict[str, None] = {}
    for node in nodes:
        values = node.inputs if upward else node.outputs
        for value in values:
            if value is None or (upward and value.is_initializer()):
                continue
            if value.is_graph_input() and upward:
                found[f"{value.name} (input)"] = None
            if value.is_graph_output() and not upward:
                found[f"{value.name} (output)"] = None
            beside = [value.producer()] if upward else [use.node for use in value.uses()]
            for other in beside:
                if other is not None and module_name(other) != name:
                    found[f"{module_name(other)} ({operator(other)})" if module_name(other) else operator(other)] = None
    return tuple(found)


def _fate(ledger: Ledger, name: str) -> tuple[str, tuple[str, ...]]:
    """Return what became of a norm, in words and, where it stays, with its codes."""
    entries = [entry for entry in ledger if entry.module == name]
    if not entries:
        return "not called", ()
    said = dict.fromkeys(str(entry) for entry in entries if entry.norm or entry.outcome != "left")
    codes = [code for entry in entries if entry.outcome == "left" for code in entry.codes]
    return "; ".join(said) or str(entries[0]), tuple(dict.fromkeys(codes))


def _in_order(found: Sequence[Finding], module: nn.Module) -> list[Finding]:
    order = {name: index for index, (name, _) in enumerate(module.named_modules())}
    return sorted(found, key=lambda each: (order.get(each.module, -1), each.code))
