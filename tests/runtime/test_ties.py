"""Of equal elements the reference takes the first, as ONNX does; of others nothing else than PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from normdeploy.export import to_graph
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.ties import FirstOfEqual
from normdeploy.specs import parse

SPECS = parse(["x:B=1..2..3xT=40..60..90x6"])
NOTE = "sort and topk take the first of equal elements in the reference; PyTorch may take any"


def expected(x: Tensor, descending: bool) -> np.ndarray:
    """The order of the last axis, by NumPy."""
    return np.argsort(-x.numpy() if descending else x.numpy(), axis=-1, kind="stable")


@pytest.mark.parametrize("descending", [False, True])
def test_the_first_of_equal_elements_is_taken_first(descending: bool) -> None:
    x = torch.randint(0, 5, (3, 200), generator=torch.Generator().manual_seed(0)).float()
    wanted = expected(x, descending)
    with FirstOfEqual() as ties, torch.inference_mode():
        values, order = x.sort(descending=descending)
        top = x.topk(17, largest=descending)
        across = x.t().topk(17, dim=0, largest=descending).indices
        alone = x.argsort(descending=descending)
        scalar = x[0, 0].sort()
    np.testing.assert_array_equal(order, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x.numpy(), wanted, -1))
    np.testing.assert_array_equal(top.indices, wanted[:, :17])
    np.testing.assert_array_equal(top.values, x.topk(17, largest=descending).values)
    np.testing.assert_array_equal(across.t(), wanted[:, :17])
    np.testing.assert_array_equal(alone, wanted)
    assert scalar.indices == 0
    assert ties.chose


def test_where_nothing_is_equal_nothing_is_chosen() -> None:
    x = torch.randperm(50, generator=torch.Generator().manual_seed(0)).float()
    with FirstOfEqual() as ties:
        assert torch.equal(x.topk(9).indices, torch.topk(x, 9).indices)
    assert not ties.chose


class Picks(nn.Module):
    """(B, T, 6) → places among what a ReLU leaves, of which half is 0."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.of = nn.LayerNorm(6), nn.Linear(6, 6), of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(torch.relu(self.linear(self.norm(x))))


def verdict(module: nn.Module, deployed: nn.Module) -> Verdict:
    graph = to_graph(deployed.eval(), SPECS).model
    runner = OnnxRuntimeRunner(ir.to_proto(graph).SerializeToString(), threads=1)
    measured = measure(module.eval(), SPECS, runner, random_feeds(SPECS), graph=graph)
    return judge(measured.measurements, reference=measured.reference, notes=measured.notes)


def gathered(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order)


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: x.sort(1).indices,
    "sort downwards": lambda x: x.sort(1, descending=True).indices,
    "stable sort": lambda x: x.sort(dim=1, stable=True).indices,
    "argsort": lambda x: x.argsort(1, descending=True),
    "topk": lambda x: x.topk(38, dim=1).indices,
    "topk in any order": lambda x: x.topk(38, dim=1, sorted=False).indices,
    "the least": lambda x: x.topk(9, dim=1, largest=False).indices,
    "rows that are picked": lambda x: gathered(x - 1, x.topk(38, dim=1).indices),
    "others that are picked": lambda x: gathered(x.cumsum(1), x.topk(38, dim=1).indices),
}
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: (x + 1e-6 * (x > 1)).round(decimals=2).sort(1).indices,
    "sort downwards": lambda x: x.flip(1).sort(1, descending=True).indices,
    "stable sort": lambda x: torch.relu(x - 1e-2).sort(dim=1, stable=True).indices,
    "argsort": lambda x: x.argsort(1),
    "topk": lambda x: x.topk(39, dim=1).indices[:, 1:],
    "topk in any order": lambda x: x.clamp(max=1).topk(38, dim=1).indices,
    "the least": lambda x: x.topk(9, dim=1).indices,
    "rows that are picked": lambda x: gathered(x - 1, x.topk(39, dim=1).indices[:, 1:]),
    "others that are picked": lambda x: gathered(x.cumsum(1), (x + 1e-3).round(decimals=2).topk(38, dim=1).indices),
}
"""Graphs that take others, some of them all but equal."""


@pytest.mark.parametrize("name", RIGHT)
def test_ties_are_no_fault_of_a_graph(name: str) -> None:
    found = verdict(Picks(RIGHT[name]), Picks(RIGHT[name]))
    assert found.passed, found.failures()
    assert (NOTE in found.notes) == (name != "stable sort")


@pytest.mark.parametrize("name", WRONG)
def test_elements_that_are_not_equal_are_no_ties(name: str) -> None:
    assert not verdict(Picks(RIGHT[name]), Picks(WRONG[name])).passed
