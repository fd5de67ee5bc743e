"""Packed sequences: nn.RNN, LSTM and GRU up to the length of each row, ``sequence_lens`` of ONNX's operators.

How much is packed depends on the values of the lengths, so torch cannot trace what packs. Here it is spelled by
operators that it can: the packed data are the places of the padded tensor before the end of their row, step by step, as
in torch's PackedSequence.cpp, and a layer spreads them out again. The layer itself is one operator, which is translated
as a whole.
"""

# No "from __future__ import annotations" here: the operator's schema is read from its signature.
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from normdeploy.export.recurrent import layer_weights

op: Any = opset18  # its type stubs know no value of unknown dtype


@contextlib.contextmanager
def packing_spelled_out() -> Iterator[None]:
    """Let torch trace what packs, runs and pads sequences, of any lengths from 1 to that of the padded tensor."""
    known: list[tuple[torch.Tensor, torch.Tensor, Any]] = []  # sizes of batches, lengths of rows, steps
    functions, plain = vars(torch._VF), torch._VF._pad_packed_sequence

    def found(sizes: torch.Tensor) -> tuple[torch.Tensor, Any] | None:
        return next(((lengths, steps) for batches, lengths, steps in known if batches is sizes), None)

    def pack(x: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.transpose(0, 1) if batch_first else x
        longest = lengths.max().item()
        holds: Any = torch._check  # untyped, as all of torch that is used here
        holds(longest >= 1)
        holds(longest <= x.shape[0])
        sizes = _before_end(lengths, longest).sum(1)
        known.append((sizes, lengths, x.shape[0]))
        return _packed(x, lengths), sizes

    def pad(data: torch.Tensor, sizes: torch.Tensor, batch_first: bool, value: float, steps: Any) -> Any:
        if (rows := found(sizes)) is None:
            return plain(data, sizes, batch_first, value, steps)
        padded = _padded(data, rows[0], steps, value)
        return padded.transpose(0, 1) if batch_first else padded, rows[0]

    def forward(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
            rows = found(input.batch_sizes) if isinstance(input, PackedSequence) else None
            if rows is None or self.proj_size or (self.training and self.dropout):
                return original(self, input, hx)
            return _run(self, input, hx, *rows)

        return run

    originals = {layer: layer.forward for layer in (nn.RNN, nn.LSTM, nn.GRU)}
    functions |= {"_pack_padded_sequence": pack, "_pad_packed_sequence": pad}
    for layer, original in originals.items():
        layer.forward = forward(original)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, original in originals.items():
            layer.forward = original  # type: ignore[method-assign]
        del functions["_pack_padded_sequence"], functions["_pad_packed_sequence"]


def _before_end(lengths: torch.Tensor, steps: Any) -> torch.Tensor:
    """Return, (steps, rows), True before the end of each row."""
    return torch.arange(steps)[:, None] < lengths[None]


def _packed(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return what of ``x``, (steps, rows, ...), is before the end of its row: (sum of lengths, ...), step by step."""
    places = _before_end(lengths, x.shape[0]).flatten().nonzero().squeeze(1)
    return x.flatten(0, 1).index_select(0, places)


def _padded(data: torch.Tensor, lengths: torch.Tensor, steps: Any, value: float = 0.0) -> torch.Tensor:
    """Return what :func:`_packed` took as (steps, rows, ...), and ``value`` from the end of each row on."""
    inside = _before_end(lengths, steps)
    places = inside.flatten().cumsum(0).sub(1).clamp(min=0)
    padded = data.index_select(0, places).reshape(*inside.shape, *data.shape[1:])
    return torch.where(inside[(..., *[None] * (data.dim() - 1))], padded, torch.tensor(value, dtype=data.dtype))


def _run(layer: nn.RNNBase, packed: PackedSequence, hx: Any, lengths: torch.Tensor, steps: Any) -> Any:
    """Return what ``layer.forward`` returns of a packed sequence."""
    data, _, order, back = packed
    states = [] if hx is None else [*hx] if isinstance(hx, tuple) else [hx]
    states = [state if order is None else state.index_select(1, order) for state in states]
    kind = {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}.get(layer.mode, layer.mode)
    weights = layer._flat_weights
    how = (layer.bias, layer.num_layers, layer.bidirectional, kind)
    y, *last = torch.ops.normdeploy.recurrent(_padded(data, lengths, steps), lengths, states, weights, *how)
    last = [state if back is None else state.index_select(1, back) for state in last]
    result = PackedSequence(_packed(y, lengths), *packed[1:])
    return result, (tuple(last) if kind == "LSTM" else last[0])


# -- the operator ------------------------------------------------------------------------------------


@torch.library.custom_op("normdeploy::recurrent", mutates_args=())
def recurrent(
    x: torch.Tensor,
    lengths: torch.Tensor,
    states: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute a recurrent layer up to the ``lengths``, (rows), of ``x``, (steps, rows, features).

    ``kind`` is LSTM or GRU, or the activation of nn.RNN. Returns the outputs, zero behind the lengths, the last state,
    and the last cell of an LSTM, in place of which the others return the state again.
    """
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    order: Any = packed.sorted_indices
    hidden = x.new_zeros(num_layers * (1 + bidirectional), x.shape[1], params[1].shape[1])
    given = [state.index_select(1, order) for state in states] or [hidden, hidden]
    hx = tuple(given) if kind == "LSTM" else given[0]
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "Tanh": torch.rnn_tanh, "Relu": torch.rnn_relu}[kind]
    data, *last = run(packed.data, packed.batch_sizes, hx, params, has_biases, num_layers, 0.0, False, bidirectional)
    y, _ = pad_packed_sequence(PackedSequence(data, *packed[1:]), total_length=x.shape[0])
    last = [state.index_select(1, order.argsort()) for state in last]
    return y, last[0], last[-1].clone()


@recurrent.register_fake
def _(
    x: torch.Tensor,
    lengths: torch.Tensor,
    states: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    del lengths, states, has_biases, kind
    directions, hidden = 1 + bidirectional, params[1].shape[1]
    last = x.new_empty(num_layers * directions, x.shape[1], hidden)
    return x.new_empty(*x.shape[:2], directions * hidden), last, torch.empty_like(last)


_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Where ONNX's gates stand among torch's: i, o, f, c of i, f, g, o; and z, r, h of r, z, n."""


def _translate(
    x: Any,
    lengths: Any,
    states: Sequence[Any],
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    kind: str,
) -> tuple[Any, Any, Any]:
    """Return ONNX's operator, one a layer."""
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    how: dict[str, Any] = {
        "hidden_size": params[1].shape[1],
        "direction": "bidirectional" if bidirectional else "forward",
    }
    operator = {"LSTM": op.LSTM, "GRU": op.GRU}.get(kind, op.RNN)
    if kind not in _GATES:
        how["activations"] = [kind] * directions
    if kind == "GRU":
        how["linear_before_reset"] = 1  # as PyTorch has it
    ends, lasts = op.Cast(lengths, to=ir.DataType.INT32), []
    for layer in range(num_layers):
        weights = layer_weights(params, each, layer, directions, _GATES.get(kind, (0,)))
        places = [op.Constant(value_ints=[n * directions]) for n in (layer, layer + 1)]
        given = [op.Slice(state, *places, op.Constant(value_ints=[0])) for state in states]
        y, *last = operator(x, *weights, *[None] * (3 - len(weights)), ends, *given, **how)
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        lasts.append(last)
    h, *c = (op.Concat(*kept, axis=0) for kept in zip(*lasts, strict=True))
    return x, h, c[0] if c else op.Identity(h)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.normdeploy.recurrent.default: _translate}
"""That of the operator of packed sequences."""
