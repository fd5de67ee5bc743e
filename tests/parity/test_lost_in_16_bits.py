"""What 16 bits lose is told from a fault: masks that are cut, rows that are hidden wholly, numbers without room."""

from __future__ import annotations

import copy

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
from normdeploy.runtime.float64 import Float64Runner
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


class Tokens(nn.Module):
    """Whole numbers made of real ones: int64 [N, T] → int64 [N, T], bool [N, T, 300]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(500, 32), nn.LayerNorm(32), nn.Linear(32, 300)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(self.norm(self.embed(ids)))
        return scores.argmax(-1), scores > 0.2


IDS = parse(["ids:N=1..4..8xT=8..32..64@i64[0..499]"])


@pytest.mark.parametrize(("times", "passed"), [(0, True), (1, True), (12, False)])
def test_whole_numbers_that_16_bits_decide_otherwise_are_counted(times: int, passed: bool) -> None:
    """As many booleans next to the threshold may differ as eager's do, and no dozen times as many."""
    module, feed = Tokens(), random_feeds(IDS)[0]
    _, narrow = graphs(module, IDS)
    ids, exact = torch.tensor(feed.arrays["ids"]), copy.deepcopy(module).double()
    scores = exact.head(exact.norm(exact.embed(ids))).numpy()
    differ = int((copy.deepcopy(module).half()(ids)[1] != exact(ids)[1]).sum())
    assert differ
    nearest = np.argsort(np.abs(scores - 0.2), axis=None)[: times * differ]
    meant = Float64Runner(narrow)

    def artefact(ids: np.ndarray) -> dict[str, np.ndarray]:
        outputs = meant({"ids": ids})
        (flags,) = (array for array in outputs.values() if array.dtype == bool)
        flags.flat[nearest] = ~flags.flat[nearest]
        return outputs

    verdict, _ = judged(module, IDS, (feed,), FunctionRunner(artefact))
    assert verdict.passed is passed, [each for each in verdict.judgements if not each.passed]


@pytest.mark.parametrize(("part", "by"), [("runtime", 0.03), ("graph", 0.01)])
def test_more_whole_numbers_than_eager_changes_are_a_fault(part: str, by: float) -> None:
    module, feeds = Tokens(), random_feeds(IDS)
    single, narrow = graphs(module, IDS)
    if part == "graph":
        wrong = Tokens()
        wrong.head.weight.data[1] *= 1 + by
        single, narrow = graphs(wrong, IDS)
    runner = onnxruntime_runner(narrow)

    def artefact(ids: np.ndarray) -> dict[str, np.ndarray]:
        outputs = runner({"ids": ids})
        if part == "runtime":
            indices = next(name for name, array in outputs.items() if array.dtype == np.int64)
            outputs[indices] = np.where(np.arange(ids.size).reshape(ids.shape) % round(1 / by), outputs[indices], 0)
        return outputs

    verdict = verdict_on(module, IDS, FunctionRunner(artefact), narrow, feeds, precision="fp16", single=single)
    assert not verdict.passed
    assert {each.measurement.part for each in verdict.failures()} & {part}
    assert part == "runtime" or verdict.first_divergent == "head"


class Averaged(nn.Module):
    """One number a batch, which rounding the weights alone can decide where it all but cancels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean()


def test_a_corner_that_rounding_the_weights_decides_is_replaced_and_said() -> None:
    module = Averaged().eval().requires_grad_(False)
    x = np.ones((1, 8), np.float32)
    bias = module.layer.bias.data
    bias -= (module(torch.tensor(x)) - 1e-5).item()  # all but nothing is left
    corner = Feed("cancels", {"x": x}, corner=True, instead=random_feeds(ROWS)[0])
    single = fold(to_graph(module, ROWS, opset=22).model).model
    narrow = to_precision(single, "bf16")
    exact = Float64Runner(narrow)
    runner = FunctionRunner(lambda **feed: {name: np.float32(value) for name, value in exact(feed).items()})
    verdict = verdict_on(module, ROWS, runner, narrow, (corner,), precision="bf16", single=single)
    assert verdict.passed, verdict.failures()
    assert any(
        "cancels: rounding the weights to bfloat16 alone decides" in note or "no guide" in note
        for note in verdict.notes
    )
    assert {each.measurement.feed for each in verdict.judgements} == {random_feeds(ROWS)[0].name}


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.LSTM])
def test_a_module_that_returns_several_tensors_is_named(kind: type[nn.Module]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 3)
            self.mixed: nn.Module = (
                nn.MultiheadAttention(16, 2, batch_first=True)
                if kind is nn.MultiheadAttention
                else nn.LSTM(16, 16, batch_first=True)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            mixed = self.mixed(x, x, x)[0] if kind is nn.MultiheadAttention else self.mixed(x)[0]
            out: Tensor = self.out(mixed)
            return out

    specs = parse(["x:N=1..2..4x5x16@f32"])
    module, wrong = Net(), Net()
    next(wrong.mixed.parameters()).data[1] *= 1.01
    single, _ = graphs(wrong, specs)
    module.eval().requires_grad_(False)
    verdict = verdict_on(
        module, specs, onnxruntime_runner(single), single, random_feeds(specs), exported=lambda: single
    )
    assert verdict.first_divergent == "mixed"
