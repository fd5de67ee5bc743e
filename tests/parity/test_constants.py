"""What a graph stores of constants that the code computes is rounded: what that may cost is measured, not guessed."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import measure
from normdeploy.parity.reference import Oracle
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.pipeline.source import feeds_for
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.specs import parse

IMAGE = "x:N=1..2..4x3xH=16..20..40xW=16..23..50@f32"
FIXED = "x:N=1..2..4x3x20x23@f32"


class Of(nn.Module):
    """A function of x, and of what a convolution and a norm make of it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.norm(self.conv(x)))


class Standardized(nn.Conv2d):
    """timm's StdConv2d: its weight is standardized each time."""

    eps = 1e-6

    def forward(self, input: Tensor) -> Tensor:  # as PyTorch calls it
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0, eps=self.eps)
        return functional.conv2d(input, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def standardized(eps: float = 1e-6, gain: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [Standardized(3, 16, 3, padding=1)]
    for index in range(4):
        norm = nn.GroupNorm(4, 16) if index % 2 else nn.BatchNorm2d(16)
        layers += [norm, nn.SiLU(), Standardized(16, 16, 3, padding=1, bias=bool(index % 2))]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2.0)
        if isinstance(part, Standardized):
            part.eps = eps
            part.bias = None if part.bias is None else nn.Parameter(part.bias * gain)
    return net


def whole_pixels(x: Tensor, y: Tensor, shift: float = 0.0) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(23.0), indexing="ij")
    grid = torch.stack((2 * (columns + 0.5 + shift) / 23 - 1, 2 * (rows + 0.5) / 20 - 1), -1)
    return functional.grid_sample(y, grid[None].expand(x.shape[0], -1, -1, -1), align_corners=False)


def larger(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: functional.interpolate(y, scale_factor=factor, mode="bilinear")


CASES: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "a factor": (FIXED, lambda: Of(larger(1.6)), lambda: Of(larger(1.60001))),
    "a table of places": (FIXED, lambda: Of(whole_pixels), lambda: Of(lambda x, y: whole_pixels(x, y, 1e-5))),
    "a standardized weight": ("input:N=1..2..4x3x20x23@f32", standardized, lambda: standardized(eps=1e-4)),
    "behind it": ("input:N=1..2..4x3x20x23@f32", standardized, lambda: standardized(gain=1.001)),
}


def verdict(name: str, index: int) -> Verdict:
    """The verdict on the folded graph of the first module, or of its wrong twin, beside the first."""
    spec, *builds = CASES[name]
    module, deployed = (builds[place]().eval().requires_grad_(False) for place in (0, index))
    specs = parse([spec])
    graph = fold(to_graph(deployed, specs).model).model
    feeds = feeds_for(specs, None, 0, module=module)
    measured = measure(module, specs, Rounded(graph), feeds, graph=graph)
    return judge(measured.measurements, reference=measured.reference, notes=measured.notes)


class Rounded:
    """A runtime that rounds its outputs, and nothing else."""

    name = "rounded"

    def __init__(self, graph: ir.Model) -> None:
        self._runner = Float64Runner(graph)
        self.inputs, self.outputs = self._runner.inputs, self._runner.outputs

    def __call__(self, feeds):  # noqa: ANN001, ANN204
        return {name: array.astype("float32") for name, array in self._runner(feeds).items()}


@pytest.mark.parametrize("name", list(CASES)[:3])
def test_constants_that_the_code_computes_may_be_rounded_once(name: str) -> None:
    assert verdict(name, 0).passed


@pytest.mark.parametrize("name", CASES)
def test_other_constants_fail(name: str) -> None:
    failed = verdict(name, 1)
    assert "graph" in {each.measurement.part for each in failed.failures()}


def test_a_factor_is_not_rounded_where_another_size_would_come_of_it() -> None:
    """20 * 0.7 is 14, and 13.99 with the float32 next to 0.7: the size is Python's, whatever is rounded."""
    module = Of(larger(0.7)).eval().requires_grad_(False)
    oracle = Oracle(module, parse([FIXED]))
    feed = {"x": torch.zeros(1, 3, 20, 23).numpy()}
    assert {oracle.rounded(feed, draw)["output"].shape for draw in range(3)} == {(1, 3, 14, 16)}


def test_infinite_constants_stay_what_they_are() -> None:
    far = torch.tensor([0.0, float("-inf"), 1.0])
    module = Of(lambda x, y: torch.softmax(y[..., :3] + far, -1)).eval().requires_grad_(False)
    rounded = Oracle(module, parse([FIXED])).rounded({"x": torch.zeros(1, 3, 20, 23).numpy()}, 1)["output"]
    assert not rounded[..., 1].any()
    assert rounded.sum(-1) == pytest.approx(1.0)
