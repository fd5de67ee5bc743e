"""The exported graph made ready to be read back: every operator has a name of its own, every Linear a place for a bias.

A Linear on more than two axes is exported as MatMul and Add. A shift that comes from behind a Transpose would stay
there, as an Add of its own, which a module has no place for. As a Gemm between two Reshapes it has a bias that takes
the shift, by the fold's own rules.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from normdeploy.graph import MODULE_KEY, module_name, operator


def prepared(model: ir.Model) -> dict[str, str]:
    """Change ``model``, of static shapes, in place, and return the name of each of its nodes → the module's name.

    The nodes bear names of their own instead of their module's, so that each can be told apart in a ledger.
    """
    for node in list(model.graph):
        if (found := _product(node)) is not None:
            _write_gemm(model.graph, found)
    labels: dict[str, str] = {}
    for index, node in enumerate(model.graph.all_nodes()):
        name = re.sub(r"[^\w.|]", "_", str(node.name or "")) or f"node_{index}"
        node.name = name if name not in labels else f"{name}_{index}"
        labels[node.name] = module_name(node)
        node.metadata_props.pop(MODULE_KEY, None)
    return labels


def computed_narrow(model: ir.Model) -> set[str]:
    """Return the modules in which ``model``, not prepared yet, has values of 16 bits; "" is one without a name."""
    narrow = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return {
        module_name(node) for node in model.graph.all_nodes() if any(value.dtype in narrow for value in node.outputs)
    }


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer, or what a Constant gives; None for all else."""
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


class _Product(NamedTuple):
    """A product of more than two axes and a matrix, which may be turned first, and the Add of a vector behind it."""

    node: ir.Node
    data: ir.Value
    matrix: ir.Value
    turn: ir.Node | None
    add: ir.Node | None
    bias: ir.Value | None
    rows: int
    features: int
    sizes: list[int]


def _product(node: ir.Node) -> _Product | None:
    """Return what ``node`` is where it is such a product; None else."""
    if operator(node) != "MatMul":
        return None
    data, weight = node.inputs
    maker = None if weight is None else weight.producer()
    turn = maker if maker is not None and _turns(maker) else None
    matrix = weight if turn is None else turn.inputs[0]
    shape, out = data.shape if data is not None else None, node.outputs[0].shape
    if data is None or matrix is None or shape is None or out is None:
        return None
    if constant(data) is not None or constant(matrix) is None or matrix.shape is None or len(matrix.shape) != 2:
        return None
    if len(shape) < 3 or not shape.is_static() or not out.is_static() or 0 in shape:
        return None
    sizes = [int(size) for size in out.numpy()]
    add, bias = _bias(node, sizes[-1])
    *outer, features = (int(size) for size in shape.numpy())
    return _Product(node, data, matrix, turn, add, bias, math.prod(outer), features, sizes)


def _write_gemm(graph: ir.Graph, product: _Product) -> None:
    """Put a Gemm between two Reshapes in the place of ``product``."""
    node, last = product.node, product.add or product.node
    rows = _reshape(graph, f"{node.name}|in", product.data, [product.rows, product.features])
    inputs = [rows, product.matrix, *([] if product.bias is None else [product.bias])]
    gemm = ir.node("Gemm", inputs, {"transB": int(product.turn is not None)}, name=node.name)
    gemm.metadata_props.update(node.metadata_props)
    _like(gemm.outputs[0], node.outputs[0], [product.rows, product.sizes[-1]], f"{node.outputs[0].name}|gemm")
    back = _reshape(graph, f"{node.name}|out", gemm.outputs[0], product.sizes)
    made = [value.producer() for value in (rows, gemm.outputs[0], back)]
    graph.insert_before(last, [each for each in made if each is not None])
    old, name = last.outputs[0], last.outputs[0].name
    old.replace_all_uses_with(back, replace_graph_outputs=True)
    for gone in (product.add, node):
        if gone is not None:
            graph.remove(gone, safe=True)
    back.name = name
    if product.turn is not None and not product.turn.outputs[0].uses():
        graph.remove(product.turn, safe=True)


def _reshape(graph: ir.Graph, name: str, data: ir.Value, sizes: list[int]) -> ir.Value:
    tensor = ir.Tensor(np.array(sizes, np.int64), name=f"{name}.shape")
    shape = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape([len(sizes)]))
    shape.dtype = tensor.dtype
    graph.register_initializer(shape)
    node = ir.node("Reshape", [data, shape], name=name)
    _like(node.outputs[0], data, sizes, name)
    return node.outputs[0]


def _like(value: ir.Value, other: ir.Value, sizes: list[int], name: str) -> None:
    value.type, value.shape, value.name = other.type, ir.Shape(sizes), name


def _turns(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return operator(node) == "Transpose" and perm is not None and list(perm.as_ints()) == [1, 0]


def _bias(node: ir.Node, channels: int) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the Add of a vector, of the same module, that alone reads ``node``, and the vector."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or operator(uses[0].node) != "Add":
        return None, None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    tensor = constant(other)
    if tensor is None or tuple(tensor.shape.numpy()) != (channels,) or module_name(add) != module_name(node):
        return None, None
    return add, other
