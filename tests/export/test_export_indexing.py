"""Indexing by int32, which PyTorch takes as it takes int64, and ONNX's GatherND and ScatterND do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exporting import eager, export, hold, lived_in, operators, run
from torch import nn

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Indexed(nn.Module):
    """A function of a normalized (B, T, 6) and of stored indices."""

    def __init__(self, of: Function) -> None:
        super().__init__()
        self.norm, self.of = nn.LayerNorm(6), of
        self.register_buffer("index", torch.tensor([0, 3, 2], dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(self.norm(x), self.index)


def written(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, index] = 0.5
    return y


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda x, i: x[:, i], id="an axis"),
        pytest.param(lambda x, i: x[:, i, i], id="two axes"),
        pytest.param(lambda x, i: x[:, i[:, None], i], id="two axes of other shapes"),
        pytest.param(lambda x, i: x[:, i, torch.arange(3)], id="beside int64"),
        pytest.param(lambda x, i: x[i * 0], id="the first axis"),
        pytest.param(lambda x, i: x[:, -1 - i], id="from the end"),
        pytest.param(written, id="written"),
        pytest.param(lambda x, i: x.index_add(1, i, x[:, :3]), id="added"),
    ],
)
def test_int32_indexes_as_int64_does(of: Function) -> None:
    hold(lived_in(Indexed(of)), "x:B=1..2..3xT=4..5..9x6")


def test_int64_is_cast_to_nothing() -> None:
    exported = export(lived_in(Indexed(lambda x, i: x[:, i.long()])), "x:B=1..2..3xT=4..5..9x6")
    assert not operators(exported)["Cast"]


def test_an_input_of_int32_picks_a_place_of_each_row() -> None:
    class Picked(nn.Module):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return x[torch.arange(x.shape[0]), index]

    feeds = {"x": np.arange(24, dtype=np.float32).reshape(3, 8), "index": np.array([7, 0, 3], np.int32)}
    (actual,) = run(export(Picked(), "x:B=1..2..4x8", "index:B@i32[0..7]"), feeds).values()
    np.testing.assert_array_equal(actual, [7.0, 8.0, 19.0])
    np.testing.assert_array_equal(actual, eager(Picked(), feeds)["output"])
