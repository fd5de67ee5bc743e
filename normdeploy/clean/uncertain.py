"""Sizes that ONNX's shape inference computes otherwise than runtimes do, taken back before anything is made of them.

Found by comparing both on random attributes, and on inputs of which less and less is known:

- windows that begin behind the input, or are larger than it, where sizes are rounded up, padding to the same size with
  dilations, transposed convolutions of a given size, scales whose product a float32 rounds up to an integer, slices
  that run backward to the end;
- axes of Squeeze and Unsqueeze that are counted from the back before opset 11, which it passes over and runtimes take;
- a Squeeze of an empty list of axes, which is of none to it, and of all of size 1 to ONNX Runtime;
- a Slice whose axes or steps have no known rank, which it takes for one without, and an Attention of sizes without
  numbers, which it takes to be 0;
- what it follows of the elements of vectors: a name that a Slice begins or ends at is taken for 0, what is cast to a
  bool and back for the same number, and the rows of a matrix for its elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from normdeploy.clean.apart import bodies, full_name, graphs, types
from normdeploy.graph import operator

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_WINDOWED = _POOLS | {"ConvTranspose"}
_SCALED = {"Resize": 2, "Upsample": 1}
"""Where the scales are, which were input 1 of Resize at opset 10."""
_END = 2**31 - 1
_EXACT = 2.0**4
"""Multiples of its reciprocal are scales by which float32 multiplies sizes exactly."""
_SMALL = 9
"""Elements from which on a vector is none of axes, nor of sizes."""
_KEEPING = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE})
"""What sizes can be cast to and stay the same."""
_COUNTED_BACK = 11
"""The opset from which on the axes of Squeeze and Unsqueeze may be negative (ONNX changelog)."""
_PRODUCTS = 3
"""The output of an Attention that is the products of queries and keys."""
_HIDDEN = "normdeploy.hidden"

Arrays = Mapping[str, np.ndarray]
Dim = onnx.TensorShapeProto.Dimension


def hide_uncertain(given: onnx.ModelProto, found: onnx.ModelProto, *, tells_sizes: bool = True) -> bool:
    """Take nodes of ``given`` whose sizes are uncertain from shape inference; return whether there were any.

    Args:
        given: the model to infer anew, in which no two graphs make one name. Of what such nodes make, the type is told,
            and the sizes that are certain.
        found: the same model, with the shapes that were inferred.
        tells_sizes: True to leave for the next time the nodes that read what is uncertain itself.
    """
    hiding = _Hiding(given, types(found.graph), tells_sizes)
    hiding.enter(given.graph)
    if hiding.done and not any(item.domain == _HIDDEN for item in given.opset_import):
        given.opset_import.append(helper.make_opsetid(_HIDDEN, 1))
    return hiding.done


class _Hiding:
    """One walk over a model, with what is known of its values by name."""

    def __init__(self, model: onnx.ModelProto, kinds: Mapping[str, onnx.TypeProto], tells_sizes: bool) -> None:
        self.done = False
        self._kinds, self._tells_sizes = kinds, tells_sizes
        self._opset = max((item.version for item in model.opset_import if not item.domain), default=0)
        self._calls = set(map(full_name, model.functions))
        known = list(graphs(model.graph))
        self._arrays = {name: array for graph in known for name, array in _constants(graph)}
        self._held = {tensor.name for graph in known for tensor in graph.initializer}
        self._doubtful: set[str] = set()

    def enter(self, graph: onnx.GraphProto) -> None:
        declared: dict[str, onnx.ValueInfoProto] = {}
        for node in graph.node:
            reads_doubtful = not self._doubtful.isdisjoint(node.input)
            for body in bodies(node):
                self._doubtful.update(info.name for info in body.input if reads_doubtful)
                self.enter(body)
                reads_doubtful |= any(info.name in self._doubtful for info in body.output)
            is_uncertain = node.domain != _HIDDEN and self._is_uncertain(node)
            if is_uncertain and not (reads_doubtful and self._tells_sizes):
                declared = declared or {info.name: info for info in (*graph.value_info, *graph.output)}
                self._hide(node, graph, declared)
                self.done = True
            if is_uncertain or reads_doubtful:
                self._doubtful.update(node.output)

    def _is_uncertain(self, node: onnx.NodeProto) -> bool:
        kind = operator(node)
        if self._has_any_rank(node):
            return True
        if kind == "Slice":
            return self._is_uncertain_slice(node)
        if kind == "Cast":
            return self._may_be_sizes(node.input[0]) and _attributes(node).get("to") not in _KEEPING
        if kind == "Unsqueeze":
            return self._may_be_sizes(node.input[0]) and self._rank(node.output[0]) not in (0, 1)
        if kind == "Attention":
            return any(map(self._is_uncertain_of_attention, range(len(node.output)), node.output))
        if kind in _SCALED:
            return _rounds(node, kind, self._arrays)
        if kind not in _WINDOWED:
            return False
        return _is_uncertain_window(kind, _attributes(node)) or (kind in _POOLS and self._reaches_beyond(node))

    def _has_any_rank(self, node: onnx.NodeProto) -> bool:
        return operator(node) in self._calls or self._counts_back(node) or self._names_no_axis(node)

    def _counts_back(self, node: onnx.NodeProto) -> bool:
        """Return True for axes that inference passes over."""
        if self._opset >= _COUNTED_BACK or operator(node) not in ("Squeeze", "Unsqueeze"):
            return False
        return any(axis < 0 for axis in _attributes(node).get("axes", ()))

    def _names_no_axis(self, node: onnx.NodeProto) -> bool:
        """Return True for a Squeeze of an empty list of axes: of none by inference, of all by ONNX Runtime."""
        if operator(node) != "Squeeze":
            return False
        axes = self._arrays.get(node.input[1]) if len(node.input) > 1 else _attributes(node).get("axes")
        return axes is not None and np.size(axes) == 0  # a number stands for a list of one

    def _reaches_beyond(self, node: onnx.NodeProto) -> bool:
        """Return True for a pool, rounded up, whose window is larger than the padded input: of one cell, or of none."""
        told, shape = _attributes(node), self._shape(node.input[0])
        if not told.get("ceil_mode", 0) or "kernel_shape" not in told or shape is None:
            return False
        reach, pads = _reach(told), np.array(told.get("pads", [0] * 2 * len(told["kernel_shape"])))
        sizes = np.array([dim.dim_value if dim.HasField("dim_value") else np.inf for dim in shape[2:]])
        return len(sizes) == len(reach) and bool(np.any(reach > sizes + pads[: len(reach)] + pads[len(reach) :]))

    def _is_uncertain_slice(self, node: onnx.NodeProto) -> bool:
        if not self._knows_axes(node):
            return True
        if self._rank(node.input[0]) in (None, 1) and any(name not in self._arrays for name in node.input[1:] if name):
            return True
        ends, steps = (self._arrays.get(node.input[index]) if index < len(node.input) else None for index in (2, 4))
        return ends is not None and steps is not None and bool(np.any((steps < 0) & (ends >= _END)))

    def _knows_axes(self, node: onnx.NodeProto) -> bool:
        """Return True unless inference takes a Slice to have no axes or no steps that has some."""
        given = (name for name in node.input[3:] if name)
        return all(name in self._held or self._rank(name) is not None for name in given)

    def _is_uncertain_of_attention(self, index: int, name: str) -> bool:
        shape = self._shape(name)
        return shape is not None and (index == _PRODUCTS or any(_is_zero(dim) for dim in shape))

    def _shape(self, name: str) -> Sequence[Dim] | None:
        kind = self._kinds.get(name, onnx.TypeProto()).tensor_type
        return kind.shape.dim if kind.HasField("shape") else None

    def _may_be_sizes(self, name: str) -> bool:
        """Return True unless ``name`` is known to be no number and no short vector."""
        shape = self._shape(name)
        return shape is None or len(shape) == 0 or (len(shape) == 1 and shape[0].dim_value < _SMALL)

    def _rank(self, name: str) -> int | None:
        shape = self._shape(name)
        return None if shape is None else len(shape)

    def _hide(self, node: onnx.NodeProto, graph: onnx.GraphProto, declared: Mapping[str, onnx.ValueInfoProto]) -> None:
        for index, name in enumerate(node.output):
            kind = self._kinds.get(name, onnx.TypeProto())
            own = declared.get(name)
            if not kind.HasField("tensor_type") or (own is not None and own.type.tensor_type.HasField("shape")):
                continue  # what is declared stays
            if own is None:
                own = graph.value_info.add(name=name)
            own.type.tensor_type.elem_type = kind.tensor_type.elem_type
            sizes = self._certain(node, index) if self._tells_sizes else None
            if sizes is not None:
                own.type.tensor_type.shape.dim.extend(sizes)
        node.domain = _HIDDEN

    def _certain(self, node: onnx.NodeProto, index: int) -> list[Dim] | None:
        """Return what is certain of the sizes of an output of ``node``; None where not even their number is."""
        kind = operator(node)
        if self._has_any_rank(node):
            return None
        before, after = self._shape(node.input[0]), self._shape(node.output[index])
        if kind in ("Cast", "Unsqueeze"):
            return None if after is None else list(after)
        if kind == "Attention":
            return None if after is None or index == _PRODUCTS else [Dim() if _is_zero(dim) else dim for dim in after]
        if before is None:
            return None
        made = [*(after or ()), *[Dim()] * len(before)]
        if kind in _WINDOWED:
            return [*made[:2], *[Dim()] * (len(before) - 2)]
        is_any = kind == "Slice" and not self._knows_axes(node)
        return [Dim() if is_any or dim != size else size for dim, size in zip(before, made, strict=False)]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_zero(dim: Dim) -> bool:
    return dim.HasField("dim_value") and dim.dim_value == 0


def _constants(graph: onnx.GraphProto) -> list[tuple[str, np.ndarray]]:
    values: list[tuple[str, Any]] = [(tensor.name, tensor) for tensor in graph.initializer if not tensor.external_data]
    for node in graph.node:
        if operator(node) == "Constant" and len(node.attribute) == 1:
            values.append((node.output[0], helper.get_attribute_value(node.attribute[0])))
    arrays = ((name, _array(value)) for name, value in values)
    return [(name, array) for name, array in arrays if array is not None]


def _array(value: Any) -> np.ndarray | None:
    """Return a small vector or number; None for all else."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value) if len(value.dims) < 2 and sum(value.dims) < _SMALL else None
    array = np.asarray(value) if isinstance(value, float | int | list) else None
    return array if array is not None and array.size < _SMALL else None


def _is_uncertain_window(kind: str, told: Mapping[str, Any]) -> bool:
    same = told.get("auto_pad", b"NOTSET").startswith(b"SAME")
    if kind == "ConvTranspose":
        return "output_shape" in told or (same and any(told.get("output_padding", [])))
    return (same and any(size != 1 for size in told.get("dilations", []))) or _begins_outside(told)


def _rounds(node: onnx.NodeProto, kind: str, arrays: Arrays) -> bool:
    names = list(node.input[1 : 1 + _SCALED[kind]])
    found = [arrays[name] for name in names if name in arrays]
    listed = [attribute.floats for attribute in node.attribute if attribute.name == "scales"]
    scales = np.concatenate([np.ravel(each) for each in (*found, *listed)] or [np.zeros(0)])
    return bool(np.any(scales.astype(np.float64) * _EXACT % 1))


def _begins_outside(told: Mapping[str, list[int]]) -> bool:
    """Return True where the last window may begin behind the input: its size is not above the stride and the pad."""
    kernel = np.array(told.get("kernel_shape", []))
    if not told.get("ceil_mode", 0) or not kernel.size:
        return False
    behind = np.array(told.get("pads", [0] * 2 * kernel.size))[kernel.size :]
    return bool(np.any(_reach(told) < np.array(told.get("strides", [1] * kernel.size)) + behind))


def _reach(told: Mapping[str, list[int]]) -> np.ndarray:
    """Return the cells from the first to the last that a window reads."""
    kernel = np.array(told["kernel_shape"])
    return np.asarray((kernel - 1) * np.array(told.get("dilations", [1] * kernel.size)) + 1)
