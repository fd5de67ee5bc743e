"""How much is left in a folded graph, by one rule for every folder and format.

A pass reads and writes every activation and computes next to nothing: a normalization or an elementwise operator on
something that depends on an input of the model. The constant that is added behind an operator that cannot hold a bias,
at once or after its result was transposed or reshaped, is that bias, and no pass.

Of layer norms, other things are counted: what they are spelled with beside passes (``parts``), the scales and biases
in them (``tails``), how many there are (``norms``) and how many take off a mean (``means``).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

Counted = Literal["passes", "parts", "tails", "norms", "means"]

PASSES = {"BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg", "Sum"}
PARTS = {"Pow", "Sqrt", "Reciprocal", "ReduceMean", "ReduceSum", "ReduceSumSquare"}
"""What a norm is spelled with, beside passes."""
CENTRING = {"LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "MVN"}
SCALING = {"RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
"""Norms, ONNX Runtime's own and OpenVINO's among them: those that take off a mean, and those that do not."""
SUMS = {"Add", "Sum"}
BIASLESS = {"MatMul", "FusedMatMul"}
"""Operators of ONNX and of ONNX Runtime that hold no bias."""
MOVERS = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
OPENVINO = {
    "Multiply": "Mul",
    "Subtract": "Sub",
    "Divide": "Div",
    "Negative": "Neg",
    "BatchNormInference": "BatchNormalization",
    "Convolution": "MatMul",
    "GroupConvolution": "MatMul",
    "ConvolutionBackpropData": "MatMul",
    "GroupConvolutionBackpropData": "MatMul",
    "Power": "Pow",
    "SquaredDifference": "Pow",
}
"""OpenVINO's operators as ONNX calls them; its convolutions hold no bias, as MatMul."""


@dataclass(frozen=True)
class Node:
    """An operator: its type, the values it reads and makes, and whether it is a constant by itself."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constant: bool = False


def left_in_onnx(proto: onnx.ModelProto, counted: Counted) -> int:
    """How much is left in a model, bodies and functions included."""
    if counted in ("norms", "means"):
        return _norms_left(_from_onnx(proto.graph), counted)
    left = passes_in_onnx(proto, _kinds(counted))
    return left + (_affine_parameters(proto.graph) if counted == "tails" else 0)


def left_in_openvino(operations: Sequence[dict[str, Any]], counted: Counted) -> int:
    """How much is left in an OpenVINO model; Multiply and Add together are its BatchNormalization."""
    nodes = _from_openvino(operations)
    if counted in ("norms", "means"):
        return _norms_left(nodes, counted)
    nodes = nodes if counted == "tails" else _without_tails(nodes)
    return passes(nodes, set(), _kinds(counted)) - _norms(nodes)


def _kinds(counted: Counted) -> set[str]:
    return PASSES | PARTS if counted == "parts" else PASSES


def _norms_left(nodes: Sequence[Node], counted: Counted) -> int:
    """A mean that is taken by an operator of its own may be that of a norm that was taken apart: it counts as one."""
    wanted = CENTRING | {"ReduceMean"} | (SCALING if counted == "norms" else set())
    return sum(node.op_type in wanted for node in nodes)


def _affine_parameters(graph: onnx.GraphProto) -> int:
    """The scales that are not 1 and the biases that are not 0 of all norms; one that is not constant is neither."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node if _is_tensor(node)}
    pairs = []
    for node in graph.node:
        if node.op_type in CENTRING | SCALING:
            first = 2 if node.op_type.startswith("Skip") else 1
            pairs += list(zip(node.input[first : first + 2], (1, 0), strict=False))
    return sum(name not in arrays or bool(np.any(arrays[name] != none)) for name, none in pairs if name)


def _is_tensor(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def passes_named(op_types: Sequence[str], sums: int, counted: Counted = "passes") -> int:
    """The passes in a list of operators in graph order, ``sums`` of them between two data.

    An Add behind a MatMul is its bias, unless only the sums are left.
    """
    count, biases, product = 0, 0, False
    for op_type in op_types:
        count += op_type in _kinds(counted)
        biases += product and op_type == "Add"
        product = op_type in BIASLESS or (product and op_type in MOVERS)
    return count - min(biases, sum(op_type in SUMS for op_type in op_types) - sums)


def sums_in_onnx(proto: onnx.ModelProto) -> int:
    """How often two data are added in the main graph."""
    nodes = _from_onnx(proto.graph)
    known = _constants(nodes, {tensor.name for tensor in proto.graph.initializer})
    return sum(node.op_type in SUMS and sum(name not in known for name in node.inputs) > 1 for node in nodes)


def passes_in_onnx(proto: onnx.ModelProto, kinds: Set[str] = PASSES) -> int:
    """The passes in a model, bodies and functions included."""
    functions = sum(passes(_from_onnx(function), set(), kinds) for function in proto.functions)
    return functions + _passes_in_graph(proto.graph, set(), proto.ir_version, kinds)


def _passes_in_graph(graph: onnx.GraphProto, outer: set[str], ir_version: int, kinds: Set[str]) -> int:
    overridable = {info.name for info in graph.input} if ir_version >= 4 else set()
    constants = outer | ({tensor.name for tensor in graph.initializer} - overridable)
    nodes = _from_onnx(graph)
    known = _constants(nodes, constants)
    bodies = [body for node in graph.node for attr in node.attribute for body in (attr.g, *attr.graphs) if body.node]
    inside = sum(_passes_in_graph(body, known, ir_version, kinds) for body in bodies)
    return passes(nodes, constants, kinds) + inside


def _from_onnx(graph: onnx.GraphProto | onnx.FunctionProto) -> list[Node]:
    return [
        Node(node.op_type, tuple(name for name in node.input if name), tuple(node.output), node.op_type == "Constant")
        for node in graph.node
    ]


def norms_in_onnx(proto: onnx.ModelProto) -> int:
    """How many BatchNormalization nodes stand in the main graph."""
    return sum(node.op_type == "BatchNormalization" for node in proto.graph.node)


def norms_in_openvino(operations: Sequence[dict[str, Any]]) -> int:
    """How many BatchNormInference, or Multiply and Add in their place, stand in an OpenVINO model."""
    nodes = _without_tails(_from_openvino(operations))
    return sum(node.op_type == "BatchNormalization" for node in nodes) + _norms(nodes)


def _from_openvino(operations: Sequence[dict[str, Any]]) -> list[Node]:
    return [
        Node(
            OPENVINO.get(item["type"], item["type"]), tuple(item["inputs"]), (item["name"],), item["type"] == "Constant"
        )
        for item in operations
    ]


def _without_tails(nodes: Sequence[Node]) -> list[Node]:
    """The nodes but for the scale and the bias of layer norms, which are inputs of one operator in ONNX."""
    known, tail, kept = _constants(nodes, set()), set[str](), []
    for node in nodes:
        data = [name for name in node.inputs if name not in known]
        if node.op_type in ("Mul", "Add") and len(data) == 1 and data[0] in tail:
            tail.update(node.outputs if node.op_type == "Mul" else ())
            kept.append(Node("Identity", (data[0],), node.outputs))
            continue
        tail.update(node.outputs if node.op_type == "MVN" else ())
        kept.append(node)
    return kept


def _norms(nodes: Sequence[Node]) -> int:
    """How often a Mul by a constant is followed by an Add of one and by nothing else."""
    known, readers = _constants(nodes, set()), [name for node in nodes for name in node.inputs]
    scaled = {
        node.outputs[0] for node in nodes if node.op_type == "Mul" and any(name in known for name in node.inputs)
    } - known
    return sum(
        any(name in scaled and readers.count(name) == 1 for name in node.inputs)
        and any(name in known for name in node.inputs)
        for node in nodes
        if node.op_type == "Add"
    )


def passes(nodes: Sequence[Node], constants: set[str], kinds: Set[str] = PASSES) -> int:
    """The operators of ``kinds`` among ``nodes`` that are passes, given the names that are constant from outside."""
    known = _constants(nodes, constants)
    products: set[str] = set()
    for node in nodes:
        if node.op_type in BIASLESS or (node.op_type in MOVERS and node.inputs and node.inputs[0] in products):
            products.update(node.outputs)
    return sum(
        node.op_type in kinds and node.outputs[0] not in known and not _is_bias(node, known, products) for node in nodes
    )


def _is_bias(node: Node, known: set[str], products: set[str]) -> bool:
    if node.op_type != "Add":
        return False
    return any(name in known for name in node.inputs) and any(name in products for name in node.inputs)


def _constants(nodes: Sequence[Node], constants: set[str]) -> set[str]:
    """The names of all that depends on constants alone."""
    known = set(constants)
    for node in nodes:
        if node.constant or (node.inputs and all(name in known for name in node.inputs)):
            known.update(node.outputs)
    return known
