"""What no comparison can judge is said: outputs that are others each time, drawn numbers, whole numbers at a tie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch import nn

from normdeploy.errors import InputError
from normdeploy.parity.compare import Measured, measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.output import is_noise
from normdeploy.parity.verdict import judge
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x6"])
ROWS = Feed("constant rows", {"x": np.ones((2, 6), np.float32)}, corner=True, instead=random_feeds(SPECS)[1])


class Chance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * torch.rand_like(x)


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class Counting(Memory):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2


class Seeded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


class Indices(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.topk(3, dim=1).indices if self.kind == "TopK" else x.argmax(1)


class Scaled(nn.Module):
    """The places of the largest of x: 1 / 49 * 49 is less than 1, and of equal elements the first is the last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor([49.0, 1, 1, 1, 1, 1], dtype=x.dtype)
        return (x / scale * scale).topk(3, dim=1).indices


GRAPHS = {
    "TopK": "agraph (float[N, 6] x) => (int64[N, 3] output) <int64[1] k = {3}> { v, output = TopK<axis = 1>(x, k) }",
    "wrong TopK": "agraph (float[N, 6] x) => (int64[N, 3] output) <int64[1] k = {3}> "
    "{ v, output = TopK<axis = 1, largest = 0>(x, k) }",
    "ArgMax": "agraph (float[N, 6] x) => (int64[N] output) { output = ArgMax<axis = 1, keepdims = 0>(x) }",
    "last ArgMax": "agraph (float[N, 6] x) => (int64[N] output) "
    "{ output = ArgMax<axis = 1, keepdims = 0, select_last_index = 1>(x) }",
    "Random": "agraph (float[N, 6] x) => (float[N, 6] output) <float s = {0.01}> "
    "{ r = RandomNormalLike<seed = 0.0>(x)  d = Mul(r, s)  output = Add(x, d) }",
    "no noise": "agraph (float[N, 6] x) => (float[N, 6] output) <float s = {0.0}, float two = {2.0}> "
    "{ r = RandomNormalLike(x)  d = Mul(r, s)  y = Mul(x, two)  output = Add(y, d) }",
}


def measured(module: nn.Module, graph: str, folder: Path, *feeds: Feed) -> Measured:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {GRAPHS[graph]}')
    onnx.save(model, folder / "model.onnx")
    runner, graph_ir = OnnxRuntimeRunner(folder / "model.onnx"), ir.from_proto(model)
    return measure(module.eval(), SPECS, runner, [*random_feeds(SPECS), *feeds], graph=graph_ir)


def passed(found: Measured) -> bool:
    return judge(found.measurements, reference=found.reference).passed


@pytest.mark.parametrize("kind", [Chance, Memory])
def test_a_module_that_answers_otherwise_each_time_is_refused(kind: type[nn.Module]) -> None:
    module = kind().eval()
    with pytest.raises(InputError, match="another output each time for the same inputs"):
        measure(module, SPECS, EagerRunner(module, SPECS), random_feeds(SPECS))


def test_what_is_remembered_and_not_returned_is_nobodys_affair() -> None:
    module = Counting().eval()
    assert passed(measure(module, SPECS, EagerRunner(Counting().eval(), SPECS), random_feeds(SPECS)))


def test_drawn_numbers_that_differ_in_float64_allow_nothing(tmp_path: Path) -> None:
    """Eager repeats its own draws, and float64 draws others: 1 % off would be called its own error."""
    assert not passed(measured(Seeded(), "Random", tmp_path))


def test_drawn_numbers_that_count_for_nothing_pass(tmp_path: Path) -> None:
    assert passed(measured(Counting(), "no noise", tmp_path))


def test_indices_at_a_tie_are_the_first_and_that_is_said(tmp_path: Path) -> None:
    found = measured(Indices("TopK"), "TopK", tmp_path, ROWS)
    assert passed(found)
    assert found.notes == ("sort and topk take the first of equal elements in the reference; PyTorch may take any",)
    assert any(each.feed == "constant rows" for each in found.measurements)


def test_indices_that_hang_on_rounding_alone_judge_nobody_and_that_is_said(tmp_path: Path) -> None:
    found = measured(Scaled(), "TopK", tmp_path, ROWS)
    assert passed(found)
    assert "constant rows: whole numbers of output hang on a tie: replaced by a random feed" in found.notes


@pytest.mark.parametrize(("kind", "graph"), [("TopK", "wrong TopK"), ("ArgMax", "last ArgMax")])
def test_indices_that_are_wrong_fail(kind: str, graph: str, tmp_path: Path) -> None:
    """Of equal elements argmax takes the first, in both: the tie is what shows the last one."""
    assert not passed(measured(Indices(kind), graph, tmp_path, ROWS))


def test_indices_that_are_right_pass_at_a_tie_too(tmp_path: Path) -> None:
    found = measured(Indices("ArgMax"), "ArgMax", tmp_path, ROWS)
    assert passed(found)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("eager", "exact", "noise"),
    [(1e-8, 1e-17, True), (1e-8, 0.0, True), (1.0, 1.001, False), (0.0, 1.0, False), (1e-3, 1.0, False)],
)
def test_an_output_that_is_lost_is_no_noise(eager: float, exact: float, noise: bool) -> None:
    assert is_noise(np.full(3, eager, np.float32), np.full(3, exact)) == noise
