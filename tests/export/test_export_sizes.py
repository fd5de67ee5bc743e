"""Sizes in ranges: multiples, dimensions shared from 1 on, and what to ask for where a range does not work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporting import export, hold, lived_in
from torch import nn

from normdeploy.errors import InputError
from normdeploy.export.advice import multiples_that_run, of_multiple
from normdeploy.specs import Dim, dynamic_dims, parse


class UNet(nn.Module):
    """Halves twice and doubles twice, with skips: a size that is no multiple of 4 does not come back as it was."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.last, self.upsample = nn.Conv2d(12, 2, 1), nn.Upsample(scale_factor=2, mode=mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.norm(self.down(x)))
        b = self.middle(F.max_pool2d(a, 2))
        c = torch.cat([self.up(F.max_pool2d(b, 2)), b], 1)
        return self.last(torch.cat([self.upsample(c), a], 1))


class Masked(nn.Module):
    """A transformer's block on token ids, whose padding is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 8), nn.Embedding(16, 8)
        self.norm, self.qkv, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = self.embed(ids) + self.place(torch.arange(length))
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden).transpose(1, 2).reshape(batch, length, 8)
        return self.head((x + y) * mask[..., None].to(x.dtype)).sum(1)


def halved_twice(x: torch.Tensor) -> torch.Tensor:
    """A U-Net of bare bones: the inner skip asks for multiples of 4, the outer for multiples of 2."""
    kernel = torch.ones(1, 1, 2, 2, dtype=x.dtype)
    inner = F.max_pool2d(x, 2)
    deep = F.conv_transpose2d(F.max_pool2d(inner, 2), kernel, stride=2)
    return torch.cat([x, F.conv_transpose2d(inner + deep, kernel, stride=2)], 1)


def function(of: Any) -> nn.Module:
    class Function(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return of(x)

    return Function()


def advised(module: nn.Module, *texts: str) -> list[str]:
    """The specs that the refusal of ``texts`` tells to ask for; those that it does not change stay."""
    with pytest.raises(InputError) as caught:
        export(module, *texts)
    given = re.findall(r'--input "([^"]+)"', caught.value.fix)
    assert given, caught.value
    names = {text.partition(":")[0] for text in given}
    return [*given, *(text for text in texts if text.partition(":")[0] not in names)]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_unet_is_dynamic_in_multiples_from_the_first_on(mode: str) -> None:
    exported = hold(lived_in(UNet(mode)), "x:N=1..2..3x3xH=4..12..20%4xW=8..16..24%4")
    assert [str(value.shape) for value in exported.model.graph.inputs] == ["[N,3,H,W]"]
    assert [str(value.shape) for value in exported.model.graph.outputs] == ["[N,2,H,W]"]
    shapes = {str(value.shape) for node in exported.model.graph for value in node.outputs}
    assert "[N,4,2*(H/4),2*(W/4)]" in shapes  # in words of the spec, not in torch's


def test_one_multiple_may_be_two_dimensions() -> None:
    hold(lived_in(UNet("nearest")), "x:2x3xS=8..12..16%4xS")


def test_ids_and_mask_share_their_dimensions_from_one_on() -> None:
    exported = hold(lived_in(Masked()), "ids:B=1..2..4xT=1..7..16@i64[0..49]", "mask:BxT@i64[0..1]")
    assert [str(value.shape) for value in exported.model.graph.inputs] == ["[B,T]", "[B,T]"]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 2, ceil_mode=True)], ids=str)
def test_a_condition_that_torch_cannot_prove_is_tried_at_every_size(pool: nn.Module) -> None:
    hold(lived_in(nn.Sequential(nn.Conv2d(3, 4, 1), pool)), "input:N=1..2..3x3xH=9..10..14xW=10..13..15")


@pytest.mark.parametrize(
    ("module", "text", "advice"),
    [
        (UNet("nearest"), "x:N=1..2..3x3xH=6..12..22xW=8..16..24", "x:N=1..2..3x3xH=8..12..20%4xW=8..16..24%4@f32"),
        (UNet("nearest"), "x:1x3xH=6..12..22%2xW=8..16..24%4", "x:1x3xH=8..12..20%4xW=8..16..24%4@f32"),
        (function(halved_twice), "x:1x1xH=6..12..22xW=8..16..24", "x:1x1xH=8..12..20%4xW=8..16..24%4@f32"),
        (function(lambda x: x.reshape(x.shape[0] // 4, 24)), "x:N=2..4..17x6", "x:N=4..4..16%4x6@f32"),
        (function(lambda x: x.reshape(x.shape[0] // 4, 24)), "x:N=2..4..18%2x6", "x:N=4..4..16%4x6@f32"),
        (function(lambda x: x * 2 if x.shape[0] > 4 else x), "x:N=1..5..8x6", "x:N=5..5..8x6@f32"),
        (function(lambda x: x * 2 if x.shape[0] > 4 else x), "x:N=2..6..8%2x5", "x:N=6..6..8%2x5@f32"),
        (function(lambda x: x * 2 if x.shape[0] < 6 else x), "x:N=2..4..8%2x5", "x:4x5@f32"),
        (function(lambda x: x * len(x[0].unbind())), "x:N=2..3..4xT=2..5..9", "x:N=2..3..4x5@f32"),
    ],
    ids=[
        "runs",
        "runs on more",
        "two multiples",
        "guard",
        "guard on more",
        "range",
        "multiples above",
        "below",
        "fixed",
    ],
)
def test_the_sizes_that_a_refusal_tells_to_ask_for_work(module: nn.Module, text: str, advice: str) -> None:
    assert advised(lived_in(module), text) == [advice]
    hold(lived_in(module), advice)


@pytest.mark.parametrize("size", [3, (2, None)], ids=str)
def test_adaptive_pooling_averages_at_every_size(size: Any) -> None:
    pool = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(size))
    hold(lived_in(pool), "input:N=1..2..3x3xH=7..10..14xW=9..13..15")


def test_a_path_that_differs_at_the_first_multiple_is_refused() -> None:
    differs = function(lambda x: x * (3 if x.shape[0] == 2 else 2))
    with pytest.raises(InputError, match="takes another path at N = 2"):
        export(differs, "x:N=2..4..8%2x6")
    hold(differs, "x:N=4..6..8%2x6")


def test_no_multiples_are_told_where_they_would_not_help() -> None:
    specs = parse(["x:N=1..2..8x6", "y:M=1..2..8x6"])
    assert multiples_that_run(specs, lambda sizes: sizes["N"] == sizes["M"]) is None
    assert multiples_that_run(specs, lambda sizes: False) is None
    found = multiples_that_run(specs, lambda sizes: sizes["M"] % 2 == 0)
    assert found == {"M": Dim("M", 2, 2, 8, 2)}


def test_a_range_without_two_multiples_has_none() -> None:
    (dim,) = dynamic_dims(parse(["x:N=5..6..11"])).values()
    assert of_multiple(dim, 2) == Dim("N", 6, 6, 10, 2)
    assert of_multiple(dim, 4) is None  # 8 alone


def test_a_size_that_is_refused_is_told_by_the_module_and_the_line_that_ask() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return halved(x)

    def halved(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] // 2, 12)  # the line of halves

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 4 else x  # the line of the branch

    for module, mark in ((nn.Sequential(nn.ReLU(), Inner()), "halves"), (function(wide), "the branch")):
        with pytest.raises(InputError) as caught:
            export(module, f"{'input' if mark == 'halves' else 'x'}:N=2..6..8x6")
        lines = enumerate(Path(__file__).read_text().splitlines(), 1)
        line = next(number for number, text in lines if f"# the line of {mark}" in text)
        label = "module '1'" if mark == "halves" else "module Function"
        assert caught.value.where.startswith(f"{label}, test_export_sizes.py line {line}; --input "), caught.value
