"""What a network computes of its sizes: as Python does it, at every size that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exporting import export, operators, run
from torch import nn

from normdeploy.errors import InputError
from normdeploy.runtime.float64 import Float64Runner

Function = Callable[[torch.Tensor], torch.Tensor]
RANGE = "x:1xT=1..20..130"


class Function1d(nn.Module):
    """A function of (1, T), where the trace has a module to name."""

    def __init__(self, of: Function) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(x)


def image(x: torch.Tensor) -> torch.Tensor:
    """(1, T) to (1, 1, T, 6), each column another."""
    return x[:, None, :, None] * torch.arange(1.0, 7.0)


def resized(x: torch.Tensor, mode: str, factor: float, *, again: bool = False) -> torch.Tensor:
    """Resize as a sequence or an image, whichever the mode is for."""
    data = x[:, None] if mode in ("linear", "nearest") else image(x)
    return F.interpolate(data, scale_factor=factor, mode=mode, recompute_scale_factor=again or None)


def every_size(module: nn.Module, low: int = 1) -> list[int]:
    """The sizes at which the exported graph gives another shape, or other numbers, than the module."""
    exported, wrong = export(module, RANGE.replace("T=1", f"T={low}")), []
    for size in range(low, 131):
        x = torch.randn(1, size, generator=torch.Generator().manual_seed(size))
        (actual,), expected = run(exported, {"x": x.numpy()}).values(), module(x).numpy()
        # 130 cells in float32: a place between two of them is right to 1e-5
        if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=1e-3, atol=2e-4):
            wrong.append(size)
    return wrong


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda x: x[:, : math.trunc(x.shape[1] * 0.7)], id="trunc"),  # 62 of 90, 63 in float32
        pytest.param(lambda x: x[:, : math.floor(x.shape[1] * 0.29)], id="floor"),  # 28 of 100, 29 in float32
        pytest.param(lambda x: x[:, : math.ceil(x.shape[1] * 1.1 / 3.3)], id="ceil"),
        pytest.param(lambda x: x[:, : round(x.shape[1] / 2)], id="round to even"),
        pytest.param(lambda x: x[:, : math.trunc(x.shape[1] ** 0.5)], id="root"),
        pytest.param(lambda x: x[:, : math.trunc(x.shape[1] / 2 + 0.5)], id="division"),
        pytest.param(lambda x: x[:, : -(-x.shape[1] // 3)], id="floor division of a negative number"),
        pytest.param(lambda x: F.pad(x, (0, -x.shape[1] % 7)), id="rest of a negative number"),
    ],
)
def test_an_integer_that_is_computed_of_sizes_is_pythons(of: Function) -> None:
    assert every_size(Function1d(of)) == []


@pytest.mark.parametrize("factor", [0.7, 1.3])
@pytest.mark.parametrize("mode", ["nearest", "linear", "bilinear", "bicubic"])
def test_resizing_by_a_factor_gives_pytorchs_sizes_and_neighbours(mode: str, factor: float) -> None:
    low = 2 if factor < 1 or mode in ("nearest", "bicubic") else 4  # of 2 and 3 cells 1.3 makes as many
    assert every_size(Function1d(lambda x: resized(x, mode, factor)), low) == []


@pytest.mark.parametrize("mode", ["linear", "bilinear"])
def test_a_factor_that_copies_at_some_sizes_and_interpolates_at_others_is_refused(mode: str) -> None:
    with pytest.raises(InputError) as caught:
        export(Function1d(lambda x: resized(x, mode, 1.3)), RANGE.replace("T=1", "T=2"))
    assert "resizing by 1.3 leaves 2 cells as they are" in str(caught.value)
    assert "test_export_arithmetic.py line" in caught.value.where
    assert every_size(Function1d(lambda x: resized(x, mode, 1.3, again=True)), low=2) == []  # as the fix says


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resizing_to_a_size_that_is_computed_gives_pytorchs_neighbours(mode: str) -> None:
    assert every_size(Function1d(lambda x: resized(x, mode, 0.7, again=True)), low=2) == []


@pytest.mark.parametrize("factor", [0.7, 1.3])
@pytest.mark.parametrize("mode", ["nearest", "linear", "bicubic"])
def test_runtimes_that_count_otherwise_agree_where_a_product_is_whole(mode: str, factor: float) -> None:
    """40 * 0.7 is 28 in float32 and in PyTorch, and 27 in float64, where 0.7 is a float32 that is less."""
    exported = export(Function1d(lambda x: resized(x, mode, factor)), "x:1xT=10..40..80%10")
    x = np.linspace(0, 1, 40, dtype=np.float32)[None]
    (in_float64,) = Float64Runner(exported.model)({"x": x}).values()
    (actual,) = run(exported, {"x": x}).values()
    assert actual.shape == in_float64.shape
    assert actual.shape[2] == round(40 * factor)


@pytest.mark.parametrize("parts", [3, 7])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_to_one_part_takes_the_cell_in_the_middle(mode: str, parts: int) -> None:
    """No float32 is 1/3: a Resize by it mixes each cell with its neighbours."""
    module = Function1d(
        lambda x: F.interpolate(image(x)[..., :1].expand(1, 1, -1, 21), scale_factor=1 / parts, mode=mode)
    )
    exported = export(module, f"x:1xT={2 * parts}..40..130")
    for size in (2 * parts, 40, 84, 130):
        x = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
        (actual,) = run(exported, {"x": x}).values()
        taken = x[0, parts // 2 :: parts][: size // parts]
        np.testing.assert_allclose(actual, np.broadcast_to(taken[None, None, :, None], actual.shape), rtol=2e-7)


def test_resizing_by_a_whole_factor_stays_one_operator() -> None:
    exported = export(Function1d(lambda x: resized(x, "nearest", 2.0) + resized(x, "nearest", 2.0)), RANGE)
    assert operators(exported)["Resize"] == 2


def test_what_is_spelled_out_leaves_norms_as_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.batch = nn.LayerNorm(6), nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return resized(self.norm(self.batch(image(x)))[0, 0, :, :1].t(), "nearest", 0.7)

    found = operators(export(Net(), RANGE.replace("T=1", "T=2")))
    assert (found["LayerNormalization"], found["BatchNormalization"]) == (1, 1)


def test_a_size_that_int_fixes_is_refused_with_the_line_and_the_way_out() -> None:
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x[:, : int(x.shape[1] * 0.5)]

    with pytest.raises(InputError) as caught:
        export(Function1d(halved), RANGE)
    assert "int() of a number that is computed of sizes" in str(caught.value)
    assert "test_export_arithmetic.py line" in caught.value.where
    assert "math.trunc()" in caught.value.fix
    assert every_size(Function1d(lambda x: x[:, : math.trunc(x.shape[1] * 0.5)])) == []  # as it says


def test_int_of_what_is_the_same_at_every_size_is_no_matter() -> None:
    module = Function1d(lambda x: x + int(min(x.shape[1] * 0.5, 0.5)))
    assert every_size(module) == []


def test_a_size_rounded_to_decimals_is_refused() -> None:
    with pytest.raises(InputError):
        export(Function1d(lambda x: x * round(x.shape[1] / 3, 1)), RANGE)
