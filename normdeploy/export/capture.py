"""nn.Module → ExportedProgram that holds for every size that was asked for, or a refusal.

torch.export finds, while it traces, the conditions on sizes under which the trace holds. What it cannot prove is tried
at every size that was asked for (:mod:`normdeploy.export.conditions`). "Not 1" is a condition that torch also writes
where nothing depends on it (on whether a tensor of one row is contiguous, say): there the trace is run beside the
module at size 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from normdeploy.errors import InputError
from normdeploy.export import blame, conditions, constraints
from normdeploy.export.call import arguments
from normdeploy.export.encoder import one_path
from normdeploy.export.packed import packing_spelled_out
from normdeploy.export.quantization import fake_quantization
from normdeploy.export.recurrent import dynamic_kernels
from normdeploy.export.spacing import DynamicSteps
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.specs import Dim, TensorSpec, dynamic_dims, sizes_at, tracing_sizes


class Adapter(nn.Module):
    """The module with positional inputs, in the order of the specs, and a flat dictionary of named outputs."""

    def __init__(self, module: nn.Module, specs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.module, self.specs, self.training = module, specs, module.training

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call the module as the specs say."""
        named = {spec.name: tensor for spec, tensor in zip(self.specs, tensors, strict=True)}
        args, kwargs = arguments(self.module, self.specs, named)
        return flatten_outputs(self.module(*args, **kwargs), specs=self.specs)


def symbols(specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return dimension name → the name it is traced under, which cannot be one of torch's own making (s17, u0)."""
    return {name: f"{name}__{index}" for index, name in enumerate(dynamic_dims(specs))}


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[tuple[dict[int, TorchDim], ...]]:
    """Return what torch.export and torch.onnx.export take as ``dynamic_shapes`` of the adapter."""
    names = symbols(specs)
    dims = {name: _torch_dim(names[name], dim) for name, dim in dynamic_dims(specs).items()}
    return (tuple({axis: dims[d.name] for axis, d in enumerate(spec.dims) if d.name is not None} for spec in specs),)


def _torch_dim(symbol: str, dim: Dim) -> TorchDim:
    """Return torch's dimension, which for multiples of 4 is spelled ``4 * symbol``."""
    unit = dim.multiple
    base = TorchDim(symbol, min=dim.min // unit, max=dim.max // unit)
    return base if unit == 1 else unit * base


def capture(module: nn.Module, specs: Sequence[TensorSpec]) -> ExportedProgram:
    """Trace ``module`` at sizes of at least 2. Raises InputError at a size, and torch's errors at all else."""
    with blame.recorded(module) as asked, blame.fixed_by_int(module) as fixed:
        try:
            program = _capture(module, specs, asked)
        except Exception:
            blame.require_none_broken(fixed, specs)  # which tells more
            raise
        blame.require_none_broken(fixed, specs)
        return program


def _capture(module: nn.Module, specs: Sequence[TensorSpec], asked: Sequence[blame.Asked]) -> ExportedProgram:
    names, dims = {symbol: name for name, symbol in symbols(specs).items()}, dynamic_dims(specs)
    text = ""
    if all(dim.multiple == 1 for dim in dims.values()):
        try:
            return _export(module, specs, deferred=False)
        except (torch._dynamo.exc.UserError, AssertionError) as error:
            text = _violations(error)
            if constraints.are_final(text, names):
                raise constraints.refusal(text, specs, names, blame.where(asked, specs)) from error
    try:
        program = _export(module, specs, deferred=True)
    except torch._dynamo.exc.UserError as error:
        raise constraints.refusal(text or _violations(error), specs, names, blame.where(asked, specs)) from error
    conditions.require_hold(program, specs, asked)
    _check_at_one(module, program, specs, tuple(name for name, dim in dims.items() if dim.min == dim.multiple))
    return program


def _violations(error: Exception) -> str:
    """Return what torch says of sizes that the trace does not hold for; raises any other error again."""
    if isinstance(error, AssertionError) and "Cannot create Dim" in str(error):  # torch's, of its own suggestion
        return ""
    if "Constraints violated" not in str(error):
        raise error
    return str(error)


def _export(module: nn.Module, specs: Sequence[TensorSpec], *, deferred: bool) -> ExportedProgram:
    # The setting lets a size of 1 be as any other size: torch would assume that a dynamic dimension never is 1.
    oblivious = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with oblivious, dynamic_kernels(), packing_spelled_out(), fake_quantization(module), one_path(), DynamicSteps():
        return torch.export.export(
            Adapter(module, specs),
            _example(specs),
            dynamic_shapes=dynamic_shapes(specs),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        )


def run_example(module: nn.Module, specs: Sequence[TensorSpec], sizes: Mapping[str, int] | None = None) -> None:
    """Run the module itself at ``sizes``, by default those it is traced at; raises what forward raises."""
    Adapter(module, specs)(*example_inputs(specs, sizes or tracing_sizes(specs)).values())


def _example(specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    return tuple(example_inputs(specs, tracing_sizes(specs)).values())


def _check_at_one(
    module: nn.Module, program: ExportedProgram, specs: Sequence[TensorSpec], names: tuple[str, ...]
) -> None:
    """Run the trace beside the module where some dimensions are 1, or one multiple, each combination in turn."""
    adapter, run, larger = Adapter(module, specs), _unconditional(program), tracing_sizes(specs)
    smallest = sizes_at(specs, "min")
    for chosen in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1)):
        sizes = {name: smallest[name] for name in chosen}
        for fill in _fills(specs):
            try:
                _require_same(adapter, run, specs, larger | sizes, fill)
            except Exception as error:
                if not _differs(adapter, run, specs, larger, fill):  # else it is not the size that makes the difference
                    raise _other_path(sizes, specs) from error


def _other_path(sizes: Mapping[str, int], specs: Sequence[TensorSpec]) -> InputError:
    name, size = next(iter(sizes.items()))
    at = ", ".join(f"{each} = {smallest}" for each, smallest in sizes.items())
    return InputError(
        f"the module takes another path at {at} than at other sizes, which one graph cannot",
        where=", ".join(f"--input {spec}" for spec in specs),
        fix=f"ask for sizes of at least {2 * size}, or fix {name} at {size}",
    )


def _differs(
    adapter: Adapter, run: torch.fx.GraphModule, specs: Sequence[TensorSpec], sizes: Mapping[str, int], fill: int
) -> bool:
    try:
        _require_same(adapter, run, specs, sizes, fill)
    except Exception:
        return True
    return False


def _require_same(
    adapter: Adapter, run: torch.fx.GraphModule, specs: Sequence[TensorSpec], sizes: Mapping[str, int], fill: int
) -> None:
    examples = example_inputs(specs, sizes).values()
    inputs = [_filled(like, spec, fill) for like, spec in zip(examples, specs, strict=True)]
    # copies, for a forward may work in place
    actual, expected = run(*map(torch.clone, inputs)), adapter(*map(torch.clone, inputs))
    torch.testing.assert_close(actual, expected, equal_nan=True)


def _unconditional(program: ExportedProgram) -> torch.fx.GraphModule:
    """The trace without its assertions, as it is translated to ONNX."""
    run = program.module(check_guards=False)
    for part in run.modules():  # the bodies of loops have their own
        if isinstance(part, torch.fx.GraphModule):
            for node in list(part.graph.nodes):
                if node.target is torch.ops.aten._assert_scalar.default:
                    part.graph.erase_node(node)
            part.recompile()
    return run


def _fills(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Return what to fill masks with: a random mask of one element would be all true or all false by chance."""
    return (1, 0) if any(map(_is_mask, specs)) else (1,)


def _is_mask(spec: TensorSpec) -> bool:
    return spec.dtype == "bool" or ("int" in spec.dtype and (spec.low, spec.high) == (0, 1))


def _filled(like: torch.Tensor, spec: TensorSpec, fill: int) -> torch.Tensor:
    """Random in the spec's range, normal where it has none; a mask is ``fill`` throughout."""
    random = torch.Generator().manual_seed(0)
    if _is_mask(spec):
        return torch.full_like(like, fill)
    if spec.low is None or spec.high is None:
        return torch.randn(like.shape, generator=random).to(like.dtype) if like.is_floating_point() else like
    if like.is_floating_point():
        return (spec.low + (spec.high - spec.low) * torch.rand(like.shape, generator=random)).to(like.dtype)
    return torch.randint(int(spec.low), int(spec.high) + 1, like.shape, generator=random).to(like.dtype)
