"""The node that a runtime computes worst is named by what it makes of its own inputs, whatever memory there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from normdeploy.export import to_graph
from normdeploy.parity import nodes
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.nodes import named_in, rounded_alone, stuck_at, worst_node
from normdeploy.runtime.isolated import IsolatedRunner
from normdeploy.runtime.placement import Placement
from normdeploy.specs import parse

SPECS = parse(["x:4x64@f32"])


class Net(nn.Module):
    """Saturates a sigmoid, whose kernel in ONNX Runtime stops at ±18."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gate(self.body(x) - 25.0))


class Right(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).relu()


@pytest.fixture(scope="module")
def model() -> ir.Model:
    torch.manual_seed(0)
    return to_graph(Net().eval().requires_grad_(False), SPECS).model


@pytest.mark.parametrize("memory", [1 << 30, 4096])
def test_the_kernel_to_blame_is_named(model: ir.Model, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    values = nodes._values
    monkeypatch.setattr(nodes, "_values", lambda *given: runs.append(1) or values(*given))
    worst = worst_node(model, random_feeds(SPECS)[0], max_memory=memory)
    assert worst is not None
    assert (worst.operator, worst.module) == ("Sigmoid", "gate")
    assert worst.rms > 0.1
    assert "Sigmoid" in str(worst)
    assert "onnxruntime's kernel" in str(worst)
    assert (len(runs) > 1) is (memory == 4096)


@pytest.mark.parametrize("memory", [1 << 30, 4096])
def test_what_right_kernels_make_is_told_and_of_a_wrong_one_nothing(model: ir.Model, memory: int) -> None:
    feed = random_feeds(SPECS)[0]
    assert rounded_alone(model, feed, 1e-6, max_memory=memory) is None
    right = Right().eval().requires_grad_(False)
    made = rounded_alone(to_graph(right, SPECS).model, feed, 1e-6, max_memory=memory)
    assert made is not None
    wanted = right.double()(torch.tensor(feed.arrays["x"]).double())
    np.testing.assert_allclose(made["output"], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_node_that_cannot_be_told_is_not_taken_for_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feed = to_graph(Right().eval(), SPECS).model, random_feeds(SPECS)[0]
    assert rounded_alone(model, feed, 1e-6) is not None
    monkeypatch.setattr(nodes, "_own_error", lambda *_: None)
    assert rounded_alone(model, feed, 1e-6) is None


def test_a_message_of_the_runtime_is_told_by_module(model: ir.Model) -> None:
    name = next(node.name for node in model.graph if node.op_type == "Sigmoid")
    assert named_in(f"Non-zero status code while running Sigmoid node. Name:'{name}' Status", model) == "gate"
    assert named_in("something else", model) == ""


def test_a_graph_that_cannot_take_a_feed_is_followed_to_its_module(model: ir.Model) -> None:
    wrong = Feed("wide", {"x": np.zeros((4, 65), np.float32)})
    assert stuck_at(model, wrong, {}, {}) == "body"
    right = random_feeds(SPECS)[0]
    taps = {"body": next(node.outputs[0].name for node in model.graph if node.op_type in ("Gemm", "Add"))}
    assert stuck_at(model, right, {"body": (4, 63)}, taps) == "body"
    assert stuck_at(model, right, {"body": (4, 64)}, taps) == ""


def test_no_process_is_left(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[IsolatedRunner] = []

    class Spied(IsolatedRunner):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(nodes, "IsolatedRunner", Spied)
    worst_node(model, random_feeds(SPECS)[0])
    assert made
    assert all(runner._process.poll() is not None for runner in made)


def test_a_provider_answers_for_its_own_kernels(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU the CPU's kernels say nothing."""
    asked: list[Placement] = []

    def opened(path: Path, *, placement: Placement, options: dict[str, str]) -> IsolatedRunner:
        asked.append(placement)
        return IsolatedRunner(path, options=options)  # there is no such provider here

    monkeypatch.setattr(nodes, "IsolatedRunner", opened)
    worst = worst_node(model, random_feeds(SPECS)[0], placement=Placement("cuda", "cuda"))
    assert asked == [Placement("cuda", "cuda")]
    assert "by CUDAExecutionProvider's kernel" in str(worst)
