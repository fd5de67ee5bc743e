"""What stays float32 in a 16-bit graph: decided for every node before anything is rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.errors import InputError
from normdeploy.graph import operator
from normdeploy.precision.kinds import HEAVY, NORMS
from normdeploy.precision.norms import guarded, norm_chains

LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest finite value of each 16-bit type."""

_SMALLEST = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133}


_WHOLE = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.UINT64, ir.DataType.UINT32})


class Decision:
    """Which values of ``model`` are float32 now, and which inputs and outputs of its nodes become ``target``.

    Attributes:
        float32: the values that are float32 tensors before the conversion.
        beyond: those made of integers and constants alone, with a constant outside the range of ``target``.
    """

    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self.model, self.target = model, target
        self.float32 = {value for value in _values(model) if _is_tensor(value) and value.dtype == ir.DataType.FLOAT}
        self._wide = {node for chain in norm_chains(model) for node in chain}
        derived: dict[ir.Value, bool] = {}
        for node in model.graph.all_nodes():
            if operator(node) in NORMS and not _stashes(self._schema(node)):
                self._wide.add(node)
            if not all(_is_tensor(value) for value in (*node.inputs, *node.outputs) if value is not None):
                self._wide.add(node)  # what is in a sequence stays as it is
            if operator(node) == "Constant":  # those that a graph hands out stay nodes
                self._wide.add(node)
            if self._underflows(node):
                self._wide.update(guarded(node))
            if self._is_mask_arithmetic(node, derived):
                self._wide.add(node)
                beyond = any(derived.get(value, False) or self._exceeds(value) for value in node.inputs if value)
                derived.update(dict.fromkeys(node.outputs, beyond))
            self._wide |= self._counting(node)
        self.beyond = {value for value, beyond in derived.items() if beyond}

    def reads_narrow(self, node: ir.Node, index: int) -> bool:
        """Return True if ``node`` reads its input ``index`` in the target type."""
        schema = self._schema(node)
        return self._narrow(node, index, schema.inputs if schema else ())

    def makes_narrow(self, node: ir.Node, index: int) -> bool:
        """Return True if ``node`` makes its output ``index`` in the target type."""
        schema = self._schema(node)
        if _stashes(schema) and index > 0:  # the statistics themselves
            return False
        return self._narrow(node, index, schema.outputs if schema else ())

    def constants(self) -> list[ir.Value]:
        """Return the float32 initializers that the caller of the model cannot replace."""
        return [value for value in self.float32 if _is_constant(value)]

    def _narrow(self, node: ir.Node, index: int, formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> bool:
        if node in self._wide:
            return False
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            return True
        schema = self._schema(node)
        if schema is None:
            return False
        spelled = formals[min(index, len(formals) - 1)].type_str
        allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
        return f"tensor({self.target.name.lower()})" in allowed.get(spelled, ())

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        return _schema(operator(node), self.model.opset_imports.get(node.domain, 1))

    def _underflows(self, node: ir.Node) -> bool:
        """Return True if a scalar that ``node`` reads, such as an epsilon, would become zero."""
        constants = [value for value in node.inputs if value in self.float32 and _is_constant(value)]
        scalars = [array(value) for value in constants if value.shape is not None and value.shape.rank() == 0]
        return any(0 < abs(float(scalar)) <= _SMALLEST[self.target] / 2 for scalar in scalars)

    def _is_mask_arithmetic(self, node: ir.Node, derived: dict[ir.Value, bool]) -> bool:
        """Return True if ``node`` makes floats of integers and constants alone, or of values that were so made."""
        if operator(node) in HEAVY or not any(out in self.float32 for out in node.outputs):
            return False
        values = [value for value in node.inputs if value in self.float32]
        if not all(value in derived or _is_constant(value) for value in values):
            return False
        return operator(node) in ("Cast", "Range", "Where") or any(value in derived for value in values)

    def _counting(self, node: ir.Node) -> set[ir.Node]:
        """Return what makes the whole number that ``node`` casts to, an index or a size, of no activations."""
        if operator(node) != "Cast" or node.outputs[0].dtype not in _WHOLE or node.inputs[0] not in self.float32:
            return set()
        found, pending = {node}, [node]
        while pending:
            for value in pending.pop().inputs:
                if value not in self.float32 or value is None or _is_constant(value):
                    continue
                maker = value.producer()
                if maker is None or operator(maker) in HEAVY:
                    return set()
                pending += [maker] if maker not in found else []
                found.add(maker)
        return found

    def _exceeds(self, value: ir.Value) -> bool:
        if value not in self.float32 or not _is_constant(value):
            return False
        return bool((np.abs(array(value)) > LARGEST[self.target]).any())


def array(value: ir.Value) -> np.ndarray:
    """Return the data of an initializer, in its own dtype and shape."""
    if value.const_value is None:
        raise InputError("an initializer has no data", where=str(value.name), fix="save the model with its weights")
    return value.const_value.numpy()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _stashes(schema: onnx.defs.OpSchema | None) -> bool:
    """Return True if the operator computes its statistics in float32 whatever its data is."""
    return schema is not None and "stash_type" in schema.attributes


@lru_cache
def _schema(name: str, opset: int) -> onnx.defs.OpSchema | None:
    domain, _, op_type = name.rpartition("::")
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
