"""Recurrent layers at a dynamic length, and of rows that are packed; what is refused works as it is told instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import eager, export, hold, lived_in, nodes, operators, run
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from normdeploy.errors import InputError
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import parse


class Recurrent(nn.Module):
    """nn.RNN of each kind: two layers both ways with the batch first, and one with states given and no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh = nn.RNN(5, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.relu = nn.RNN(5, 4, nonlinearity="relu", bias=False)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        return self.tanh(x), self.relu(x.transpose(0, 1), h)


class Packs(nn.Module):
    """A recurrent layer on rows of other lengths, padded again to the longest row or to ``total``."""

    def __init__(self, layer: nn.RNNBase, *, total: bool = True, sort: bool = True, states: bool = False) -> None:
        super().__init__()
        self.layer, self.total, self.sort, self.states = layer, total, sort, states

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        first, (rows, steps) = self.layer.batch_first, x.shape[:2] if self.layer.batch_first else x.shape[1::-1]
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=not self.sort)
        y, last = self.layer(packed, self._states(x, rows) if self.states else None)
        total = {"total_length": steps} if self.total else {}
        return pad_packed_sequence(y, batch_first=first, padding_value=-3.0, **total), last, y.data.mean(0)

    def _states(self, x: torch.Tensor, rows: int) -> Any:
        """Return states that depend on the input, of each row its own."""
        means = x.mean(1 if self.layer.batch_first else 0)[None, :, : self.layer.hidden_size]
        state = means.expand((1 + self.layer.bidirectional) * self.layer.num_layers, rows, -1).contiguous()
        return (state, 2 * state) if isinstance(self.layer, nn.LSTM) else state


PACKED = {
    "lstm": (Packs(nn.LSTM(5, 4, batch_first=True, bidirectional=True, num_layers=2), states=True), "LSTM", 2),
    "lstm to the longest": (Packs(nn.LSTM(5, 4, bias=False), total=False), "LSTM", 1),
    "gru": (Packs(nn.GRU(5, 4, num_layers=2, batch_first=True, bidirectional=True), total=False), "GRU", 2),
    "rnn": (Packs(nn.RNN(5, 4, bias=False, batch_first=True), states=True), "RNN", 1),
    "relu": (Packs(nn.RNN(5, 4, nonlinearity="relu", bidirectional=True)), "RNN", 1),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_sequence_is_onnxs_operator_with_lengths(name: str) -> None:
    packs, operator, layers = PACKED[name]
    steps = "x:N=1..2..3xT=6..7..9x5" if packs.layer.batch_first else "x:T=6..7..9xN=1..2..3x5"
    exported = hold(lived_in(packs), steps, "lengths:N@i64[1..6]")
    found = [node for node in nodes(exported) if node.op_type == operator]
    assert len(found) == layers
    assert all(node.inputs[4] is not None for node in found)
    assert not operators(exported)["Loop"]


@pytest.mark.parametrize("lengths", [[1, 1, 1], [9, 9, 9], [1, 9, 4], [9, 4, 1], [2, 2, 7]], ids=str)
def test_lengths_in_any_order_give_what_pytorch_gives(lengths: list[int]) -> None:
    packs = lived_in(Packs(nn.LSTM(5, 4, bidirectional=True), total=False))
    exported = export(packs, "x:T=6..7..9xN=1..2..3x5", "lengths:N@i64[1..6]")
    x = np.random.default_rng(0).standard_normal((9, 3, 5)).astype(np.float32)
    feeds = {"x": x, "lengths": np.array(lengths)}
    actual = run(exported, feeds)
    for key, reference in eager(packs, feeds, torch.float64).items():
        np.testing.assert_allclose(actual[key], reference, rtol=1e-5, atol=1e-5, err_msg=key)


def test_lengths_that_must_be_sorted_are_taken_in_any_order() -> None:
    """PyTorch itself would refuse the second ones; each row is what it is alone."""
    packs = lived_in(Packs(nn.GRU(5, 4, batch_first=True), sort=False))
    exported = export(packs, "x:N=1..2..3xT=6..7..9x5", "lengths:N@i64[1..6]")
    x = np.random.default_rng(0).standard_normal((2, 7, 5)).astype(np.float32)
    for lengths in ([6, 2], [2, 6]):
        actual = run(exported, {"x": x, "lengths": np.array(lengths)})
        for row in range(2):
            alone = eager(packs, {"x": x[row : row + 1], "lengths": np.array(lengths[row : row + 1])})
            np.testing.assert_allclose(actual["output.0.0"][row], alone["output.0.0"][0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_packed_is_told_with_lengths_that_can() -> None:
    packs, feeds = lived_in(Packs(nn.GRU(5, 4, batch_first=True))), {"lengths": np.array([3, 8])}
    runner = EagerRunner(packs, parse(["x:2x7x5", "lengths:2@i64[1..7]"]))
    with pytest.raises(InputError, match="forward raises") as caught:
        runner(feeds | {"x": np.ones((2, 7, 5), np.float32)})
    assert "lengths:N@i64[1..8] beside an input of at least 8 steps" in caught.value.fix
    hold(packs, "x:N=1..2..3xT=8..8..9x5", "lengths:N@i64[1..8]")


class Projects(nn.Module):
    """What has no operator of ONNX: an LSTM that projects its states."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 4, proj_size=3, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class Pads(nn.Module):
    """What the refusal of ``Projects`` tells to write."""

    def __init__(self, projects: Projects) -> None:
        super().__init__()
        self.there, self.back = (nn.LSTM(5, 4, proj_size=3, batch_first=True) for _ in range(2))
        weights = projects.layer.state_dict()
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


def test_a_packed_sequence_that_projects_is_refused_and_what_is_told_works() -> None:
    projects = lived_in(Projects())
    specs = "x:N=1..2..3xT=6..7..9x5", "lengths:N@i64[1..6]"
    with pytest.raises(InputError, match="a packed sequence cannot be exported") as caught:
        export(projects, *specs)
    assert caught.value.where.startswith("module 'layer', test_export_recurrent.py line ")
    assert "torch.gather turned round within their lengths" in caught.value.fix
    pads, x, lengths = Pads(projects).eval(), torch.randn(3, 7, 5), torch.tensor([6, 1, 3])
    with torch.no_grad():
        torch.testing.assert_close(pads(x, lengths), projects(x, lengths))
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
