"""nn.Module → torch's own ONNX graph, checked to accept exactly the sizes that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normdeploy.errors import InputError
from normdeploy.export import refusals
from normdeploy.export.quiet import quiet, unchanged
from normdeploy.export.translations import TRANSLATIONS
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.specs import Dim, TensorSpec, dynamic_dims, tracing_sizes

PREFIX = "module."
"""What the adapter puts before the name of every module, parameter and buffer."""


class Adapter(nn.Module):
    """The module with positional inputs, in the order of the specs, and a flat dictionary of named outputs."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.inputs, self.training = module, inputs, module.training

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call the module by its parameters' names."""
        return flatten_outputs(self.module(**dict(zip(self.inputs, tensors, strict=True))), inputs=self.inputs)


@dataclass(frozen=True)
class Trace:
    """A traced module: torch's ONNX graph, the outputs' names in order, and the buffers that forward would change."""

    model: ir.Model
    outputs: tuple[str, ...]
    changed_buffers: tuple[str, ...]


def trace(module: nn.Module, specs: Sequence[TensorSpec], *, opset: int, verbose: bool) -> Trace:
    """Trace ``module`` at sizes of at least 2 into an unoptimized graph whose dimensions are those of the specs.

    Raises InputError where the module cannot be traced, or not for every size in the specs' ranges.
    """
    # Names of torch's own making (s17, u0) and the user's can never be mistaken for one another.
    symbols = {name: f"{name}__{index}" for index, name in enumerate(dynamic_dims(specs))}
    dims = {name: TorchDim(symbols[name], min=dim.min, max=dim.max) for name, dim in dynamic_dims(specs).items()}
    shapes = tuple({axis: dims[d.name] for axis, d in enumerate(spec.dims) if d.name is not None} for spec in specs)
    adapter = Adapter(module, tuple(spec.name for spec in specs))
    with unchanged(module), quiet(verbose):
        try:
            program = torch.onnx.export(
                adapter,
                tuple(example_inputs(specs, tracing_sizes(specs)).values()),
                dynamic_shapes=(shapes,),
                dynamo=True,
                optimize=False,
                opset_version=opset,
                custom_translation_table=TRANSLATIONS,
                verbose=verbose,
            )
        except Exception as error:
            raise refusals.translate(error, module, {symbol: name for name, symbol in symbols.items()}) from error
    if program is None or program.exported_program is None:
        raise InputError("torch.onnx.export returned no graph", fix="run again with --verbose to see what torch says")
    _check_dims(program.model, program.exported_program, specs, symbols)
    _rename_dims(program.model, {symbol: name for name, symbol in symbols.items()})
    return Trace(program.model, _output_names(program.exported_program), _changed_buffers(program.exported_program))


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    spec = program.call_spec.out_spec
    return tuple(pytree.tree_unflatten(range(spec.num_leaves), spec))


def _changed_buffers(program: ExportedProgram) -> tuple[str, ...]:
    return tuple(name.removeprefix(PREFIX) for name in program.graph_signature.buffers_to_mutate.values())


def _check_dims(
    model: ir.Model, program: ExportedProgram, specs: Sequence[TensorSpec], symbols: dict[str, str]
) -> None:
    """Torch narrows or fixes a dimension where the module's code needs it, and goes on; here that is an error."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec, value, name in zip(specs, model.graph.inputs, program.graph_signature.user_inputs, strict=True):
        fake = placeholders[str(name)].meta["val"]
        for axis, dim in enumerate(spec.dims):
            if dim.name is None:
                continue
            size = value.shape[axis] if value.shape is not None else None
            if not isinstance(size, ir.SymbolicDim) or size.value != symbols[dim.name]:
                raise _narrowed(spec, dim, f"it only works for {_readable(size, symbols)}")
            allowed = program.range_constraints.get(fake.shape[axis].node.expr)
            if allowed is None:
                raise _narrowed(spec, dim, "torch keeps no range for it")
            if allowed.lower > dim.min or allowed.upper < dim.max:
                raise _narrowed(spec, dim, f"it only works for {allowed.lower}..{allowed.upper}")


def _readable(size: Any, symbols: dict[str, str]) -> str:
    text = str(size.value) if isinstance(size, ir.SymbolicDim) else str(size)
    return refusals.replace_words(text, {symbol: name for name, symbol in symbols.items()})


def _narrowed(spec: TensorSpec, dim: Dim, why: str) -> InputError:
    return InputError(
        f"the module does not work for every size of dimension {dim.name!r}, {dim.min}..{dim.max}: {why}",
        where=f"--input {spec}",
        fix="ask for the sizes that work, or change the code of the module that depends on this size",
    )


def _rename_dims(model: ir.Model, names: dict[str, str]) -> None:
    """Give each dimension its name in the specs, in plain dims and in the expressions of intermediate ones."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    values = [*model.graph.inputs, *(output for node in nodes for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    refusals.replace_words(dim.value, names) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
                    for dim in value.shape
                ]
            )
