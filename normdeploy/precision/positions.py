"""Numbers that 16 bits have no room for: indices, sizes and angles that are computed in floats of no activations.

2049 is no float16, and what turns by 2000.3 radians (a rotary or sinusoidal embedding of position 2000, a diffusion's
timestep) points elsewhere if it is rounded to a multiple of 2. The outer product of positions and frequencies, which
many networks write as a MatMul or an Einsum, sums nothing: as a Mul it stays in float32 with the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from normdeploy.clean.scope import bodies
from normdeploy.graph import operator
from normdeploy.precision.kinds import HEAVY

_WHOLE = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.UINT64, ir.DataType.UINT32})
_PERIODIC = frozenset({"Sin", "Cos", "Tan"})
_AXES_ARE_READ = 13
"""The opset from which Unsqueeze reads its axes."""

Reads = Callable[[ir.Value | None], bool]


def position_chain(node: ir.Node, varies: Reads) -> set[ir.Node]:
    """Return ``node``, which makes a whole number or a sine of floats, with all that computes those floats.

    Empty where ``node`` makes neither, or where an operator with weights takes part, as these are activations.
    ``varies`` tells if a value is a float32 one that is no constant.
    """
    whole = operator(node) == "Cast" and node.outputs[0].dtype in _WHOLE
    if not varies(node.inputs[0] if node.inputs else None) or not (whole or operator(node) in _PERIODIC):
        return set()
    found, pending = {node}, [node]
    while pending:
        read = pending.pop()
        made = (*read.inputs, *(value for body in bodies(read) for value in body.outputs))
        for maker in (value.producer() for value in made if value is not None and varies(value)):
            if maker is None or maker in found:
                continue
            if operator(maker) in HEAVY and not is_outer_product(maker):
                return set()
            found.add(maker)
            pending.append(maker)
    return found


def multiply_positions(model: ir.Model, varies: Reads) -> None:
    """Replace, in place, outer products among indices, sizes and angles by the Mul that each is."""
    chains = [position_chain(node, varies) for node in model.graph.all_nodes()]
    for node in dict.fromkeys(node for chain in chains for node in chain if operator(node) in HEAVY):
        if operator(node) == "Einsum":
            _append_axes(node, len(_factors(node)[1]), model.opset_imports[""])
            node.attributes.clear()
        node.op_type = "Mul"


def is_outer_product(node: ir.Node) -> bool:
    """Return True if ``node`` is a MatMul or Einsum of two factors that sums over nothing."""
    if operator(node) == "Einsum":
        return bool(_factors(node)[1])
    if operator(node) != "MatMul":
        return False
    shapes = [value.shape for value in node.inputs if value is not None]
    if any(shape is None or shape.rank() < 2 for shape in shapes):
        return False
    first, second = shapes
    return first is not None and second is not None and 1 in (first[-1], second[-2])


def _factors(node: ir.Node) -> tuple[str, str]:
    """Return the labels of an Einsum's two factors where its result is those of both in a row; else nothing."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    labels = first.replace("...", "") + second
    plain = labels.isalpha() and len(set(labels)) == len(labels)
    return (first, second) if comma and plain and first + second == result else ("", "")


def _append_axes(node: ir.Node, count: int, opset: int) -> None:
    """Give the first factor of ``node`` as many axes of size 1 at its end."""
    factor, axes = node.inputs[0], [-index for index in range(count, 0, -1)]
    assert factor is not None, "an Einsum has all of its factors"
    if opset < _AXES_ARE_READ:
        unsqueeze = ir.node("Unsqueeze", [factor], {"axes": axes})
        made = [unsqueeze]
    else:
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(axes, np.int64))})
        constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([count])
        unsqueeze = ir.node("Unsqueeze", [factor, constant.outputs[0]])
        made = [constant, unsqueeze]
    unsqueeze.outputs[0].type = factor.type
    if factor.shape is not None:
        unsqueeze.outputs[0].shape = ir.Shape([*factor.shape, *[1] * count])
    for new in made:
        new.metadata_props.update(node.metadata_props)
    node.prepend(made)
    node.replace_input_with(0, unsqueeze.outputs[0])
