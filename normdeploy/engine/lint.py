"""What a build would fail on, or silently do otherwise, found on the graph first: all of it at once.

Each check is one row of ``CHECKS``. What the parser rejects was seen in TensorRT-RTX 1.7.1; the test of each row
shows that the real parser rejects it, or what it makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normdeploy.errors import InputError, listed
from normdeploy.graph import label, operator
from normdeploy.precision import averaging, norm_chains
from normdeploy.specs import DTYPES, TensorSpec

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)
_BINDABLE = ("FLOAT", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL")
_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that stands in the way.

    Attributes:
        module: PyTorch module name, or what else the user knows the place by.
        node: the node's name in the graph, or the input's.
        what: what is wrong.
        fix: what to do about it.
    """

    module: str
    node: str
    what: str
    fix: str

    def __str__(self) -> str:
        place = self.module if self.module == self.node else f"{self.module} [{self.node}]"
        return f"{place}: {self.what}; {self.fix}"


Check = Callable[[ir.Model], Iterator[Problem]]


def lint(model: ir.Model, specs: Sequence[TensorSpec]) -> tuple[Problem, ...]:
    """Return every problem of the graph and of its input specs, in the order of ``CHECKS``."""
    found = [problem for check in CHECKS for problem in check(model)]
    return (*_inputs(model, specs), *found)


def unsupported(model: ir.Model, operators: Sequence[str], backend: str) -> tuple[Problem, ...]:
    """Return the nodes whose operator is one of ``operators``, those that the backend said it does not know."""
    fix = "replace the module, or export it in other operators; plugins are not part of a deployment"
    return tuple(
        _at(node, f"{backend} does not know the operator {operator(node)}", fix)
        for node in model.graph.all_nodes()
        if operator(node).rpartition("::")[2] in operators  # a backend says no domain
    )


def refuse(problems: Sequence[Problem], *, what: str = "TensorRT cannot build this model") -> None:
    """Raise one InputError that lists ``problems``, if there are any."""
    if problems:
        lines = listed(problems, _SHOWN, by="\n    ")
        raise InputError(f"{what}: {len(problems)} problem{'s' * (len(problems) > 1)}", where=f"\n    {lines}")


def _at(node: ir.Node, what: str, fix: str) -> Problem:
    return Problem(label(node), str(node.name), what, fix)


def _training_norms(model: ir.Model) -> Iterator[Problem]:
    for node in model.graph.all_nodes():
        if operator(node) == "BatchNormalization":
            training = node.attributes.get("training_mode")
            if (training is not None and training.as_int()) or len([out for out in node.outputs if out.name]) > 1:
                yield _at(node, "a BatchNormalization in training mode", "export the module in eval mode")


def _statistics_outputs(model: ir.Model) -> Iterator[Problem]:
    for node in model.graph.all_nodes():
        if operator(node) == "LayerNormalization" and len([out for out in node.outputs if out.name]) > 1:
            yield _at(node, "its Mean and InvStdDev outputs cannot be built", "drop these outputs of the graph")


def _norm_types(model: ir.Model) -> Iterator[Problem]:
    for node in model.graph.all_nodes():
        if operator(node) != "LayerNormalization":
            continue
        types = {value.dtype for value in node.inputs if value is not None}
        if len(types) > 1:
            spelled = " and ".join(sorted(str(dtype) for dtype in types))
            yield _at(node, f"data and scale differ in type: {spelled}", "export in float32 and build with --precision")
        stash = node.attributes.get("stash_type")
        if stash is not None and stash.as_int() != ir.DataType.FLOAT:
            yield _at(node, "its statistics are asked for in 16 bits", "set stash_type to 1")


def _narrow_chains(model: ir.Model) -> Iterator[Problem]:
    for chain in norm_chains(model):
        node = next((node for node in averaging(chain) if node.outputs[0].dtype in _NARROW), None)
        if node is not None:
            yield _at(
                node,
                f"a norm spelled out in {node.outputs[0].dtype}: its squares overflow or lose their digits",
                "export in float32 and build with --precision, or run normdeploy fold, which makes it one norm",
            )


def _float64(model: ir.Model) -> Iterator[Problem]:
    fix = "export in float32"
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.DOUBLE:
            yield Problem(str(value.name), str(value.name), "float64 would be computed in float32", fix)
    for node in model.graph.all_nodes():
        if any(out.dtype == ir.DataType.DOUBLE for out in node.outputs):
            yield _at(node, "float64 would be computed in float32", fix)


def _wide_integers(model: ir.Model) -> Iterator[Problem]:
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.INT64 or value.const_value is None:
                continue
            array = value.const_value.numpy()
            # Slice takes the ends of int64 for the ends of the axis
            ends = operator(node) == "Slice" and index > 0
            array = array[(array > _INT64.min + 1) & (array < _INT64.max)] if ends else array
            if array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
                yield _at(node, f"the int64 constant {value.name} exceeds 32 bits", "use values that fit in int32")


def _bindings(model: ir.Model) -> Iterator[Problem]:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if not isinstance(value.type, ir.TensorType) or value.type.dtype.name not in (*_BINDABLE, "DOUBLE"):
            yield Problem(
                str(value.name), str(value.name), f"an engine has no {value.type} input or output", "cast it to int32"
            )


CHECKS: tuple[Check, ...] = (
    _training_norms,  # rejected by the parser
    _statistics_outputs,  # rejected by the parser
    _norm_types,  # rejected by the parser
    _narrow_chains,  # built, with a warning at most, and wrong
    _float64,  # built in float32 without a word
    _wide_integers,  # shapes and indices are 32-bit in parts of the builder
    _bindings,  # rejected by the parser
)


def _inputs(model: ir.Model, specs: Sequence[TensorSpec]) -> Iterator[Problem]:
    """Return what the input specs do not say, or say otherwise than the graph."""
    given = {spec.name: spec for spec in specs}
    for value in model.graph.inputs:
        spec = given.pop(str(value.name), None)
        if spec is not None:
            yield from _mismatch(value, spec)
        elif value.shape is None or value.shape.is_dynamic():
            fix = f'give its range: --input "{value.name}:{_example(value)}"'
            yield Problem(str(value.name), str(value.name), "a dynamic shape without a range", fix)
    for name in given:
        known = ", ".join(str(value.name) for value in model.graph.inputs)
        yield Problem(name, name, "the model has no such input", f"its inputs are {known}")


def _example(value: ir.Value) -> str:
    dims = ["1..1..8" if not isinstance(dim, int) else str(dim) for dim in value.shape or ()] or ["1..1..8"]
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    return f"{'x'.join(dims)}@{next((short for short, long in DTYPES.items() if long == dtype), 'f32')}"


def _mismatch(value: ir.Value, spec: TensorSpec) -> Iterator[Problem]:
    where, fix = str(value.name), f"the model takes {value.name}:{_example(value)}"
    if value.dtype is not None and value.dtype.numpy().name != spec.dtype:
        yield Problem(where, where, f"the spec says {spec.dtype}, the model {value.dtype}", fix)
    if value.shape is None:
        return
    if value.shape.rank() != len(spec.dims):
        yield Problem(where, where, f"the spec has {len(spec.dims)} dimensions, the model {value.shape.rank()}", fix)
        return
    for axis, (size, dim) in enumerate(zip(value.shape, spec.dims, strict=True)):
        if isinstance(size, int) and (dim.min, dim.max) != (size, size):
            yield Problem(
                where, where, f"dimension {axis} is {size} in the model, {dim.min}..{dim.max} in the spec", fix
            )
