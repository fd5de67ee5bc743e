"""Corners are drawn where the specs have them, and judge nobody where eager itself is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import FunctionRunner, onnxruntime_runner
from torch import nn

from normdeploy.export import to_graph
from normdeploy.parity.compare import Measured, measure
from normdeploy.parity.corners import corner_feeds, statistics_feed
from normdeploy.parity.feeds import Feed, problems
from normdeploy.parity.verdict import judge
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import parse

MASKED = parse(["x:N=1..1..4xT=2..6..9x4@f32", "mask:NxT@bool"])


def drawn(specs: Any) -> dict[str, Feed]:
    return {feed.name: feed for feed in corner_feeds(specs)}


@pytest.mark.parametrize(
    "texts",
    [
        ["x:N=1..1..4xT=2..6..9x4@f32", "mask:NxT@bool"],
        ["x:2x3xH=8..16..32%8@f32[-1..1]", "ids:5@i64[3..9]", "m:5@i32[0..1]"],
        ["s:[]@f32", "b:[]@bool", "h:N=2..4..8x3@f16"],
    ],
)
def test_every_corner_fits_the_specs(texts: list[str]) -> None:
    specs = parse(texts)
    for feed in corner_feeds(specs):
        assert problems(specs, feed.arrays) == []
        assert feed.instead is None or problems(specs, feed.instead.arrays) == []


def test_sizes_that_are_none_of_the_three_are_met() -> None:
    (odd,) = [feed for name, feed in drawn(MASKED).items() if name.startswith("odd")]
    assert odd.arrays["x"].shape == (3, 7, 4)
    assert not odd.corner  # it judges like any other
    names = {feed.name for feed in corner_feeds(parse(["x:H=64..128..256%4@f32"]))}
    assert "odd H=132" in names  # no size of this dimension is odd


def test_masks_hide_everything_nothing_and_the_ends_of_rows() -> None:
    feeds = drawn(MASKED)
    masks = {name.removeprefix("mask: "): feed.arrays["mask"] for name, feed in feeds.items() if "mask" in name}
    assert all(mask.shape == (3, 6) for mask in masks.values())  # several rows, though one is usual
    assert not masks["all false"].any()
    assert masks["all true"].all()
    prefix = masks["true, then false"]
    assert prefix[0].all()
    assert len(set(prefix.sum(1).tolist())) > 1
    assert (prefix[:, 1:] <= prefix[:, :-1]).all()
    np.testing.assert_array_equal(masks["false, then true"], ~prefix)
    assert (masks["one true"].sum(1) == 1).all()
    assert not masks["a row of each"][0].any()
    assert masks["a row of each"][-1].all()


def test_integers_of_0_and_1_are_masks_and_others_have_ends() -> None:
    feeds = drawn(parse(["ids:4x5@i64[3..9]", "mask:4x5@i64[0..1]"]))
    assert (feeds["integers: all at the low end"].arrays["ids"] == 3).all()
    assert (feeds["integers: all at the high end"].arrays["ids"] == 9).all()
    assert not feeds["mask: all false"].arrays["mask"].any()


def test_kinds_of_floats() -> None:
    feeds = drawn(parse(["x:64x64@f32"]))
    kinds = {name.removeprefix("floats: "): feed.arrays["x"] for name, feed in feeds.items() if "floats" in name}
    assert abs(kinds["mean 100"].mean() - 100) < 1
    assert abs(kinds["mean 10,000"].mean() - 1e4) < 1
    assert 0 < kinds["tiny variance"].std() < 2e-3
    assert (np.ptp(kinds["constant rows"], axis=1) == 0).all()
    assert kinds["one outlier"].max() == 1000
    assert not kinds["zeros"].any()
    assert 0 < np.abs(kinds["subnormal"]).max() < np.finfo(np.float32).tiny


def test_the_statistics_of_the_first_norm_are_drawn_where_it_sees_an_input() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([100.0, -5.0, 0.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 1e-4]))
    specs = parse(["x:8x3x32x32@f32"])
    feed = statistics_feed(nn.Sequential(norm, nn.Conv2d(3, 8, 1)), specs)
    assert feed is not None
    np.testing.assert_allclose(feed.arrays["x"].mean((0, 2, 3)), [100, -5, 0], atol=0.1)
    np.testing.assert_allclose(feed.arrays["x"].std((0, 2, 3)), [1, 2, 0.01], rtol=0.05)
    assert statistics_feed(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), specs) is None


class Masked(nn.Module):
    """The mean of what a mask leaves: NaN where that is nothing."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def masked_mean(x: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    wide = (x.astype(np.float64) * mask[..., None]).sum(1)
    with np.errstate(invalid="ignore"):
        return {"output": (wide / mask.sum(1, keepdims=True)).astype(np.float32)}


def test_a_corner_where_eager_is_nan_is_replaced_and_said() -> None:
    feeds = corner_feeds(MASKED)
    measured = measure(Masked().eval(), MASKED, FunctionRunner(masked_mean), feeds)
    names = {each.feed for each in measured.measurements}
    assert "mask: all false" not in names
    assert "random, in place of mask: all false" in names
    assert "mask: all true" in names
    assert any(note.startswith("mask: all false: eager PyTorch itself gives NaN") for note in measured.notes)
    assert judge(measured.measurements).passed


def test_a_fault_in_a_corner_alone_fails() -> None:
    def wrong(x: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        right = masked_mean(x, mask)["output"]
        return {"output": np.where(mask.all(1, keepdims=True), right * np.float32(1.1), right)}

    feeds = [feed for feed in corner_feeds(MASKED) if feed.name == "mask: all true"]
    assert not judge(measure(Masked().eval(), MASKED, FunctionRunner(wrong), feeds).measurements).passed


class Sigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-x / 4)


def test_an_output_that_all_but_vanishes_in_a_corner_is_not_judged_there() -> None:
    """A runtime that returns zeros for 1e-11 is off by all of it; beside the output's usual size that is nothing."""
    specs = parse(["x:4x5@f32"])
    usual = Feed("usual", {"x": np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)})
    corner = next(feed for feed in corner_feeds(specs) if feed.name == "floats: mean 100")

    def flushed(x: np.ndarray) -> dict[str, np.ndarray]:
        y = 1 / (1 + np.exp(x.astype(np.float64) / 4))
        return {"output": np.where(y < 1e-8, 0, y).astype(np.float32)}

    measured = measure(Sigmoid(), specs, FunctionRunner(flushed), [usual, corner])
    assert judge(measured.measurements).passed
    assert any("all but vanishes" in note for note in measured.notes)


class Cancelling(nn.Module):
    """Adds a bias and takes it away again, which of tiny inputs leaves 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 0.3) - 0.3


@pytest.mark.parametrize(("rest", "passed"), [(1e-30, True), (1e-5, False), (np.nan, False)])
def test_an_output_that_the_module_cancels_fails_nobody_for_what_rounding_leaves(rest: float, passed: bool) -> None:
    """A graph without the bias is right, and infinitely far from 0; a fault is far from it by the usual size too."""
    specs = parse(["x:4x5@f32"])
    usual = Feed("usual", {"x": np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)})
    tiny = Feed("tiny", {"x": np.full((4, 5), 1e-30, np.float32)}, corner=True)

    def without(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"output": x if np.abs(x).max() > 1e-20 else np.full_like(x, rest)}

    measured = measure(Cancelling(), specs, FunctionRunner(without), [usual, tiny])
    assert judge(measured.measurements).passed is passed
    assert any("is 0 there but for what rounding leaves" in note for note in measured.notes) is passed


class Filtered(nn.Module):
    """A filter of frequencies, then a norm: of a constant row it makes 0, and much of what a sum leaves in front."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.complex(torch.linspace(0.5, 2, 5), torch.linspace(1, -1, 5)))
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.fft.irfft(torch.fft.rfft(x, dim=-1) * self.filter, n=8, dim=-1))


FILTERED = parse(["x:3x4x8@f32"])
REST = "is 0 there but for what rounding leaves"


def filtered(graph: nn.Module, rest: Any = 0.0) -> Measured:
    """The errors of a graph with the norm ``graph``, where a LayerNorm is right.

    To what it makes of constant rows, ``rest`` times the largest of that is added.
    """
    model = to_graph(Filtered(graph).eval(), FILTERED).model
    runner = onnxruntime_runner(model)

    def deployed(x: np.ndarray) -> dict[str, np.ndarray]:
        (output,) = runner({"x": x}).values()
        return {"output": output if np.ptp(x, axis=-1).all() else output + np.float32(rest * np.abs(output).max())}

    usual = Feed("usual", {"x": np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)})
    corner = next(feed for feed in corner_feeds(FILTERED) if feed.name == "floats: constant rows")
    module = Filtered(nn.LayerNorm(8)).eval()
    (exact,) = EagerRunner(module, FILTERED, dtype=torch.float64)(corner.arrays).values()
    (made,) = runner(corner.arrays).values()
    assert not exact.any()
    assert np.abs(made).max() > 1e-6  # more than rounding costs what is of its usual size
    return measure(module, FILTERED, FunctionRunner(deployed), [usual, corner], graph=model)


def test_what_a_norm_makes_of_what_rounding_leaves_fails_nobody() -> None:
    measured = filtered(nn.LayerNorm(8))
    assert judge(measured.measurements).passed
    assert [note for note in measured.notes if note.startswith("floats: constant rows: output " + REST)]


ONE = np.arange(96).reshape(3, 4, 8) == 50
FAULTS = {
    "eight times the largest everywhere": 8.0 * np.where(np.arange(8) % 2, 1, -1),
    "eight times the largest in one element": 8.0 * ONE,
    "one element that is NaN": np.where(ONE, np.nan, 0.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_more_than_a_norm_makes_of_what_rounding_leaves_fails(fault: str) -> None:
    measured = filtered(nn.LayerNorm(8), FAULTS[fault])
    failed = judge(measured.measurements).failures()
    assert [(each.measurement.part, each.measurement.feed) for each in failed] == [("runtime", "floats: constant rows")]


class Shifted(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 2e-5  # as much as the runtime's kernels leave


@pytest.mark.parametrize("wrong", [nn.RMSNorm, Shifted])
def test_a_graph_that_makes_more_of_constant_rows_than_rounding_does_fails(wrong: Any) -> None:
    measured = filtered(wrong(8))
    failed = {(each.measurement.part, each.measurement.feed) for each in judge(measured.measurements).failures()}
    assert ("graph", "floats: constant rows") in failed
    assert not any(REST in note for note in measured.notes)
