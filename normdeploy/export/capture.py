"""nn.Module → ExportedProgram that holds for every size that was asked for, or a refusal.

torch.export finds, while it traces, the conditions on sizes under which the trace holds. A dimension that must be a
constant, a multiple, or inside a smaller range is refused. "Not 1" is a condition that torch also writes where
nothing depends on it (on whether a tensor of one row is contiguous, say): there the trace is made without conditions
and then run beside the module at size 1.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from normdeploy.errors import InputError
from normdeploy.export import constraints
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.specs import TensorSpec, dynamic_dims, tracing_sizes


class Adapter(nn.Module):
    """The module with positional inputs, in the order of the specs, and a flat dictionary of named outputs."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.inputs, self.training = module, inputs, module.training

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call the module by its parameters' names."""
        return flatten_outputs(self.module(**dict(zip(self.inputs, tensors, strict=True))), inputs=self.inputs)


def symbols(specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Dimension name → the name it is traced under, which cannot be one of torch's own making (s17, u0)."""
    return {name: f"{name}__{index}" for index, name in enumerate(dynamic_dims(specs))}


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[tuple[dict[int, TorchDim], ...]]:
    """What torch.export and torch.onnx.export take as ``dynamic_shapes`` of the adapter."""
    names = symbols(specs)
    dims = {name: TorchDim(names[name], min=dim.min, max=dim.max) for name, dim in dynamic_dims(specs).items()}
    return (tuple({axis: dims[d.name] for axis, d in enumerate(spec.dims) if d.name is not None} for spec in specs),)


def capture(module: nn.Module, specs: Sequence[TensorSpec]) -> ExportedProgram:
    """Trace ``module`` at sizes of at least 2. Raises InputError at a size, and torch's errors at all else."""
    try:
        return _export(module, specs, deferred=False)
    except torch._dynamo.exc.UserError as error:
        if "Constraints violated" not in str(error):
            raise
        names = {symbol: name for name, symbol in symbols(specs).items()}
        not_one = constraints.dims_that_may_not_be_one(str(error), names)
        if not not_one:
            raise constraints.refusal(str(error), specs, names) from error
    program = _export(module, specs, deferred=True)
    _check_at_one(module, program, specs, not_one)
    return program


def _export(module: nn.Module, specs: Sequence[TensorSpec], *, deferred: bool) -> ExportedProgram:
    # The setting lets a size of 1 be as any other size: torch would assume that a dynamic dimension never is 1.
    with symbolic_shapes.patch(backed_size_oblivious=True), recurrent_layers():  # type: ignore[attr-defined]
        return torch.export.export(
            _adapter(module, specs),
            _example(specs),
            dynamic_shapes=dynamic_shapes(specs),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        )


def run_example(module: nn.Module, specs: Sequence[TensorSpec]) -> None:
    """Run the module itself on what it is traced with; raises what forward raises."""
    _adapter(module, specs)(*_example(specs))


def _adapter(module: nn.Module, specs: Sequence[TensorSpec]) -> Adapter:
    return Adapter(module, tuple(spec.name for spec in specs))


def _example(specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    return tuple(example_inputs(specs, tracing_sizes(specs)).values())


@contextlib.contextmanager
def recurrent_layers() -> Iterator[None]:
    """Let LSTM and GRU keep a dynamic length, as torch.onnx.export does where torch has the means."""
    try:
        from torch.export import _patches
    except ImportError:
        yield
        return
    with _patches.register_lstm_while_loop_decomposition(), _patches.register_gru_while_loop_decomposition():
        yield


def _check_at_one(
    module: nn.Module, program: ExportedProgram, specs: Sequence[TensorSpec], dims: tuple[str, ...]
) -> None:
    """Run the trace beside the module, on random inputs, where some of ``dims`` are 1, each combination in turn."""
    adapter, run = _adapter(module, specs), _unconditional(program)
    for chosen in itertools.chain.from_iterable(itertools.combinations(dims, n) for n in range(1, len(dims) + 1)):
        sizes = tracing_sizes(specs) | dict.fromkeys(chosen, 1)
        inputs = [_random(like, spec) for like, spec in zip(example_inputs(specs, sizes).values(), specs, strict=True)]
        try:
            torch.testing.assert_close(run(*inputs), adapter(*inputs), equal_nan=True)
        except Exception as error:
            at = ", ".join(f"{name} = 1" for name in chosen)
            raise InputError(
                f"the module takes another path at {at} than at other sizes, which one graph cannot",
                where=", ".join(f"--input {spec}" for spec in specs),
                fix=f"ask for sizes of at least 2, or fix {chosen[0]} at 1",
            ) from error


def _unconditional(program: ExportedProgram) -> torch.fx.GraphModule:
    """The trace without its assertions, as it is translated to ONNX."""
    run = program.module(check_guards=False)
    for node in list(run.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            run.graph.erase_node(node)
    run.recompile()
    return run


def _random(like: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Normal, or uniform in the spec's range; integers without one stay at the value they are traced with."""
    random = torch.Generator().manual_seed(0)
    if spec.low is None or spec.high is None:
        return torch.randn(like.shape, generator=random).to(like.dtype) if like.is_floating_point() else like
    if like.is_floating_point():
        return (spec.low + (spec.high - spec.low) * torch.rand(like.shape, generator=random)).to(like.dtype)
    return torch.randint(int(spec.low), int(spec.high) + 1, like.shape, generator=random).to(like.dtype)
