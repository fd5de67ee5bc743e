"""Carrying out a plan: map nodes go or change, edited tensors are rounded once, when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from normdeploy.errors import NormdeployError
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import EACH, WHOLE, Channels, Edit, fingerprint
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.merge import Merger
from normdeploy.fold.operators.maps import data_input, map_of, spelled
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan, Slot, Step
from normdeploy.fold.search import Territory
from normdeploy.graph import MODULE_KEY, module_name

COPY_LIMIT = 64 * 2**20
"""Bytes above which a shared weight is not copied for one of its readers."""

SHELF = 256 * 2**20
"""Bytes of edited weights that are held until they are written."""


def check(plan: Plan, view: View, *, proven: bool) -> list[str]:
    """Notes on what the plan's rounding does; a refusal where it would lose what cannot be lost.

    Where the plan is ``proven`` afterwards, what is rounded here is the exact tensor that the proof needs as well.
    """
    notes = []
    for (node, index), edit in plan.edits.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is not None and len(old.uses()) > 1 and edit.nbytes > COPY_LIMIT:
            raise Refused(f"{old.name} is shared and too large to copy ({edit.nbytes >> 20} MiB)", node)
        if proven:
            edit.exact()
        flushed = edit.check(_channels(Step(view, node, plan), index))
        if flushed:
            notes.append(f"{flushed} subnormal elements of {old.name if old else 'a bias'} were flushed to zero")
    for node, residue in plan.residues.items():
        for name, edit in {} if residue is None else _constants(node, residue).items():
            edit.check(EACH if name == "scale" else WHOLE)
    return notes


def _channels(step: Step, index: int) -> Channels:
    """Which elements of a parameter go into one output channel, as the row of its operator states."""
    parameters = states(step.node).parameters
    told = parameters.get(index) or parameters.get(None)
    if told is None:
        raise step.refuse(f"which channels its input {index} has is not known")
    return told(step)


def _constants(node: ir.Node, residue: AffineMap) -> dict[str, Edit]:
    spelling = spelled(residue, channels(node))
    if spelling is None:
        raise Refused("what would be left of the map is no single operator", node)
    dtype = node.outputs[0].dtype or (node.inputs[0].dtype if node.inputs[0] is not None else None)
    if dtype is None:
        raise Refused("the dtype of its output is not known", node)
    return {name: Edit(None, dtype, shift=array) for name, array in spelling[1].items()}


def channels(node: ir.Node) -> int | None:
    """The size of axis 1 of what a map node gives, from its own shape or from its parameters; None if neither tells."""
    shape = node.outputs[0].shape
    if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
        return shape[1]
    parameters = node.inputs[1].shape if states(node).norm and node.inputs[1] is not None else None
    return int(parameters.numpy()[0]) if parameters is not None and parameters.is_static() else None


class Writer:
    """Writes plans into one graph, and remembers every edited tensor."""

    def __init__(self, land: Territory, edits: dict[Slot, Edit], names: set[str], main: ir.Graph, shelf: Shelf) -> None:
        self.land, self.edits, self.names, self.main, self.shelf = land, edits, names, main, shelf

    def carry_out(self, plan: Plan) -> None:
        """Change the graph as ``plan`` says."""
        for slot, edit in plan.edits.items():
            self.store(slot, edit)
        for (node, name), value in plan.attributes.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        for node, kind in plan.kinds.items():
            node.op_type = kind
        for node, residue in plan.residues.items():
            self._replace(node, residue)

    def merge(self, found: Merger) -> None:
        """Let one convolution take the place of all branches of a sum."""
        self.store((found.into, 1), found.weight)
        if found.bias is not None:
            self.store((found.into, 2), found.bias)
        if "kernel_shape" in found.into.attributes:
            kernel = found.weight.shape[2:]
            found.into.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", kernel)
        # The convolution must stand before whatever reads the sum, and the sum stood behind all branches.
        result, total = found.into.outputs[0], found.total.outputs[0]
        total.replace_all_uses_with(result, replace_graph_outputs=True)
        remove(found.total)
        _take_over(result, total)
        for branch in found.branches:
            if branch.node is not None and branch.node is not found.into:
                self.land.maps.pop(branch.node, None)
                if branch.node.graph is not None:
                    remove(branch.node)

    # -- tensors -------------------------------------------------------------------------------

    def store(self, slot: Slot, edit: Edit) -> None:
        """Let the parameter at ``slot`` be what ``edit`` says, from now on."""
        node, index = slot
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        value = self._own_value(node, index, self.shelf.tensor(slot, edit))
        value.shape, value.dtype = ir.Shape(edit.shape), edit.dtype
        self.land.view.forget(value)
        self.edits[slot] = edit
        self._keep_maps_true(node, value, edit)

    def _keep_maps_true(self, node: ir.Node, value: ir.Value, edit: Edit) -> None:
        """A map or norm whose own constant was edited is read anew, with what is not rounded yet."""
        if node in self.land.maps or states(node).norm:
            self.land.view.unrounded[value] = edit.exact()
        if node in self.land.maps:
            m = map_of(self.land.view, node)
            assert m is not None, "an edit changes the constant of a map, not its kind"
            self.land.maps[node] = m

    def _own_value(self, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> ir.Value:
        """The constant that only this slot reads: the old one where it is so, else a new one (copy on write)."""
        old = node.inputs[index]
        if old is not None and len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
            tensor.name = old.name
            old.const_value = tensor
            return old
        new = f"{node.outputs[0].name}.{'scale' if index == 1 else 'bias'}"
        name = self.unused_name(str(old.name) if old is not None else new)
        value = self._constant(node, name, tensor)
        node.replace_input_with(index, value)
        if old is not None:
            remove_unused([old])
        return value

    def _constant(self, reader: ir.Node, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        tensor.name = name
        graph = reader.graph
        # Functions have no initializers; those of old bodies would have to be inputs, which bodies have none of.
        is_old = self.land.view.ir_version < 4
        bare = isinstance(self.land.graph, ir.Function) or (is_old and self.land.graph is not self.main)
        if not isinstance(graph, ir.Graph) or bare:
            node = ir.node("Constant", [], {"value": tensor}, name=name)
            node.outputs[0].name = name
            reader.prepend([node])
            return node.outputs[0]
        value = ir.Value(name=name, const_value=tensor)
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        graph.register_initializer(value)
        if is_old:
            graph.inputs.append(value)  # below IR version 4 every initializer is listed as an input
        return value

    def unused_name(self, wanted: str) -> str:
        """``wanted``, or with a number behind it when the model has it already."""
        name, count = wanted, 1
        while name in self.names:
            name, count = f"{wanted}_{count}", count + 1
        self.names.add(name)
        return name

    # -- nodes ---------------------------------------------------------------------------------

    def _replace(self, node: ir.Node, residue: AffineMap | None) -> None:
        data, output = data_input(self.land.view, node), node.outputs[0]
        if residue is not None:
            self._stand_in(node, self._spell(node, data, residue), residue)
        elif output.is_graph_output() and not _may_be_renamed(data, node):
            self._stand_in(node, self._like(node, "Identity", data))
        else:
            self.land.maps.pop(node, None)
            was_output = output.is_graph_output()
            output.replace_all_uses_with(data, replace_graph_outputs=True)
            remove(node)
            if was_output:
                _take_over(data, output)

    def _stand_in(self, node: ir.Node, new: ir.Node, residue: AffineMap | None = None) -> None:
        """Put ``new``, which stands before ``node``, in its place."""
        output = node.outputs[0]
        output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        self._succeed(node, new, residue)
        remove(node)
        new.outputs[0].name = output.name

    def _like(self, node: ir.Node, kind: str, data: ir.Value) -> ir.Node:
        """A new node in front of ``node``, whose output is as its output."""
        new = ir.node(kind, [data], name=self.unused_name(f"{node.name or node.outputs[0].name}/{kind}"))
        if module_name(node):
            new.metadata_props[MODULE_KEY] = module_name(node)
        new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        new.outputs[0].name = self.unused_name(f"{node.outputs[0].name}/{kind}")
        node.prepend([new])
        return new

    def _spell(self, node: ir.Node, data: ir.Value, residue: AffineMap) -> ir.Node:
        """A new node in place of ``node`` that computes ``residue`` of ``data``."""
        spelling = spelled(residue, channels(node))
        assert spelling is not None, "check() refuses what cannot be spelled"
        kind, _ = spelling
        new = self._like(node, kind, data)
        if kind == "BatchNormalization":
            new.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
        for name, edit in _constants(node, residue).items():
            new.resize_inputs(len(new.inputs) + 1)
            slot = new, len(new.inputs) - 1
            value = self._constant(
                new, self.unused_name(f"{new.outputs[0].name}.{name}"), self.shelf.tensor(slot, edit)
            )
            new.replace_input_with(slot[1], value)
            self.edits[slot] = edit  # the exact constants, should the map go on from here
        return new

    def _succeed(self, node: ir.Node, new: ir.Node, residue: AffineMap | None) -> None:
        """The new node takes the old one's place in the order and, where it is a map, among the maps."""
        position = self.land.order.pop(node)
        self.land.order[new] = position
        self.land.nodes[position] = new
        self.land.maps.pop(node, None)
        if residue is not None:
            self.land.maps[new] = residue
            self.land.successors[node] = new


def _take_over(value: ir.Value, output: ir.Value) -> None:
    """Let ``value`` be what ``output`` was: outputs of the model keep their names, and must have a type."""
    value.name = output.name
    if value.shape is None:
        value.shape = output.shape
    value.type = value.type or output.type


def _may_be_renamed(value: ir.Value, node: ir.Node) -> bool:
    """Whether ``value`` can take the name of the output of ``node``: it has no name that anyone counts on."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and not value.is_graph_output()


def remove(node: ir.Node) -> None:
    """Take ``node`` out of its graph, and what only it needed."""
    inputs = [value for value in node.inputs if value is not None]
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    remove_unused(inputs)


def remove_unused(values: Iterable[ir.Value]) -> None:
    """Drop constants that nothing reads any more, with the subgraph that made them; inputs stay, whatever they hold."""
    waiting = list(values)  # no recursion: what made a constant can be a long chain
    while waiting:
        value = waiting.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            if not any(out.uses() or out.is_graph_output() for out in producer.outputs):
                waiting += [item for item in producer.inputs if item is not None]
                producer.graph.remove(producer, safe=True)
        elif producer is None and value.is_initializer() and value.graph is not None:
            value.graph.initializers.pop(str(value.name))


class Shelf:
    """The edited tensors of one model, held until they are written while there is room: few are evaluated twice.

    Args:
        need_unchanged: raises when the model's other weights are not what they were; None where that cannot be told.
            Then nothing is held: what is evaluated late is compared with what was validated.
    """

    def __init__(self, need_unchanged: Callable[[], None] | None) -> None:
        self._need_unchanged = need_unchanged or _nothing
        self._room = 0 if need_unchanged is None else SHELF
        self._held: dict[Slot, int] = {}

    def tensor(self, slot: Slot, edit: Edit) -> ir.LazyTensor:
        """What is to be stored at ``slot``, in place of what was to be stored there before."""
        self._room += self._held.pop(slot, 0)
        if edit.nbytes > self._room:
            return _evaluated_late(edit, self._need_unchanged)
        self._held[slot] = edit.nbytes
        self._room -= edit.nbytes
        return _held(edit, self._need_unchanged)


def _held(edit: Edit, need_unchanged: Callable[[], None]) -> ir.LazyTensor:
    array = edit.rounded()
    edit.release()

    def write() -> ir.TensorProtocol:
        need_unchanged()
        return ir.Tensor(array)

    return ir.LazyTensor(write, dtype=edit.dtype, shape=ir.Shape(edit.shape))


def _nothing() -> None:
    pass


def _evaluated_late(edit: Edit, need_unchanged: Callable[[], None]) -> ir.LazyTensor:
    """The edited tensor, evaluated when it is written; it must come out as it was validated, bit for bit."""
    expected = fingerprint(edit.rounded())
    edit.release()

    def write() -> ir.TensorProtocol:
        need_unchanged()
        array = edit.rounded()
        edit.release()
        if fingerprint(array) != expected:
            raise NormdeployError(
                "a weight changed between its validation and its writing",
                where=str(getattr(edit.original, "name", "")),
                fix="do not change the model's file while it is folded",
            )
        return ir.Tensor(array)

    return ir.LazyTensor(write, dtype=edit.dtype, shape=ir.Shape(edit.shape))


def all_names(model: ir.Model) -> set[str]:
    """Every value and node name in ``model``."""
    names: set[str] = set()
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.graph.subgraphs(), *model.functions.values()]
    for graph in graphs:
        names.update(str(value.name) for value in graph.inputs)
        names.update(str(name) for name in getattr(graph, "initializers", ()))
        for node in graph:
            names.add(str(node.name))
            names.update(str(value.name) for value in node.outputs)
    return names
