"""RNN, LSTM and GRU at a dynamic length.

PyTorch's own decompositions are Python loops over the length at hand. torch.export has others, by ``while_loop``, for
LSTM and GRU; RNN gets one of the same form here. They give the trace its shapes: the operator itself stays in it, and
is translated as a whole. An LSTM with projections, for which ONNX has no operator, is traced as the loop.
"""

# No "from __future__ import annotations" here: the exporter reads the types from the signature.
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnxscript import opset18
from torch._dynamo import convert_frame
from torch.nn.functional import linear

from normdeploy.export import pooling

op: Any = opset18  # its type stubs know no value of unknown dtype

Bend = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]
Advance = Callable[..., State]
"""What the input has become at one step, then the state → the next state, the output first."""

_RNNS: dict[Any, Bend] = {torch.ops.aten.rnn_tanh.input: torch.tanh, torch.ops.aten.rnn_relu.input: torch.relu}
_OPERATORS = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input, pooling.MAX_POOL1D, *_RNNS)


@contextlib.contextmanager
def dynamic_kernels() -> Iterator[None]:
    """Let RNN, LSTM, GRU and max_pool1d keep a dynamic length, as torch.onnx.export lets LSTM, if torch has the means.

    nn.LSTM with projections is traced as a loop.
    """
    try:
        from torch.export import _patches
    except ImportError:
        yield
        return
    kernels = {pooling.MAX_POOL1D: pooling.max_pool1d} | {operator: _rnn(bend) for operator, bend in _RNNS.items()}
    with contextlib.ExitStack() as stack:
        stack.callback(_forget_earlier_exports)
        stack.enter_context(_patches.register_lstm_while_loop_decomposition())
        stack.enter_context(_patches.register_gru_while_loop_decomposition())
        for operator, kernel in kernels.items():
            stack.enter_context(_patches._register_rnn_while_loop_decomposition(operator, kernel))
        stack.enter_context(_projections_spelled_out())
        _forget_earlier_exports()
        yield


def _forget_earlier_exports() -> None:
    """Let torch look up its kernels, and compile its loops and branches, as in a fresh process.

    Loops (those of recurrent layers too) and branches are compiled by Dynamo even while they are exported. What it kept
    of an earlier export it would take again, and ask for that export's sizes.
    """
    for operator in _OPERATORS:
        operator._dispatch_cache.clear()
    codes = (reference() for reference in convert_frame.input_codes.seen)
    if any(code is not None and "_higher_order_ops" in code.co_filename for code in codes):
        torch.compiler.reset()


@contextlib.contextmanager
def _projections_spelled_out() -> Iterator[None]:
    functions, plain = vars(torch._VF), torch._VF.lstm

    def lstm(x: Any, hx: Any, *rest: Any) -> Any:
        projects = isinstance(hx, (tuple, list)) and hx[0].shape[-1] != hx[1].shape[-1]
        return (_projected_lstm if projects else plain)(x, hx, *rest)

    functions["lstm"] = lstm
    try:
        yield
    finally:
        del functions["lstm"]


# -- loops over the length ---------------------------------------------------------------------------


def _loop(steps: torch.Tensor, state: State, advance: Advance) -> tuple[torch.Tensor, State]:
    """Return the outputs of all steps, (length, batch, features), and the last state."""
    from torch._higher_order_ops import while_loop

    loop: Any = while_loop  # untyped, as all of torch that is used here
    holds: Any = torch._check

    def more(index: torch.Tensor, *_: torch.Tensor) -> Any:
        return index < steps.size(0)

    def step(index: torch.Tensor, outputs: torch.Tensor, *state: torch.Tensor) -> State:
        i: Any = index.item()
        holds(i >= 0)
        holds(i < steps.size(0))
        following = advance(steps[i], *state)
        outputs = outputs.clone()
        outputs[i] = following[0]
        return index + 1, outputs, *following

    none = torch.empty(steps.size(0), *state[0].shape, dtype=state[0].dtype, device=state[0].device)
    _, outputs, *last = loop(more, step, [torch.tensor(0), none, *state])
    return outputs, tuple(last)


def _layer(advance: Callable[[Sequence[torch.Tensor]], Advance]) -> Callable[..., tuple[torch.Tensor, State]]:
    """Return a layer in one direction, as torch's ``_rnn_helper`` calls it; ``advance`` makes a step of weights."""

    def layer(
        x: torch.Tensor, state: State, params: Sequence[torch.Tensor], has_biases: bool, reverse: bool = False
    ) -> tuple[torch.Tensor, State]:
        steps = linear(x, params[0], params[2] if has_biases else None)
        own = [
            params[n].clone() for n in range(1, len(params)) if not (has_biases and n == 2)
        ]  # the loop wants its own
        outputs, last = _loop(steps.flip(0) if reverse else steps, state, advance(own))
        return (outputs.flip(0) if reverse else outputs), last

    return layer


def _rnn(bend: Bend) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return what computes nn.RNN, as ``aten::rnn_tanh.input`` is called."""

    def of(weights: Sequence[torch.Tensor]) -> Advance:
        return lambda step, state: (bend(step + linear(state, *weights)),)

    def run(x: torch.Tensor, hx: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, last = _layers(x, [(state,) for state in hx.unbind(0)], *rest, layer=_layer(of))
        return outputs, last[0]

    return run


def _projected_lstm(x: torch.Tensor, hx: Sequence[torch.Tensor], *rest: Any) -> tuple[torch.Tensor, ...]:
    """Compute nn.LSTM with projections, as ``aten::lstm.input`` is called (Sak et al. 2014, https://arxiv.org/abs/1402.1128)."""

    def of(weights: Sequence[torch.Tensor]) -> Advance:
        *recurrence, projection = weights

        def advance(step: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> State:
            gates, size = step + linear(hidden, *recurrence), cell.shape[-1]
            enter, forget, value, leave = (gates[:, n * size : (n + 1) * size] for n in range(4))
            cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
            return linear(leave.sigmoid() * cell.tanh(), projection), cell

        return advance

    outputs, last = _layers(x, list(zip(*hx, strict=True)), *rest, layer=_layer(of), projected=True)
    return outputs, *last


def _layers(
    x: torch.Tensor,
    states: Sequence[State],
    params: Any,
    has_biases: bool,
    *rest: Any,
    layer: Any,
    projected: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the outputs of all layers, and the last states of each kind, (layers * directions, batch, features)."""
    from torch._decomp import decompositions

    torchs: Any = decompositions
    weights = torchs.gather_params(params, has_biases, projected)
    outputs, last = torchs._rnn_helper(x, states, weights, has_biases, *rest, layer)
    return outputs, [torch.stack(kind, 0) for kind in zip(*last, strict=True)]


# -- the operator of nn.RNN ----------------------------------------------------------------------------


def _translation(activation: str) -> Callable[..., Any]:
    """Return the translation of nn.RNN into ONNX's operator, one a layer."""

    def translate(
        x: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        del dropout, train
        x, last, directions = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, [], 2 if bidirectional else 1
        how = {"activations": [activation] * directions, "hidden_size": hx.shape[2]}
        for layer in range(num_layers):
            weights = layer_weights(params, 4 if has_biases else 2, layer, directions)
            places = (op.Constant(value_ints=[n * directions]) for n in (layer, layer + 1))
            state = op.Slice(hx, *places, op.Constant(value_ints=[0]))
            direction = "bidirectional" if bidirectional else "forward"
            y, y_h = op.RNN(x, *weights, initial_h=state, direction=direction, **how)
            x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
            last.append(y_h)
        return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, op.Concat(*last, axis=0)

    return translate


def layer_weights(
    params: Sequence[Any], each: int, layer: int, directions: int, gates: Sequence[int] = (0,)
) -> list[Any]:
    """Return W, R and, of four parameters each, B of a layer, with an axis for the directions in front.

    ``gates`` tells where each gate of ONNX's stands among torch's.
    """
    first = layer * directions * each
    sets = [params[at : at + each] for at in range(first, first + directions * each, each)]
    axis = op.Constant(value_ints=[0])
    parts = [[op.Unsqueeze(_reordered([one[n]], gates), axis) for one in sets] for n in (0, 1)]
    if each == 4:
        parts.append([op.Unsqueeze(_reordered(one[2:], gates), axis) for one in sets])
    return [op.Concat(*part, axis=0) for part in parts]


def _reordered(params: Sequence[Any], gates: Sequence[int]) -> Any:
    """Return ``params``, (gates * hidden, ...) each, in a row with their gates in ONNX's order."""
    if len(gates) == 1:
        return params[0] if len(params) == 1 else op.Concat(*params, axis=0)
    size, axis = params[0].shape[0] // len(gates), op.Constant(value_ints=[0])
    ends = [op.Constant(value_ints=[n * size]) for n in range(len(gates) + 1)]
    return op.Concat(*(op.Slice(param, ends[n], ends[n + 1], axis) for param in params for n in gates), axis=0)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.rnn_tanh.input: _translation("Tanh"),
    torch.ops.aten.rnn_relu.input: _translation("Relu"),
}
"""Those of nn.RNN, for which torch has none."""
