"""Whole networks with LayerNorms: at every level, for both targets, what goes is what the algebra lets go.

The counts are reasoned from each architecture (layernorm_nets.py); parity is judged against eager in float64.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
from layernorm_nets import NETWORKS, Network, Tapped, lived_in
from support import says
from torch import nn

from normdeploy import specs
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, Level, Target, fold
from normdeploy.fold.graph.reader import FAILED_PROOFS
from normdeploy.fold.layernorm import centre, stream
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.pipeline.deploy import in_onnxruntime

pytestmark = pytest.mark.real

LEVELS: tuple[Level, ...] = ("off", "recognise", "affine", "centre")
SPELLINGS: dict[Target, tuple[int, str]] = {
    "onnx": (23, "RMSNormalization"),
    "onnxruntime": (20, "SimplifiedLayerNormalization"),
}
"""The opset that each target is exported with, and the RMSNorm it has there."""
NORMS = ("LayerNormalization", *(kind for _, kind in SPELLINGS.values()))
GONE = "its mean is gone"


class Exported(NamedTuple):
    network: Network
    module: nn.Module
    model: ir.Model
    target: Target


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((network, target), marks=pytest.mark.xdist_group(f"{network.name}, {target}"))  # exported once
        for network in NETWORKS
        for target in SPELLINGS
    ],
    ids=lambda pair: f"{pair[0].name}, {pair[1]}",
)
def exported(request: pytest.FixtureRequest) -> Exported:
    network, target = request.param
    return _export(network, lived_in(network.build), target)


def _export(network: Network, module: nn.Module, target: Target) -> Exported:
    model = to_graph(module, specs.parse(network.inputs), opset=SPELLINGS[target][0]).model
    return Exported(network, module, model, target)


def folded(given: Exported, level: Level, *, validate: bool = True) -> FoldResult:
    return fold(given.model, layernorm=level, target=given.target, validate=validate)


def verdict(given: Exported, module: nn.Module, model: ir.Model) -> Verdict:
    parsed = specs.parse(given.network.inputs)
    with in_onnxruntime(model, threads=1) as session:
        measured = measure(module, parsed, session.runner, random_feeds(parsed))
    assert measured.reference == "float64"
    return judge(measured.measurements, reference=measured.reference)


def norms(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.LayerNorm)]


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.op_type in NORMS)


def with_affine(model: ir.Model) -> int:
    """How many norms have a scale that is not 1 or a bias that is not 0."""
    ones = [_is(node, 1, 1.0) and _is(node, 2, 0.0) for node in model.graph if node.op_type in NORMS]
    return len(ones) - sum(ones)


def _is(node: ir.Node, index: int, number: float) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is None or bool(np.all(value.const_value.numpy() == number))


def expected(patterns: dict[str, str], names: list[str]) -> dict[str, str]:
    """Norm → what is said of it, by the first pattern that matches its name; every pattern matches some."""
    found = {name: next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None) for name in names}
    assert set(found.values()) >= set(patterns)
    return {name: patterns[pattern] for name, pattern in found.items() if pattern is not None}


# -- what is left ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["off", "recognise"])
def test_below_affine_the_norms_stay_whole(exported: Exported, level: Level) -> None:
    result = folded(exported, level)
    assert len(norms(exported.module)) == exported.network.norms
    assert counts(result.model) == {"LayerNormalization": exported.network.norms}
    assert with_affine(result.model) == exported.network.norms


def test_scale_and_bias_go_where_all_that_reads_them_is_linear(exported: Exported) -> None:
    result, names = folded(exported, "affine"), norms(exported.module)
    stays = expected(exported.network.affine, names)
    assert counts(result.model) == {"LayerNormalization": len(names)}
    assert with_affine(result.model) == len(stays)
    entries = {entry.module: entry for entry in result.ledger if entry.module in names}
    assert list(entries) == names, "the ledger is silent about a norm"
    assert {name for name, entry in entries.items() if entry.outcome == "left"} == set(stays)
    for name, reason in stays.items():
        assert any(says(entries[name], each) for each in reason.split(" or ")), name
    assert all(entry.into for name, entry in entries.items() if name not in stays)
    assert not result.ledger.dropped


def test_the_mean_goes_where_all_of_the_stream_allows_it(exported: Exported) -> None:
    result, names = folded(exported, "centre"), norms(exported.module)
    stays = expected(exported.network.mean, names)
    rms = {SPELLINGS[exported.target][1]: len(names) - len(stays)}
    assert counts(result.model) == Counter({"LayerNormalization": len(stays)} | rms)
    assert with_affine(result.model) == len(expected(exported.network.affine, names))
    entries = {entry.module: entry for entry in result.ledger if entry.module in names}
    assert {name for name, entry in entries.items() if GONE not in entry.reason} == set(stays)
    for name, entry in entries.items():
        if name in stays:
            assert says(entry, stays[name]), name
        else:
            assert f"all {exported.network.writers} writers of its stream are centred" in entry.reason
    assert not result.ledger.dropped


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_parity(exported: Exported, level: Level) -> None:
    judged = verdict(exported, exported.module, folded(exported, level).model)
    assert judged.passed, "\n".join(str(judgement.measurement) for judgement in judged.failures())


def test_parity_would_see_a_fault_in_any_norm(exported: Exported) -> None:
    """Where one norm's scale is 2 % off, or its bias by a fiftieth of what biases are, the verdict is another."""
    names, model = norms(exported.module), folded(exported, "centre").model
    for name in names:
        for parameter in ("weight", "bias"):
            faulty = copy.deepcopy(exported.module)
            faulty.get_parameter(f"{name}.{parameter}").mul_(1.02)
            assert not verdict(exported, faulty, model).passed, (name, parameter)


# -- mutants: one writer or reader overlooked -------------------------------------------------------

VIT = NETWORKS[0]


@cache
def vit() -> Exported:
    return _export(VIT, lived_in(VIT.build), "onnx")


@cache
def tapped(kind: str) -> Exported:
    return _export(VIT, lived_in(lambda: Tapped(VIT.build(), kind)), "onnx")


def mutate(patch: pytest.MonkeyPatch, change: Callable[[stream.Stream], object]) -> None:
    """Let the fold see every stream as ``change`` leaves it."""

    def explore(*arguments: object) -> stream.Stream:
        found = stream.stream_at(*arguments)  # type: ignore[arg-type]
        change(found)
        return found

    patch.setattr(centre, "stream_at", explore)


def test_a_head_tied_to_the_table_is_untied_before_the_table_is_centred() -> None:
    network = next(network for network in NETWORKS if network.name == "GPT-2")
    given = _export(network, lived_in(network.build), "onnx")
    assert given.module.get_parameter("lm_head.weight") is given.module.get_parameter("transformer.wte.weight")
    result = folded(given, "centre")
    assert any("after a copy of" in entry.reason for entry in result.ledger)
    table = given.module.get_parameter("lm_head.weight").detach().numpy()
    arrays = [value.const_value.numpy() for value in result.model.graph.initializers.values()]
    stored = [tensor for array in arrays for tensor in (array, array.T) if tensor.shape == table.shape]
    centred = table - table.mean(-1, keepdims=True, dtype=np.float64)
    assert any(np.array_equal(tensor, table) for tensor in stored), "the head reads the table as it was"
    assert any(np.allclose(tensor, centred, rtol=0, atol=1e-6) for tensor in stored)


@pytest.mark.parametrize("kind", Tapped.KINDS)
def test_a_reader_or_writer_planted_in_the_stream_refuses_it_by_name(kind: str) -> None:
    given = tapped(kind)
    result = folded(given, "centre")
    assert counts(result.model)["RMSNormalization"] == 0
    assert with_affine(result.model) == 0
    entries = [entry for entry in result.ledger if entry.module in norms(given.module)]
    assert len(entries) == VIT.norms
    assert all(says(entry, Tapped.KINDS[kind]) for entry in entries), [str(entry) for entry in entries]
    assert verdict(given, given.module, result.model).passed


@pytest.mark.parametrize("kind", Tapped.KINDS)
def test_where_the_search_overlooks_it_the_proof_does_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tapped(kind)
    mutate(monkeypatch, lambda found: found.problems.clear())
    result = folded(given, "centre")
    assert any(dropped.code in FAILED_PROOFS for dropped in result.ledger.dropped)
    assert counts(result.model)["RMSNormalization"] == 0
    assert verdict(given, given.module, result.model).passed


@pytest.mark.parametrize("kind", Tapped.KINDS)
def test_where_nothing_is_proven_parity_fails(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tapped(kind)
    mutate(monkeypatch, lambda found: found.problems.clear())
    monkeypatch.setattr(centre, "proven", lambda plan, square: None)
    result = folded(given, "centre", validate=False)
    assert counts(result.model)["RMSNormalization"] == VIT.norms
    assert not verdict(given, given.module, result.model).passed


SLOTS = 12
"""What is centred of a ViT: the patches' kernel and bias, class token, positions, weight and bias of 4 projections."""


@pytest.mark.parametrize("slot", range(SLOTS))
def test_a_writer_left_uncentred_is_dropped_and_without_the_proof_parity_fails(
    slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(found: stream.Stream) -> None:
        assert len(found.weights) == SLOTS
        found.weights.pop(list(found.weights)[slot])

    mutate(monkeypatch, forget)
    proven = folded(vit(), "centre")
    assert any(dropped.code in FAILED_PROOFS for dropped in proven.ledger.dropped)
    assert counts(proven.model) == {"LayerNormalization": VIT.norms}
    assert verdict(vit(), vit().module, proven.model).passed
    unproven = folded(vit(), "centre", validate=False)
    assert counts(unproven.model) == {"RMSNormalization": VIT.norms}
    assert not verdict(vit(), vit().module, unproven.model).passed
