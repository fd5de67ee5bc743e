"""The export as a whole: trace, label, clean, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common
from torch import nn

from normdeploy.clean import clean
from normdeploy.errors import InputError
from normdeploy.export import dtypes, labels
from normdeploy.export.call import bind_inputs
from normdeploy.export.dtypes import is_bfloat16
from normdeploy.export.quiet import quiet
from normdeploy.export.shapes import infer_shapes
from normdeploy.export.trace import trace
from normdeploy.specs import TensorSpec, output_names

OPSETS = range(18, 24)
"""The ONNX opsets that torch.onnx.export(dynamo=True) writes."""

DEFAULT_OPSET, BFLOAT16_OPSET = 20, 22
"""Unless another is asked for; below the second one there is no convolution of bfloat16."""


@dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        model: the graph; its large initializers share the module's memory.
        inputs: names of its inputs, those of the specs, in their order.
        outputs: names of its outputs, those of :func:`flatten_outputs`, in their order.
        notes: what a user should know about it.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]


def to_graph(
    module: nn.Module, specs: Sequence[TensorSpec], *, opset: int | None = None, verbose: bool = False
) -> Exported:
    """Export ``module``, which is not changed, for every size in the ranges of ``specs``.

    Args:
        module: in eval mode, on the CPU.
        specs: one an input, named as forward's parameters.
        opset: one of ``OPSETS``; None takes torch's default, or the first that has all of bfloat16.
        verbose: show what torch prints, on stderr.

    Raises:
        InputError: a spec does not fit forward, an operator or the control flow cannot be exported, or the module
            does not work for every size that was asked for.
    """
    if opset is None:
        opset = BFLOAT16_OPSET if is_bfloat16(module) else DEFAULT_OPSET
    if opset not in OPSETS:
        raise InputError(
            f"opset {opset} cannot be exported",
            where="--opset",
            fix=f"use {OPSETS[0]} to {OPSETS[-1]}; {DEFAULT_OPSET} is the default",
        )
    bind_inputs(module, specs)
    traced = trace(module, specs, opset=opset, verbose=verbose)
    _check_names(traced.outputs, output_names(specs))
    model, inputs = traced.model, tuple(spec.name for spec in specs)
    with quiet(verbose):
        labels.label_nodes(model, dict(module.named_modules(remove_duplicate=False)))
        common.InlinePass()(model)
        labels.merge_tied(model)
        _clean(model)
        labels.own_outputs(model.graph)
        labels.name_values(model.graph, inputs, traced.outputs)
        _check(model, module, specs, opset)
    return Exported(model, inputs, traced.outputs, _notes(model, traced.changed_buffers))


def _check_names(outputs: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if wanted and outputs != wanted:
        raise InputError(
            f"the module returns {len(outputs)} tensors, and {len(wanted)} names are given",
            where=f"--output-names {','.join(wanted)}",
            fix=f"name all of {', '.join(outputs)}, in this order",
        )


def _clean(model: ir.Model) -> None:
    """Evaluate what is constant: twice, the second time with the shapes that the first made static."""
    common.TopologicalSortPass()(model)
    for _ in range(2):
        infer_shapes(model)
        if not clean(model, declared_shapes=True).done:
            break
    infer_shapes(model)
    tidy = (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedOpsetsPass(),
    )
    ir.passes.Sequential(*tidy, common.NameFixPass())(model)


def _check(model: ir.Model, module: nn.Module, specs: Sequence[TensorSpec], opset: int) -> None:
    """The cleaned graph is valid ONNX of the opset that was asked for, its shapes inferred throughout."""
    if model.opset_imports.get("", opset) != opset:
        raise InputError(
            f"the graph could not be written for opset {opset}", where="--opset", fix="use the default opset"
        )
    try:
        common.CheckerPass(full_check=True)(model)
    except Exception as error:
        if told := dtypes.advice(module, specs):  # torch traces a linear layer all the same
            what = "the inputs and the weights are of different floating-point types"
            raise InputError(what, where=", ".join(f"--input {spec}" for spec in specs), fix=told) from error
        fix = "try another --opset; --verbose shows more"
        if is_bfloat16(module) and opset < BFLOAT16_OPSET:
            fix = f"leave --opset out, or give --opset {BFLOAT16_OPSET}, the first that has all of bfloat16"
        raise InputError(f"the exported graph is not valid ONNX: {error}", fix=fix) from error


def _notes(model: ir.Model, changed_buffers: tuple[str, ...]) -> tuple[str, ...]:
    unused = [value.name for value in model.graph.inputs if not value.uses() and not value.is_graph_output()]
    notes = [f"no output depends on input {name!r}" for name in unused]
    return (
        *notes,
        *(
            f"forward changes buffer {name!r}: each call of the deployed model starts from its present value"
            for name in changed_buffers
        ),
    )
