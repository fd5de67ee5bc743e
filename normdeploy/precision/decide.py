"""What stays float32 in a 16-bit graph: decided for every node before anything is rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.clean.scope import bodies
from normdeploy.errors import InputError
from normdeploy.graph import operator
from normdeploy.precision.kinds import HEAVY, NORMS
from normdeploy.precision.norms import guarded, norm_chains
from normdeploy.precision.positions import position_chain

LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
"""The largest finite value of each 16-bit type."""

SMALLEST = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133}
"""The smallest number above 0 of each 16-bit type."""
_SMALLEST_NORMAL = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
"""Below these, numbers have fewer and fewer digits: the scale of quantized weights, which are normal numbers, may."""
_MAKES = frozenset({"dtype", "output_datatype"})
_SCATTERS = frozenset({"ScatterElements", "ScatterND"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SCALING = frozenset({"Mul", "Div"})


class Decision:
    """Which values of ``model`` are float32 now, and which inputs and outputs of its nodes become ``target``.

    Attributes:
        float32: the values that are float32 tensors before the conversion.
        beyond: those made of integers and constants alone, with a constant outside the range of ``target``.
    """

    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self.model, self.target = model, target
        self.float32 = float32_values(model)
        self._wide = {node for chain in norm_chains(model) for node in chain}
        self._owners = {body: node for node in model.graph.all_nodes() for body in bodies(node)}
        derived: dict[ir.Value, bool] = {}
        for node in model.graph.all_nodes():
            if operator(node) in NORMS and not _stashes(self._schema(node)):
                self._wide.add(node)
            if not all(_is_tensor(value) for value in (*node.inputs, *node.outputs) if value is not None):
                self._wide.add(node)  # what is in a sequence stays as it is
            if operator(node) == "Constant":  # those that a graph hands out stay nodes
                self._wide.add(node)
            if self._is_source(node) or not self._carries(node):
                self._wide.add(node)
            if operator(node) in _QUANTIZING and self._is_subnormal(node.inputs[1]):
                self._wide.add(node)
            if _accumulates(node):
                self._wide.add(node)
            if operator(node) in _SCALING and any(map(self._is_all_subnormal, node.inputs)):
                self._wide.add(node)
            if self._underflows(node):
                self._wide.update(guarded(node))
            if self._is_mask_arithmetic(node, derived):
                self._wide.add(node)
                beyond = any(derived.get(value, False) or self._exceeds(value) for value in node.inputs if value)
                derived.update(dict.fromkeys(node.outputs, beyond))
            self._wide |= position_chain(node, partial(varies, self.float32))
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

    def gives_narrow(self, graph: ir.Graph) -> bool:
        """Return True if ``graph`` is the body of a node that makes, and hands in, values of the target type."""
        return graph in self._owners and self._owners[graph] not in self._wide

    def constants(self) -> list[ir.Value]:
        """Return the float32 initializers that the caller of the model cannot replace."""
        return [value for value in self.float32 if _is_constant(value)]

    def _narrow(self, node: ir.Node, index: int, formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> bool:
        if node in self._wide:
            return False
        if any(True for _ in bodies(node)):
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
        return any(0 < abs(float(scalar)) <= SMALLEST[self.target] / 2 for scalar in scalars)

    def _is_mask_arithmetic(self, node: ir.Node, derived: dict[ir.Value, bool]) -> bool:
        """Return True if ``node`` makes floats of integers and constants alone, or reads no others.

        What it makes of such floats may be anything: 4097 and 4096 are one number in float16, and would compare so.
        """
        if operator(node) in HEAVY or any(True for _ in bodies(node)):  # what goes on in a body is decided there
            return False
        values = [value for value in node.inputs if value in self.float32]
        if not all(value in derived or _is_constant(value) for value in values):
            return False
        if any(value in derived for value in values):
            return True
        return operator(node) in ("Cast", "Range", "Where") and any(out in self.float32 for out in node.outputs)

    def _is_source(self, node: ir.Node) -> bool:
        """Return True if an attribute of ``node`` says what it makes: random numbers, a window, a unit matrix.

        A runtime that has no 16-bit kernel for an operator casts what that reads, and these may read nothing.
        """
        schema = self._schema(node)
        return schema is not None and not _MAKES.isdisjoint(schema.attributes)

    def _carries(self, node: ir.Node) -> bool:
        """Return False for a branch or loop that at this opset hands no values of the target type on."""
        schema = self._schema(node)
        if schema is None or not any(True for _ in bodies(node)):
            return True
        allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
        return f"tensor({self.target.name.lower()})" in allowed.get(schema.outputs[-1].type_str, ())

    def _is_subnormal(self, scale: ir.Value | None) -> bool:
        """Return True if a constant scale has numbers that the target type holds with fewer digits, or not at all."""
        if scale not in self.float32 or scale is None or not _is_constant(scale):
            return False
        sizes = np.abs(array(scale))
        return bool(((sizes > 0) & (sizes < _SMALLEST_NORMAL[self.target])).any())

    def _is_all_subnormal(self, factor: ir.Value | None) -> bool:
        """Return True if a constant factor is one that the target type holds with fewer digits, or not at all."""
        if factor not in self.float32 or factor is None or not _is_constant(factor):
            return False
        return bool(0 < np.abs(array(factor)).max(initial=0.0) < _SMALLEST_NORMAL[self.target])

    def _exceeds(self, value: ir.Value) -> bool:
        if value not in self.float32 or not _is_constant(value):
            return False
        return bool((np.abs(array(value)) > LARGEST[self.target]).any())


def array(value: ir.Value) -> np.ndarray:
    """Return the data of an initializer, in its own dtype and shape."""
    if value.const_value is None:
        raise InputError("an initializer has no data", where=str(value.name), fix="save the model with its weights")
    return value.const_value.numpy()


def float32_values(model: ir.Model) -> set[ir.Value]:
    """Return every float32 tensor of ``model``, bodies included."""
    return {value for value in values(model) if _is_tensor(value) and value.dtype == ir.DataType.FLOAT}


def varies(float32: set[ir.Value], value: ir.Value | None) -> bool:
    """Return True if ``value`` is one of ``float32``, and not constant."""
    return value is not None and value in float32 and not _is_constant(value)


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Return every value of ``model``, bodies included."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _accumulates(node: ir.Node) -> bool:
    """Return True if ``node`` adds or compares one element after the other in its own type, as no other sum does."""
    reduction = node.attributes.get("reduction")
    return operator(node) in _SCATTERS and reduction is not None and reduction.as_string() != "none"


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
