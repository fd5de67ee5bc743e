"""Weights in another form: stored as they are read, and biases that add nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from normdeploy.clean.constants import LARGEST
from normdeploy.clean.scope import Scope


def transpose_weights(scope: Scope) -> Counter[str]:
    """Store a weight that is only ever transposed so; it is made when it is read: never two copies in memory."""
    done: Counter[str] = Counter()
    if not scope.is_main or not isinstance(scope.graph, ir.Graph):
        return done
    for source in list(scope.graph.initializers.values()):
        tensor, readers = scope.constant(source), [use.node for use in source.uses()]
        if tensor is None or source.is_graph_input() or source.is_graph_output() or tensor.nbytes > LARGEST:
            continue
        if not readers or not all(_transposes(scope, node) for node in readers):
            continue
        perms = {_permutation(node, len(tensor.shape)) for node in readers}
        if len(perms) > 1 or any(sorted(perm) != list(range(len(tensor.shape))) for perm in perms):
            continue  # of axes that it does not have nothing is made, and the node stays for the checker
        source.const_value = Transposed(tensor, perms.pop(), source.name)
        source.shape = source.const_value.shape
        for node in readers:
            node.outputs[0].replace_all_uses_with(source)
            scope.graph.remove(node, safe=True)
        done["Transpose"] += len(readers)
    return done


def _transposes(scope: Scope, node: ir.Node) -> bool:
    if scope.operator(node) != "Transpose" or node.graph is not scope.graph or node.outputs[0].is_graph_output():
        return False
    return not any(attribute.is_ref() for attribute in node.attributes.values())


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else tuple(reversed(range(rank)))


class Transposed(ir.LazyTensor):
    """A weight with its axes in another order: to compute with it costs no copy, and its bytes are laid out anew."""

    def __init__(self, tensor: ir.TensorProtocol, perm: tuple[int, ...], name: str | None) -> None:
        self._given, self._perm = tensor, perm
        sizes = np.array(tensor.shape.numpy())[list(perm)]
        super().__init__(self._view, dtype=tensor.dtype, shape=ir.Shape(sizes.tolist()), name=name)

    def _view(self) -> ir.TensorProtocol:
        return ir.Tensor(self._given.numpy().transpose(self._perm), dtype=self.dtype)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes; numpy writes an array that is not laid out element by element."""
        ir.Tensor(np.ascontiguousarray(self.numpy()), dtype=self.dtype).tofile(file)


def remove_zero_biases(scope: Scope, parameters: Collection[ir.Value]) -> Counter[str]:
    """Let a convolution without bias have none again; a zero bias that is one of ``parameters`` stays."""
    done: Counter[str] = Counter()
    for node in scope.graph:
        operator = scope.operator(node)
        bias = node.inputs[2] if operator in ("Conv", "ConvTranspose") and len(node.inputs) == 3 else None
        if bias is None or bias in parameters:
            continue
        array = scope.array(bias)
        if array is not None and not np.any(array):
            node.resize_inputs(2)
            done[operator] += 1
    return done
