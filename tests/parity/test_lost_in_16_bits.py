"""What 16 bits lose is told from a fault: masks that are cut, rows that are hidden wholly, numbers without room."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stand_ins import FunctionRunner, onnxruntime_runner
from torch import Tensor, nn

from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.corners import corner_feeds
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.nodes import worst_node
from normdeploy.parity.verdict import Verdict
from normdeploy.pipeline.judge import ParityError, verdict_on
from normdeploy.precision import to_precision
from normdeploy.report.schema import Report
from normdeploy.runtime.runner import Runner
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4xT=2..5..9x16@f32", "mask:NxT@bool"])
ROWS = parse(["x:N=1..2..4x8@f32"])


class Attention(nn.Module):
    """One head; ``mask`` is true where a key counts, and ``low`` hides the others: [N, T, 16] → [N, T, 4].

    Where ``low`` is None it is the least number of the type that is computed in.
    """

    def __init__(self, low: float | None, *, added: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.added = low, added
        self.query, self.key, self.value, self.out = (nn.Linear(16, size) for size in (16, 16, 16, 4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = self.query(x) @ self.key(x).transpose(-1, -2) / 4
        low = torch.finfo(x.dtype).min if self.low is None else self.low
        if self.added:
            weights = weights + (1.0 - mask[:, None].to(x.dtype)) * low
        else:
            weights = weights.masked_fill(~mask[:, None], low)
        out: Tensor = self.out(weights.softmax(-1) @ self.value(x))
        return out


class Overflowing(nn.Module):
    """What ``big`` makes is beyond float16, what ``small`` makes of it is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.big, self.small = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.big.weight.data *= 3e4
        self.small.weight.data *= 1e-4

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.small(torch.relu(self.big(self.first(x) * 10)))
        return out


class Scaled(nn.Module):
    """A product that is beyond float16, and that a fold takes away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x) * 60000.0 * 3.0 / 180000.0)
        return out


def graphs(module: nn.Module, specs: list[object]) -> tuple[ir.Model, ir.Model]:
    module.eval().requires_grad_(False)
    single = fold(to_graph(module, specs).model).model
    return single, to_precision(single, "fp16")


def judged(
    module: nn.Module, specs: list[object], feeds: tuple[Feed, ...], runner: Runner | None = None
) -> tuple[Verdict, ir.Model]:
    single, narrow = graphs(module, specs)
    runner = runner or onnxruntime_runner(narrow)
    return verdict_on(module, specs, runner, narrow, feeds, precision="fp16", single=single), narrow


def hidden_row() -> Feed:
    arrays = dict(random_feeds(SPECS)[0].arrays)
    arrays["mask"][0] = False
    return Feed("padding", arrays)


@pytest.mark.parametrize("low", [-1e12, -1e9, -1e4, None])
@pytest.mark.parametrize("added", [True, False])
def test_masks_of_any_length_pass_on_random_feeds_and_corners(low: float | None, added: bool) -> None:
    feeds = (*random_feeds(SPECS), *(feed for feed in corner_feeds(SPECS) if feed.name.startswith("mask")))
    verdict, _ = judged(Attention(low, added=added), SPECS, feeds)
    assert verdict.passed, [each for each in verdict.judgements if not each.passed]


def test_a_corner_that_the_cut_of_a_mask_decides_is_replaced_and_said() -> None:
    corner = next(feed for feed in corner_feeds(SPECS) if feed.name == "mask: all false")
    module = Attention(None, added=True)
    verdict, _ = judged(module, SPECS, (corner,))
    assert verdict.passed
    assert any("how far a mask reaches, which float16 cuts" in note for note in verdict.notes), verdict.notes
    assert {each.measurement.feed for each in verdict.judgements} == {"random, in place of mask: all false"}


@pytest.mark.parametrize(("fault", "passed"), [(0.0, True), (0.02, False)])
def test_where_eager_is_nan_and_the_graph_has_room_float64_decides(fault: float, passed: bool) -> None:
    """A row that -1e12 hides wholly: eager in float16 has only -inf there, the graph is what float64 says."""
    feed, module = hidden_row(), Attention(-1e12, added=False)
    exact = Attention(-1e12, added=False).double()(
        torch.tensor(feed.arrays["x"]).double(), torch.tensor(feed.arrays["mask"])
    )
    artefact = FunctionRunner(lambda **_: {"output": (exact.detach().numpy() * (1 + fault)).astype(np.float32)})
    verdict, _ = judged(module, SPECS, (feed,), artefact)
    assert verdict.passed is passed
    (runtime,) = verdict.of("runtime")
    assert runtime.measurement.reference == "float64"
    assert any("float16 itself is NaN" in note and "against float64" in note for note in verdict.notes)


def test_a_product_that_overflows_in_eager_alone_fails_nobody() -> None:
    feeds = random_feeds(ROWS)
    verdict, narrow = judged(Scaled(), ROWS, feeds)
    assert verdict.passed, [each for each in verdict.judgements if not each.passed]
    exact = Scaled().double()(torch.tensor(feeds[0].arrays["x"]).double()).detach().numpy()
    deployed = onnxruntime_runner(narrow)(feeds[0].arrays)["output"]
    assert np.abs(deployed - exact).max() < 4e-3 * np.abs(exact).max()


def test_an_overflow_is_blamed_on_the_numbers_and_not_on_a_kernel() -> None:
    verdict, narrow = judged(Overflowing(), ROWS, random_feeds(ROWS))
    assert not verdict.passed
    assert verdict.first_divergent == "big"
    assert verdict.first_node is not None
    assert "of big overflows float16: it reaches" in verdict.first_node
    assert "kernel" not in verdict.first_node
    worst = worst_node(narrow, random_feeds(ROWS)[0])
    assert worst is not None
    hidden = Overflowing()
    x = torch.tensor(random_feeds(ROWS)[0].arrays["x"])
    peak = float(hidden.big(hidden.first(x) * 10).detach().abs().max())
    assert worst.dtype == "float16"
    assert worst.peak == pytest.approx(peak, rel=0.01)
    error = ParityError(verdict, Report.model_construct())
    assert "bf16 or fp32" in error.fix


@pytest.mark.parametrize("text", ["mask:N=1..3..5xT=1..2..7@bool", "mask:N=1..3..5xT=1..2..7@i64[0..1]"])
def test_no_row_of_a_mask_is_all_alike_by_chance(text: str) -> None:
    for seed in range(40):
        for feed in random_feeds(parse([text]), seed=seed):
            mask = feed.arrays["mask"]
            assert set(np.unique(mask)) <= {0, 1}
            assert mask.shape[1] == 1 or ((mask != mask[:, :1]).any(1)).all()
