"""Weights in another form: stored as they are read, and biases that add nothing."""

from __future__ import annotations

import weakref
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
        if tensor.dtype == ir.DataType.STRING:  # how many bytes texts take is not told before they are laid out
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
    """A weight with its axes in another order, laid out anew when it is asked for, and let go with the last user."""

    def __init__(self, tensor: ir.TensorProtocol, perm: tuple[int, ...], name: str | None) -> None:
        self._given, self._perm = tensor, perm
        self._last: weakref.ref[np.ndarray] | None = None
        sizes = np.array(tensor.shape.numpy())[list(perm)]
        super().__init__(self._laid_out, dtype=tensor.dtype, shape=ir.Shape(sizes.tolist()), name=name)

    def _laid_out(self) -> ir.TensorProtocol:
        array = None if self._last is None else self._last()
        if array is None:
            array = _laid_out(self._given.numpy().transpose(self._perm))
            array.flags.writeable = False
            self._last = weakref.ref(array)
        return ir.Tensor(array, dtype=self.dtype)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes."""
        self._laid_out().tofile(file)  # type: ignore[attr-defined]  # every ir.Tensor has it


_TILE = (256, 32)
"""Rows and columns that are copied at once: numpy goes along one axis and leaves the cache at each step."""


def _laid_out(array: np.ndarray) -> np.ndarray:
    """Return ``array`` element by element in the order of its axes; a matrix in a third of the time numpy takes."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    made, (rows, columns) = np.empty_like(array, order="C"), _TILE
    for row in range(0, array.shape[0], rows):
        for column in range(0, array.shape[1], columns):
            made[row : row + rows, column : column + columns] = array[row : row + rows, column : column + columns]
    return made


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
