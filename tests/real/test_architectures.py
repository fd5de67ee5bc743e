"""Whole architectures: nothing is left of a norm that is linear, and the deployed network is the eager one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import onnx
import onnx_ir as ir
import pytest
import torch
from architectures import ARCHITECTURES, Architecture, randomized
from torch import nn

from normdeploy import specs
from normdeploy.doctor import inventory
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.pipeline.deploy import in_onnxruntime
from normdeploy.runtime.runner import Runner

pytestmark = pytest.mark.real

PASSES = ("BatchNormalization", "LayerNormalization", "Mul", "Add", "Sub", "Div", "Neg")
"""Operators that read and write every activation and compute next to nothing."""


class Deployed(NamedTuple):
    architecture: Architecture
    module: nn.Module
    exported: ir.Model
    folded: FoldResult
    runner: Runner


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def deployed(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    architecture: Architecture = request.param
    module = randomized(architecture)
    exported = to_graph(module, specs.parse([architecture.spec])).model
    folded = fold(exported)
    with in_onnxruntime(folded.model, torch.get_num_threads()) as session:
        yield Deployed(architecture, module, exported, folded, session.runner)


def running(module: nn.Module) -> list[str]:
    """The names of the layers that are linear at inference."""
    return [norm.name for norm in inventory.norms(module) if norm.running]


def verdict(architecture: Architecture, module: nn.Module, runner: Runner) -> Verdict:
    parsed = specs.parse([architecture.spec])
    feeds: tuple[Feed, ...] = random_feeds(parsed)
    measured = measure(module, parsed, runner, feeds)
    assert measured.reference == "float64"
    return judge(measured.measurements, reference=measured.reference)


def count(model: ir.Model, *op_types: str) -> int:
    return sum(node.op_type in op_types for node in model.graph)


def test_of_every_linear_norm_nothing_is_left(deployed: Deployed) -> None:
    expected, names = deployed.architecture, set(running(deployed.module))
    assert len(names) == expected.norms
    entries = [entry for entry in deployed.folded.ledger if entry.module in names]
    assert {entry.module for entry in entries} == names, "the ledger is silent about a norm"
    left = [entry for entry in entries if entry.outcome == "left"]
    assert len(left) == expected.left, "\n".join(f"{entry.module}: {entry.reason}" for entry in left)
    assert all(entry.reason for entry in left)
    assert not deployed.folded.ledger.dropped


def test_the_graph_is_valid_and_no_heavier(deployed: Deployed) -> None:
    before, after = deployed.exported, deployed.folded.model
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert (count(before, "Conv"), count(after, "Conv")) == deployed.architecture.convs
    assert count(after, "MatMul", "Gemm") <= count(before, "MatMul", "Gemm")
    assert count(after, *PASSES) <= count(before, *PASSES)


def test_parity(deployed: Deployed) -> None:
    judged = verdict(deployed.architecture, deployed.module, deployed.runner)
    assert judged.passed, "\n".join(str(judgement.measurement) for judgement in judged.failures())


def test_parity_would_see_a_fault_in_any_norm(deployed: Deployed) -> None:
    """Where one norm's variance is 2 % off, the verdict is another."""
    names = running(deployed.module)
    for name in {names[0], names[len(names) // 2], names[-1]}:
        faulty = copy.deepcopy(deployed.module)
        faulty.get_buffer(f"{name}.running_var").mul_(1.02)
        assert not verdict(deployed.architecture, faulty, deployed.runner).passed, name
