"""nn.Module → torch's own ONNX graph, checked to take exactly the sizes that were asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normdeploy.errors import InputError, NormdeployError
from normdeploy.export import refusals
from normdeploy.export.arithmetic import write_sizes
from normdeploy.export.capture import capture, dynamic_shapes, run_example, symbols
from normdeploy.export.conditions import size_symbols, unit_name
from normdeploy.export.constraints import replace_words
from normdeploy.export.quiet import quiet, unchanged
from normdeploy.export.recurrent import dynamic_kernels
from normdeploy.export.resizing import with_exact_resizing
from normdeploy.export.translations import translations
from normdeploy.specs import TensorSpec, dynamic_dims

PREFIX = "module."
"""What the adapter puts before the name of every module, parameter and buffer."""


@dataclass(frozen=True)
class Trace:
    """A traced module: torch's ONNX graph, the outputs' names in order, and the buffers that forward would change."""

    model: ir.Model
    outputs: tuple[str, ...]
    changed_buffers: tuple[str, ...]


def trace(module: nn.Module, specs: Sequence[TensorSpec], *, opset: int, verbose: bool) -> Trace:
    """Trace ``module`` into an unoptimized graph whose dimensions are those of the specs.

    Raises InputError where the module cannot be traced, or not for every size in the specs' ranges.
    """
    with torch.no_grad(), unchanged(module), quiet(verbose):
        try:
            program = capture(module, specs)
            refusals.require_inference(program, module)
            program = with_exact_resizing(program, module, specs)
            with dynamic_kernels():
                translated = torch.onnx.export(
                    program,
                    dynamic_shapes=dynamic_shapes(specs),
                    dynamo=True,
                    optimize=False,
                    opset_version=opset,
                    custom_translation_table=translations(program, opset),
                    verbose=verbose,
                )
        except NormdeployError:
            raise
        except Exception as error:
            raise refusals.translate(error, module, specs, lambda sizes: run_example(module, specs, sizes)) from error
    if translated is None or translated.exported_program is None:
        raise InputError("torch.onnx.export returned no graph", fix="--verbose shows what torch says")
    write_sizes(translated.model, translated.exported_program)
    _rename_dims(translated.model, _size_names(program, specs))
    check_dims(translated.model, specs)
    _check_outputs(program, translated.exported_program)
    return Trace(translated.model, _output_names(program), _changed_buffers(translated.exported_program))


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    spec = program.call_spec.out_spec
    return tuple(pytree.tree_unflatten(range(spec.num_leaves), spec))


def _changed_buffers(program: ExportedProgram) -> tuple[str, ...]:
    return tuple(name.removeprefix(PREFIX) for name in program.graph_signature.buffers_to_mutate.values())


def _size_names(program: ExportedProgram, specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return torch's symbols → what they stand for: ``H``, or ``(H/4)`` where only multiples of 4 are taken."""
    dims = dynamic_dims(specs)
    named = {symbol: unit_name(dims[name]) for name, symbol in symbols(specs).items()}
    # a multiple's own symbol keeps the name that torch made up
    return named | {str(symbol): unit_name(dim) for symbol, dim in size_symbols(program, specs).items()}


def _rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give each dimension its name in the specs, alone and in the expressions of intermediate ones."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    for value in [*model.graph.inputs, *(output for node in nodes for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else _WHOLE.sub(r"\2", replace_words(dim.value, names))


_WHOLE = re.compile(r"(?<![\w*])(\d+)\*\((\w+)/\1\)(?!\*\*)")
"""``4*(H/4)``, which is ``H``; not where it is part of a product of another number, or of a power."""


def check_dims(model: ir.Model, specs: Sequence[TensorSpec]) -> None:
    """Refuse a dimension of an input that is not the one that was asked for: torch fixes some, and goes on."""
    for spec, value in zip(specs, model.graph.inputs, strict=True):
        wanted = ir.Shape([dim.min if dim.name is None else dim.name for dim in spec.dims])
        if value.shape != wanted:
            raise InputError(
                f"the module fixes the sizes of input {spec.name!r} to {value.shape}",
                where=f"--input {spec}",
                fix="ask for these sizes, or change the code of the module that depends on them",
            )


def _check_outputs(captured: ExportedProgram, translated: ExportedProgram) -> None:
    """No size of an output became a constant on the way from torch's operators to those with a translation."""
    for name, before, after in zip(_output_names(captured), _sizes(captured), _sizes(translated), strict=True):
        if any(isinstance(new, int) and not isinstance(old, int) for old, new in zip(before, after, strict=True)):
            raise InputError(
                f"torch fixes the sizes of output {name!r} to {list(after)}",
                where=f"output {name!r}",
                fix="fix the dimensions of the inputs that it depends on",
            )


def _sizes(program: ExportedProgram) -> list[tuple[int | torch.SymInt, ...]]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [tuple(values[str(name)].shape) for name in program.graph_signature.user_outputs]
