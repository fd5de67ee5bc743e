"""Carrying out a plan: map nodes go or change, edited tensors take the place of those that were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.state import GraphState, may_be_renamed, remove, remove_unused, take_over
from normdeploy.fold.merge import Merger
from normdeploy.fold.operators.basics import CONSTANT, IDENTITY, is_norm
from normdeploy.fold.operators.maps import Spelling, data_input, map_of
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan, Slot
from normdeploy.fold.weights import WeightCache, constants, is_alike, spellings
from normdeploy.graph import MODULE_KEY, module_name


class Writer:
    """Writes plans into one graph, and remembers every edited tensor."""

    def __init__(
        self, state: GraphState, edits: dict[Slot, Edit], names: set[str], main: ir.Graph, cache: WeightCache
    ) -> None:
        self.state, self.edits, self.names, self.main, self.cache = state, edits, names, main, cache

    def carry_out(self, plan: Plan) -> None:
        """Change the graph as ``plan`` says."""
        for slot, edit in plan.edits.items():
            self.store(slot, edit)
        for (node, name), value in plan.attributes.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        for node, kind in plan.kinds.items():
            node.op_type = kind
        for node, rest in plan.remainders.items():
            self._replace(node, rest, norm=plan.has_norm)

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
        take_over(result, total)
        for branch in found.branches:
            if branch.node is not None and branch.node is not found.into:
                self.state.maps.pop(branch.node, None)
                if branch.node.graph is not None:
                    remove(branch.node)

    # -- tensors -------------------------------------------------------------------------------

    def store(self, slot: Slot, edit: Edit) -> None:
        """Let the parameter at ``slot`` be what ``edit`` says, from now on."""
        node, index = slot
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        value = self._own_value(node, index, self.cache.tensor(slot, edit))
        value.shape, value.dtype = ir.Shape(edit.shape), edit.dtype
        self.state.view.forget(value)
        self.edits[slot] = edit
        self._keep_maps_true(node, value, edit)

    def _keep_maps_true(self, node: ir.Node, value: ir.Value, edit: Edit) -> None:
        """Read a map or norm whose own constant was edited anew, with what is not rounded yet."""
        if node in self.state.maps or states(node).norm:
            self.state.view.unrounded[value] = edit.exact()
        if node in self.state.maps:
            m = map_of(self.state.view, node)
            assert m is not None, "an edit changes the constant of a map, not its kind"
            self.state.maps[node] = m

    def _own_value(self, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> ir.Value:
        """Return the constant that only this slot reads: the old one where it is so, else a new one (copy on write)."""
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

    def share_copies(self) -> None:
        """Let copies of one constant that came out alike be one again: each reader that was edited got its own."""
        kept: dict[int, list[ir.Value]] = {}
        for (node, index), edit in reversed(self.edits.items()):  # the last one was given the constant itself
            value = node.inputs[index] if node.graph is not None and index < len(node.inputs) else None
            if edit.original is None or value is None or not value.is_initializer() or value.is_graph_output():
                continue
            copies = kept.setdefault(id(edit.original), [])
            twin = next((other for other in copies if is_alike(other.const_value, value.const_value)), None)
            if twin is None:
                copies.append(value)
            elif twin is not value:
                node.replace_input_with(index, twin)
                remove_unused([value])

    def _constant(self, reader: ir.Node, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        tensor.name = name
        graph = reader.graph
        # Functions have no initializers; those of old bodies would have to be inputs, which bodies have none of.
        is_old = self.state.view.ir_version < 4
        bare = isinstance(self.state.graph, ir.Function) or (is_old and self.state.graph is not self.main)
        if not isinstance(graph, ir.Graph) or bare:
            node = ir.node(CONSTANT, [], {"value": tensor}, name=name)
            node.outputs[0].name = name
            reader.prepend([node])
            return node.outputs[0]
        value = ir.Value(name=name, const_value=tensor)
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        graph.register_initializer(value)
        if is_old:
            graph.inputs.append(value)  # below IR version 4 every initializer is listed as an input
        return value

    def append_constant(self, node: ir.Node, name: str, tensor: ir.TensorProtocol) -> None:
        """Give ``node`` one more input, the constant ``tensor``."""
        value = self._constant(node, self.unused_name(f"{node.outputs[0].name}.{name}"), tensor)
        node.resize_inputs(len(node.inputs) + 1)
        node.replace_input_with(len(node.inputs) - 1, value)

    def unused_name(self, wanted: str) -> str:
        """Return ``wanted``, or with a number behind it when the model has it already."""
        name, count = wanted, 1
        while name in self.names:
            name, count = f"{wanted}_{count}", count + 1
        self.names.add(name)
        return name

    # -- nodes ---------------------------------------------------------------------------------

    def _replace(self, node: ir.Node, rest: AffineMap | None, *, norm: bool) -> None:
        data, output = data_input(self.state.view, node), node.outputs[0]
        if rest is not None:
            *before, last = spellings(node, rest, norm=norm)
            first = None
            for spelling in before:
                first = self._spell(node, data, spelling)
                self.state.insert(first, spelling.map, before=node)
                data = first.outputs[0]
            new = self._spell(node, data, last)
            self._stand_in(node, new, last.map)
            if first is not None:
                self.state.partners[new] = first
        elif output.is_graph_output() and not may_be_renamed(data, node):
            self._stand_in(node, self.add(node, IDENTITY, data, output))
        else:
            self.state.maps.pop(node, None)
            was_output = output.is_graph_output()
            output.replace_all_uses_with(data, replace_graph_outputs=True)
            remove(node)
            if was_output:
                take_over(data, output)

    def _stand_in(self, node: ir.Node, new: ir.Node, remainder: AffineMap | None = None) -> None:
        """Put ``new``, which stands before ``node``, in its place."""
        output = node.outputs[0]
        output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        self._succeed(node, new, remainder)
        remove(node)
        new.outputs[0].name = output.name

    def add(
        self,
        before: ir.Node,
        kind: str,
        data: ir.Value,
        like: ir.Value,
        attributes: Mapping[str, Any] | None = None,
        *others: ir.Value,
    ) -> ir.Node:
        """Return a new node in front of another, of its module, whose output has the type and shape of ``like``.

        It reads ``data``, and ``others``.
        """
        name = self.unused_name(f"{before.name or before.outputs[0].name}/{kind}")
        new = ir.node(kind, [data, *others], attributes, name=name)
        if module_name(before):
            new.metadata_props[MODULE_KEY] = module_name(before)
        new.outputs[0].shape, new.outputs[0].type = like.shape, like.type
        new.outputs[0].name = self.unused_name(f"{before.outputs[0].name}/{kind}")
        before.prepend([new])
        return new

    def take_place(self, new: ir.Node, result: ir.Value, end: ir.Node) -> None:
        """Let ``result``, which ``new`` or what follows it makes, be what ``end`` made, and ``end`` go."""
        old = end.outputs[0]
        result.shape, result.type = old.shape, old.type
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        remove(end)
        new.name, result.name = end.name, old.name

    def bypass(self, node: ir.Node, value: ir.Value) -> None:
        """Let whatever reads ``node`` read ``value``, and ``node`` go."""
        node.outputs[0].replace_all_uses_with(value)
        remove(node)

    def drop(self, node: ir.Node) -> None:
        """Take out ``node``, which nothing reads, and what only it needed."""
        remove(node)

    def drop_last_input(self, node: ir.Node) -> None:
        """Let ``node`` be without its last input."""
        last = len(node.inputs) - 1
        value = node.inputs[last]
        node.replace_input_with(last, None)
        node.resize_inputs(last)
        remove_unused([] if value is None else [value])

    def _spell(self, node: ir.Node, data: ir.Value, spelling: Spelling) -> ir.Node:
        """Return a new node in front of ``node`` that computes what is spelled of ``data``."""
        new = self.add(node, spelling.kind, data, node.outputs[0])
        if is_norm(new):
            new.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
        for name, edit in constants(node, spelling).items():
            slot = new, len(new.inputs)
            self.append_constant(new, name, self.cache.tensor(slot, edit))
            self.edits[slot] = edit  # the exact constants, should the map go on from here
        return new

    def _succeed(self, node: ir.Node, new: ir.Node, remainder: AffineMap | None) -> None:
        """Let the new node take the old one's place in the order and, where it is a map, among the maps."""
        position = self.state.order.pop(node)
        self.state.order[new] = position
        self.state.nodes[position] = new
        self.state.maps.pop(node, None)
        if remainder is not None:
            self.state.maps[new] = remainder
            self.state.successors[node] = new
