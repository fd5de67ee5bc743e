"""Norms in elementary operators as one operator each, at whatever opset, for plugins to take their place.

A plugin is an operator of its own domain, so it needs no opset that has the norm. The operator written here may be none
of the model's opset: it is there only until a plugin is put in its place, and undone where none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.reader import View
from normdeploy.fold.graph.state import remove_unused
from normdeploy.fold.layernorm.recognise import proven_norms
from normdeploy.fold.layernorm.region import Norm
from normdeploy.fold.opening import graphs
from normdeploy.graph import MODULE_KEY, label, module_name, operator

KINDS = ("LayerNormalization", "RMSNormalization")


@dataclass
class Spelled:
    """The norms of a model's main graph that were spelled out.

    Attributes:
        model: in which they are.
        refused: the last node of each that is none in the end, and why.
        replaced: each operator that was written, and the value that it makes in place of the spelled norm.
    """

    model: ir.Model
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)
    replaced: dict[ir.Node, ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        """Put one operator in the place of each, with the Mul and Add of constants behind it as its gamma and beta."""
        moved: dict[ir.Value, ir.Value] = {}
        graph, opset = next(graphs(self.model))
        view = View(opset, self.model.ir_version, main=self.model.graph)
        norms, refused = proven_norms(view, list(graph))
        self.refused += [(node, why) for node, kind, why in refused if kind in KINDS]
        for norm in norms:
            if norm.kind not in KINDS:
                continue
            if why := _why_none(norm):
                self.refused.append((norm.end, why))
                continue
            node, old = _written(self.model.graph, norm, moved)
            moved[old], self.replaced[node] = node.outputs[0], old

    def undo(self, node: ir.Node) -> None:
        """Put what ``node`` was spelled as back."""
        _take_place(self.replaced.pop(node), node.outputs[0])
        assert node.graph is not None, "it was not removed"
        node.graph.remove(node, safe=True)

    def tidy(self) -> None:
        """Remove what is read no more."""
        remove_unused(self.replaced.values())


def _why_none(norm: Norm) -> str | None:
    """Return why no operator can take the place of a norm that was proven; None where one can."""
    if norm.perm is not None:
        return "the axes that it goes over are not the last ones"
    if norm.result.dtype is None or not norm.result.dtype.is_floating_point():
        return "its type is not known"
    kind = norm.result.dtype.numpy()
    held = [array for array in (norm.scale, norm.bias) if array is not None]
    if any(not np.array_equal(array.astype(kind).astype(np.float64), array) for array in held):
        return "its scale is a product of constants that its type does not hold"
    return None


def _written(graph: ir.Graph, norm: Norm, moved: Mapping[ir.Value, ir.Value]) -> tuple[ir.Node, ir.Value]:
    last, weights = norm.end, [norm.scale] if norm.bias is None else [norm.scale, norm.bias]
    dtype = norm.result.dtype
    assert dtype is not None, "it is that of what the norm reads"
    while (behind := _absorbed(norm, weights, last)) is not None:
        last, weights = behind
    constants = [ir.Value(const_value=ir.Tensor(array.astype(dtype.numpy()))) for array in weights]
    for value, array in zip(constants, weights, strict=True):
        value.shape, value.dtype = ir.Shape(array.shape), dtype
    node = ir.node(
        norm.kind,
        [moved.get(norm.data, norm.data), *constants],
        {"axis": norm.attributes["axis"], "epsilon": norm.attributes["epsilon"]},
        name=label(norm.end),
    )
    if module_name(norm.end):
        node.metadata_props[MODULE_KEY] = module_name(norm.end)
    graph.insert_before(last, node)
    old = last.outputs[0]
    _take_place(node.outputs[0], old)
    return node, old


def _take_place(new: ir.Value, old: ir.Value) -> None:
    """Let ``new`` be read, named and given as ``old`` was."""
    new.shape, new.type = old.shape, old.type
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}.replaced", name


def _absorbed(norm: Norm, weights: list[Array], last: ir.Node) -> tuple[ir.Node, list[Array]] | None:
    """Return the Mul or Add of a constant that alone reads ``last``, and the weights with it; None where it is none.

    The first Mul is gamma and the first Add beta: one more would round once less than the graph does.
    """
    value = last.outputs[0]
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or len(readers) != 1 or readers[0].graph is not last.graph:
        return None
    reader = readers[0]
    others = [item for item in reader.inputs if item is not value]
    if operator(reader) not in ("Mul", "Add") or len(others) != 1 or others[0] is None or others[0].is_graph_input():
        return None
    held = ir.convenience.get_const_tensor(others[0])
    array = None if held is None or held.dtype != value.dtype else _over(norm, held.numpy().astype(np.float64))
    if array is None:
        return None
    if operator(reader) == "Mul":
        return (reader, [array]) if len(weights) == 1 and bool((weights[0] == 1).all()) else None
    return (reader, [*weights, array]) if len(weights) == 1 and norm.kind == KINDS[0] else None


def _over(norm: Norm, array: Array) -> Array | None:
    """Return a constant that broadcasts against the norm's result as one over its axes; None where it is none."""
    sizes, rank = norm.scale.shape, 0 if norm.data.shape is None else len(norm.data.shape)
    leading = array.shape[: max(0, array.ndim - len(sizes))]
    if array.ndim > rank or any(size != 1 for size in leading):
        return None
    trailing = array.reshape(array.shape[len(leading) :])
    try:
        return np.broadcast_to(trailing, sizes).copy()
    except ValueError:  # it enlarges what it meets
        return None
