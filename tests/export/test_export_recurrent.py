"""Recurrent layers at a dynamic length; packed sequences are refused, and what is told to do instead works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import export, hold, lived_in, operators
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from normdeploy.errors import InputError


class Recurrent(nn.Module):
    """nn.RNN of each kind: two layers both ways with the batch first, and one with states given and no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh = nn.RNN(5, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.relu = nn.RNN(5, 4, nonlinearity="relu", bias=False)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        return self.tanh(x), self.relu(x.transpose(0, 1), h)


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(5, 4, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class Pads(nn.Module):
    """What the refusal of ``Packs`` tells to write."""

    def __init__(self, packs: Packs) -> None:
        super().__init__()
        self.there, self.back = nn.GRU(5, 4, batch_first=True), nn.GRU(5, 4, batch_first=True)
        weights = packs.layer.state_dict()
        self.there.load_state_dict({name: w for name, w in weights.items() if not name.endswith("_reverse")})
        self.back.load_state_dict({n.removesuffix("_reverse"): w for n, w in weights.items() if n.endswith("_reverse")})

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        place, end = torch.arange(x.shape[1])[None], lengths[:, None]
        turned = torch.where(place < end, end - 1 - place, place)[..., None]
        back = self.back(torch.gather(x, 1, turned.expand(-1, -1, x.shape[2])))[0]
        both = torch.cat([self.there(x)[0], torch.gather(back, 1, turned.expand(-1, -1, back.shape[2]))], -1)
        return both * (place < end)[..., None]


def test_rnn_keeps_a_dynamic_length_as_onnxs_operator() -> None:
    exported = hold(lived_in(Recurrent()), "x:N=1..2..3xT=1..4..9x5", "h:1xNx4")
    assert operators(exported)["RNN"] == 3
    assert not operators(exported)["Loop"]
    shapes = [str(value.shape) for value in exported.model.graph.outputs]
    assert shapes == ["[N,T,8]", "[4,N,4]", "[T,N,4]", "[1,N,4]"]


def test_an_lstm_that_projects_its_states_is_a_loop() -> None:
    exported = hold(lived_in(nn.LSTM(5, 4, proj_size=3)), "input:T=1..4..9xN=1..2..3x5")
    assert operators(exported)["Loop"] == 1


def test_a_packed_sequence_is_refused_and_what_is_told_works() -> None:
    packs = lived_in(Packs())
    specs = "x:N=1..2..3xT=6..7..9x5", "lengths:N@i64[1..6]"
    with pytest.raises(InputError, match="a packed sequence cannot be exported") as caught:
        export(packs, *specs)
    assert caught.value.where.startswith("module 'layer', test_export_recurrent.py line ")
    assert "torch.gather turned round within their lengths" in caught.value.fix
    pads, x, lengths = Pads(packs).eval(), torch.randn(3, 7, 5), torch.tensor([6, 1, 3])
    with torch.no_grad():
        torch.testing.assert_close(pads(x, lengths), packs(x, lengths))
    hold(pads, *specs)


def test_a_loop_of_cells_over_the_length_is_told_by_its_line() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(x.shape[0], 4)
            for step in range(x.shape[1]):  # this line
                state = self.cell(x[:, step], state)
            return state

    with pytest.raises(InputError, match="'T' must be 4") as caught:
        export(Cells(), "x:2xT=1..4..9x5")
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# this line" in text)
    assert caught.value.where.startswith(f"module Cells, test_export_recurrent.py line {line}; --input ")
