"""The rewriting: constants are rounded, values change type, and a Cast goes where reader and maker differ."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from normdeploy.errors import InputError
from normdeploy.graph import MODULE_KEY, infer_types, is_of_onnx, label, module_name, operator
from normdeploy.precision.decide import LARGEST, SMALLEST, Decision, array, float32_values, values, varies
from normdeploy.precision.kinds import HEAVY
from normdeploy.precision.positions import multiply_positions

_MASKING = frozenset({"Add", "Sub", "Mul", "Where", "Max", "Min", "Clip", "Pad", "Expand", "Slice"})
_LEAST_OPSET = {ir.DataType.FLOAT16: 7, ir.DataType.BFLOAT16: 13}
_BFLOAT16 = 22
"""The first opset in which convolutions and recurrent layers take bfloat16; Einsum never does."""
_CLIP_READS_LIMITS = 11
_ZERO = np.zeros(1, np.float32)
"""What ConstantOfShape fills a tensor with where it is not told."""
_DTYPE_ATTRIBUTES = ("to", "output_dtype")


class Conversion:
    """One conversion of one model, in place."""

    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self._assumed = _prepare(model, target)
        self.model, self.target = model, target
        multiply_positions(model, partial(varies, float32_values(model)))
        self.decision = Decision(model, target)
        self._names = {value.name for value in values(model)}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        """Convert the model; raises InputError before anything is lost."""
        nodes = list(self.model.graph.all_nodes())
        self._refuse_heavy(nodes)
        self._round_constants()
        self._refuse_constant_outputs(nodes)
        for node in nodes:
            self._retype_outputs(node)
        for node in nodes:
            self._cast_inputs(node)
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            self._cast_outputs(graph)
        for value in self._assumed:
            if not value.is_graph_output():
                value.type = None

    def _refuse_heavy(self, nodes: list[ir.Node]) -> None:
        stuck = [
            f"{label(node)} ({operator(node)})"
            for node in nodes
            if operator(node) in HEAVY
            and node.inputs[0] in self.decision.float32
            and not self.decision.reads_narrow(node, 0)
        ]
        if stuck:
            opset = self.model.opset_imports.get("", 1)
            raise InputError(
                f"at opset {opset} these have no {self.target.name.lower()} form",
                where=", ".join(stuck),
                fix=f"{self._newer(opset)}deploy in {self._alternatives()}",
            )

    def _newer(self, opset: int) -> str:
        """Return what a later opset has for bfloat16: convolutions; nothing where it is there already."""
        return f"export the model with --opset {_BFLOAT16}, or " if opset < _BFLOAT16 else ""

    def _alternatives(self) -> str:
        return "fp16 or fp32" if self.target == ir.DataType.BFLOAT16 else "fp32"

    def _round_constants(self) -> None:
        overflows, vanished = [], []
        for value in self.decision.constants():
            narrow = [use for use in value.uses() if self.decision.reads_narrow(use.node, use.idx)]
            if not narrow and not self._is_branch_output(value):
                continue
            saturate = self._is_mask(value)
            if not saturate and (beyond := self._beyond(value)).size:
                overflows.append(_told(value, float(np.abs(beyond).max())))
            if any(operator(use.node) in HEAVY and use.idx < 2 for use in narrow) and (largest := self._lost(value)):
                vanished.append(_told(value, largest))
            tensor = _rounded(value, self.target, LARGEST[self.target] if saturate else None)
            if len(narrow) == len(value.uses()):
                value.const_value, value.type = tensor, ir.TensorType(self.target)
            elif value.graph is not None:  # read in both types
                name = self._free_name(value, self.target)
                copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self.target), const_value=tensor)
                value.graph.register_initializer(copy)
                for use in narrow:
                    use.node.replace_input_with(use.idx, copy)
        if overflows:
            raise self._overflowing(overflows)
        if vanished:
            raise InputError(
                f"all weights become 0 in {self.target.name.lower()}, the largest of them too",
                where="; ".join(sorted(vanished)),
                fix=self._wider(),
            )

    def _overflowing(self, where: list[str]) -> InputError:
        return InputError(
            f"weights overflow {self.target.name.lower()}, whose largest value is {LARGEST[self.target]:.6g}",
            where="; ".join(sorted(where)),
            fix=self._wider(),
        )

    def _wider(self) -> str:
        return "deploy in bf16 or fp32" if self.target == ir.DataType.FLOAT16 else "deploy in fp32"

    def _lost(self, value: ir.Value) -> float:
        """Return the largest size in a weight of which nothing is left in the target type; 0 where something is."""
        largest = float(np.abs(array(value)).max(initial=0.0))
        return largest if largest <= SMALLEST[self.target] / 2 else 0.0  # a tie goes to the even one, which is 0

    def _beyond(self, value: ir.Value) -> np.ndarray:
        """The finite elements that the target type rounds to infinity."""
        data = array(value)
        with np.errstate(over="ignore"):
            rounded = data.astype(self.target.numpy()).astype(np.float32)
        beyond: np.ndarray = data[np.isfinite(data) & ~np.isfinite(rounded)]
        return beyond

    def _is_mask(self, value: ir.Value) -> bool:
        """Return True if what lies beyond the range is one sentinel, such as -1e9, in elementwise operators."""
        elementwise = all(operator(use.node) in _MASKING for use in value.uses())
        return elementwise and len(np.unique(self._beyond(value))) == 1

    def _refuse_constant_outputs(self, nodes: list[ir.Node]) -> None:
        """Refuse a Constant that overflows where a body hands it out: those nodes stay, and are cast."""
        given = [node.outputs[0] for node in nodes if operator(node) == "Constant"]
        tensors = {value: ir.convenience.get_const_tensor(value) for value in given if self._is_branch_output(value)}
        largest = {
            value: float(np.abs(tensor.numpy()).max())
            for value, tensor in tensors.items()
            if tensor is not None
            and value in self.decision.float32
            and tensor.size
            and np.isfinite(tensor.numpy()).all()
        }
        if beyond := [
            f"{value.name} holds {size:.6g}" for value, size in largest.items() if size > LARGEST[self.target]
        ]:
            raise self._overflowing(beyond)

    def _is_branch_output(self, value: ir.Value) -> bool:
        return any(
            value in graph.outputs for graph in self.model.graph.subgraphs() if self.decision.gives_narrow(graph)
        )

    def _retype_outputs(self, node: ir.Node) -> None:
        retyped = [
            out
            for index, out in enumerate(node.outputs)
            if out in self.decision.float32 and self.decision.makes_narrow(node, index)
        ]
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.GRAPH and self.decision.gives_narrow(attribute.as_graph()):
                retyped += [value for value in attribute.as_graph().inputs if value in self.decision.float32]
        if retyped:
            self._retype_attributes(node)
        for value in retyped:
            value.type = ir.TensorType(self.target)

    def _retype_attributes(self, node: ir.Node) -> None:
        """Let ``node`` make the target type where an attribute says that it makes float32."""
        for name in _DTYPE_ATTRIBUTES:
            if name in node.attributes and node.attributes[name].as_int() == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(self.target))
        if operator(node) == "ConstantOfShape":
            number = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else _ZERO
            node.attributes["value"] = ir.AttrTensor("value", self._filling(node, number))

    def _filling(self, node: ir.Node, number: np.ndarray) -> ir.TensorProtocol:
        """The one number that ``node`` fills a tensor with; a mask's sentinel is the largest that there is."""
        limit = LARGEST[self.target]
        if np.isfinite(number).all() and np.abs(number).max() > limit:
            if not all(operator(use.node) in _MASKING for use in node.outputs[0].uses()):
                raise self._overflowing([f"{label(node)} fills a tensor with {float(number[0]):.6g}"])
            number = np.clip(number, -limit, limit)
        return ir.tensor(number.astype(self.target.numpy()), dtype=self.target)

    def _cast_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value not in self.decision.float32:
                continue
            wanted = self.target if self.decision.reads_narrow(node, index) else ir.DataType.FLOAT
            if value.dtype != wanted:
                island = node if wanted == ir.DataType.FLOAT else value.producer() or node
                node.replace_input_with(index, self._cast(value, wanted, module_name(island)))

    def _cast_outputs(self, graph: ir.Graph) -> None:
        """The model's own outputs stay float32 under their names; those of a body become what its node makes."""
        wanted = self.target if self.decision.gives_narrow(graph) else ir.DataType.FLOAT
        for index, value in enumerate(graph.outputs):
            if value in self.decision.float32 and value.dtype != wanted:
                name, producer = value.name, value.producer()
                value.name = self._free_name(value, self.target)
                graph.outputs[index] = self._cast(value, wanted, module_name(producer) if producer else "")
                graph.outputs[index].name = name

    def _cast(self, value: ir.Value, dtype: ir.DataType, module: str) -> ir.Value:
        """``value`` in ``dtype``: made once, right behind ``value``, in the name of ``module``."""
        if (value, dtype) not in self.casts:
            source, nodes = value, []
            if value in self.decision.beyond and dtype == self.target:
                nodes = [self._clip(value)]
                source = nodes[0].outputs[0]
                source.type, source.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            nodes.append(ir.node("Cast", [source], {"to": int(dtype)}))
            made = nodes[-1].outputs[0]
            made.name = self._free_name(value, dtype)
            made.type, made.shape = ir.TensorType(dtype), value.shape
            for node in nodes:
                node.metadata_props[MODULE_KEY] = module
            _insert_behind(value, nodes)
            self.casts[value, dtype] = made
        return self.casts[value, dtype]

    def _free_name(self, value: ir.Value, dtype: ir.DataType) -> str:
        """Return a name for ``value`` in ``dtype`` that no other value has."""
        name = first = f"{value.name}_{dtype.name.lower()}"
        for index in itertools.count(1):
            if name not in self._names:
                break
            name = f"{first}_{index}"
        self._names.add(name)
        return name

    def _clip(self, value: ir.Value) -> ir.Node:
        if self.model.opset_imports.get("", 1) < _CLIP_READS_LIMITS:
            return ir.node("Clip", [value], {"min": -LARGEST[self.target], "max": LARGEST[self.target]})
        return ir.node("Clip", [value, self._limit("min", -1.0), self._limit("max", 1.0)])

    def _limit(self, name: str, sign: float) -> ir.Value:
        initializers = self.model.graph.initializers
        name = f"normdeploy.{self.target.name.lower()}.{name}"
        if name not in initializers:
            tensor = ir.tensor(np.array(sign * LARGEST[self.target], np.float32), name=name)
            kind = ir.TensorType(ir.DataType.FLOAT)
            self.model.graph.register_initializer(
                ir.Value(name=name, type=kind, shape=ir.Shape([]), const_value=tensor)
            )
        return initializers[name]


def _prepare(model: ir.Model, target: ir.DataType) -> tuple[ir.Value, ...]:
    """Inline functions, make constants initializers, and give every value a type; return those whose type is assumed.

    What an operator makes that ONNX does not know is taken for float32, which it stays. Where it is not, the model does
    not load: nothing casts it.
    """
    if (version := model.opset_imports.get("", 1)) < (least := _LEAST_OPSET[target]):
        raise InputError(
            f"opset {version} has no {target.name.lower()}",
            fix=f"export the model with --opset 18, or any from {least} on",
        )
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if model.ir_version < 4:  # every initializer is listed as an input there, and is a constant all the same
        RemoveInitializersFromInputsPass()(model)
        model.ir_version = 4  # the first in which they need not be inputs
    nodes = list(model.graph.all_nodes())
    if any(out.type is None for node in nodes for out in node.outputs):
        infer_types(model)
    assumed = tuple(out for node in nodes if not is_of_onnx(node) for out in node.outputs if out.type is None)
    if assumed:
        for value in assumed:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        infer_types(model)
    unknown = [label(node) for node in nodes if any(out.type is None for out in node.outputs if out.name)]
    if unknown:
        raise InputError(
            "some values have an unknown type, so they have no 16-bit form",
            where=", ".join(unknown[:10]),
            fix="deploy in fp32, or save the model with the types of its values (onnx.shape_inference)",
        )
    return assumed


def _rounded(value: ir.Value, target: ir.DataType, limit: float | None) -> ir.LazyTensor:
    """The constant in ``target``, clipped to ``limit`` unless infinite; evaluated when the model is written."""
    source, name = value.const_value, value.name

    def evaluate() -> ir.TensorProtocol:
        data = array(value) if source is None else source.numpy()
        if limit is not None:
            data = np.where(np.isfinite(data), np.clip(data, -limit, limit), data)
        return ir.Tensor(data.astype(target.numpy()), dtype=target, name=name)

    return ir.LazyTensor(evaluate, dtype=target, shape=ir.Shape(array(value).shape), name=name)


def _told(value: ir.Value, largest: float) -> str:
    """Return whose constant ``value`` is, and its largest size."""
    modules = sorted({module_name(use.node) or label(use.node) for use in value.uses()})
    return f"{', '.join(modules)}: {value.name} holds {largest:.6g}"


def _insert_behind(value: ir.Value, nodes: list[ir.Node]) -> None:
    producer = value.producer()
    if producer is not None:
        producer.append(nodes)
    elif value.graph is not None:
        value.graph.insert_before(value.graph[0], nodes)
