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
SIXTEEN = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Spelled:
    """The norms of a model's main graph that were spelled out.

    Attributes:
        model: in which they are.
        refused: the last node of each that is none in the end, and why.
        replaced: each operator that was written, what is read in place of the spelled norm, and what was before.
    """

    model: ir.Model
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)
    replaced: dict[ir.Node, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

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
            node, made, old = _written(self.model.graph, norm, moved)
            moved[old], self.replaced[node] = made, (made, old)

    def undo(self, node: ir.Node) -> None:
        """Put what ``node`` was spelled as back."""
        made, old = self.replaced.pop(node)
        _take_place(old, made)
        graph, maker = node.graph, made.producer()
        assert graph is not None, "it was not removed"
        assert maker is not None, "it is the operator or the cast behind it"
        graph.remove(dict.fromkeys((maker, node)), safe=True)

    def tidy(self) -> None:
        """Remove what is read no more."""
        remove_unused(old for _, old in self.replaced.values())


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


def between_casts(x: ir.Value, last: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """Return what is cast from 16 bits to ``x``, and the cast back that alone reads ``last``; None without both."""
    before, y = x.producer(), last.outputs[0]
    readers = [use.node for use in y.uses()]
    if before is None or operator(before) != "Cast" or before.graph is not last.graph or x.dtype != ir.DataType.FLOAT:
        return None
    source = before.inputs[0]
    if source is None or source.dtype not in SIXTEEN or source.shape is None or y.is_graph_output():
        return None
    if len(readers) != 1 or operator(readers[0]) != "Cast" or readers[0].graph is not last.graph:
        return None
    return (source, readers[0]) if readers[0].outputs[0].dtype == source.dtype else None


def _written(graph: ir.Graph, norm: Norm, moved: Mapping[ir.Value, ir.Value]) -> tuple[ir.Node, ir.Value, ir.Value]:
    """Put an operator before the last node of ``norm``; return it, what is read in place of the norm, and the norm's.

    Both are the norm's result, or, where gamma or beta stand behind a cast to 16 bits, what they make of it.
    """
    last, weights = _with_constants(norm, norm.end, [norm.scale] if norm.bias is None else [norm.scale, norm.bias])
    wide = last
    if (casts := between_casts(norm.data, last)) is not None:
        behind, more = _with_constants(norm, casts[1], weights)
        last, weights = (last, weights) if behind is casts[1] else (behind, more)
    dtype = norm.result.dtype
    assert dtype is not None, "it is that of what the norm reads"
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
    made, old = node.outputs[0], last.outputs[0]
    if last is not wide:
        made.shape, made.type, made.name = old.shape, wide.outputs[0].type, f"{old.name}.float32"
        cast = ir.node("Cast", [made], {"to": int(old.dtype or 0)})
        graph.insert_before(last, cast)
        made = cast.outputs[0]
    _take_place(made, old)
    return node, made, old


def _with_constants(norm: Norm, last: ir.Node, weights: list[Array]) -> tuple[ir.Node, list[Array]]:
    """Return the last node with the Mul and Add of constants behind ``last``, and the weights with theirs."""
    while (behind := _absorbed(norm, weights, last)) is not None:
        last, weights = behind
    return last, weights


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
