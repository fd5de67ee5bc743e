"""A graph is followed node by node, each value's elements by the rows of the batch that they can depend on.

Shapes and indices are those of two runs in ONNX Runtime, of one row more and less: what differs there depends on how
many rows there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from normdeploy.graph import operator
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.serving.rows.call import COUNT, ROWS, Call, Mask, everything
from normdeploy.serving.rows.rules import unknown
from normdeploy.serving.rows.table import FOLLOWED, INDICES, RULES, SHAPED

Feed = Mapping[str, np.ndarray]
_SIZES = ("Shape", "Size")
_SHAPE_OF = "normdeploy.shape_of."
_SEVERAL, _COUNTED = 1, 2
_HAS_SEVERAL = np.array([rows.bit_count() > 1 for rows in range(ROWS + 1)])


def meeting(path: Path, feed: Feed, fewer: Feed) -> str:
    """Return what makes a row of an output depend on another row of the batch; empty where nothing can.

    Args:
        path: the model, which is not changed; its folder must take another file for the time of this call.
        feed: of each input, at most seven rows.
        fewer: the same with one row less.

    Raises what ONNX Runtime and the rules raise where they do not know what the graph holds.
    """
    model = onnx.load(path, load_external_data=False)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    walk = _Walk(model.graph, _opset(model))
    values, others = _run(model, path, walk, [feed, fewer])
    return walk(feed, values, others)


def _opset(model: onnx.ModelProto) -> int:
    return next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)


def _run(model: onnx.ModelProto, path: Path, walk: _Walk, feeds: list[Feed]) -> list[dict[str, np.ndarray]]:
    """Return, for each feed, the values and shapes that the walk asks for."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    shapes = [onnx.helper.make_node("Shape", [name], [_SHAPE_OF + name]) for name in walk.shapes]
    probe.graph.node.extend(shapes)
    del probe.graph.output[:]
    wanted = [*walk.values, *(node.output[0] for node in shapes)]
    if not wanted:
        return [{} for _ in feeds]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    beside = path.with_name(".rows.onnx")
    try:
        beside.write_bytes(probe.SerializeToString())
        runner = OnnxRuntimeRunner(beside, options={"graph_optimization_level": "disable"}, checked=True)
        return [runner(feed) for feed in feeds]
    finally:
        beside.unlink(missing_ok=True)


class _Walk:
    """The nodes of a graph in their order.

    Attributes:
        values: names whose values the rules need.
        shapes: names whose shapes they need.
    """

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph, self._opset = graph, opset
        given = {each.name for each in graph.input}
        self.values = list(dict.fromkeys(name for node in graph.node for name in _needed(node) if name not in given))
        self.shapes = [name for node in graph.node if _is_shaped(operator(node)) for name in node.output if name]
        self._masks: dict[str, Mask] = {}
        self._faults: dict[str, int] = {}

    def __call__(self, feed: Feed, values: Feed, others: Feed) -> str:
        self._start(feed)
        known = {**feed, **values}
        left = Counter(name for node in self._graph.node for name in _inputs(node))
        outputs = [each.name for each in self._graph.output]
        left.update(outputs)
        for node in self._graph.node:
            self._step(node, known, others)
            for name in _inputs(node):
                left[name] -= 1
                if not left[name]:
                    self._masks.pop(name, None)
        rows = len(next(iter(feed.values())))
        return next((self._told(name) for name in outputs if not _is_apart(self._masks[name], rows)), "")

    def _start(self, feed: Feed) -> None:
        for name, array in feed.items():
            bits = np.left_shift(1, np.arange(len(array))).astype(np.uint8)
            self._masks[name] = np.broadcast_to(bits.reshape([-1, *[1] * (array.ndim - 1)]), array.shape)
        constants = [(each.name, each.dims) for each in self._graph.initializer]
        constants += [(each.values.name, each.dims) for each in self._graph.sparse_initializer]
        for name, dims in constants:
            if name not in self._masks:
                self._masks[name] = np.broadcast_to(np.uint8(0), tuple(dims))

    def _step(self, node: onnx.NodeProto, values: Feed, others: Feed) -> None:
        name = operator(node)
        if name in _SIZES:
            differs = values[node.output[0]] != others[node.output[0]]
            made = [np.where(differs, np.uint8(COUNT), np.uint8(0))]
        else:
            made = self._made(node, name, values, others)
        for output, mask in zip(node.output, made, strict=False):
            if output:
                self._masks[output] = np.asarray(mask, np.uint8)
                self._faults[output] = _faults(self._masks[output])

    def _made(self, node: onnx.NodeProto, name: str, values: Feed, others: Feed) -> list[Mask]:
        masks = [self._masks[each] if each else None for each in (*node.input, *_captured(node))]
        known = {}
        for place, each in enumerate(node.input):
            if each and place in INDICES.get(name, ()):
                known[place] = values[each]
                if name not in FOLLOWED or _agree(values[each], others.get(each, values[each])):
                    masks[place] = self._masks[each] & np.uint8(ROWS)
        shapes = {
            place: tuple(values[_SHAPE_OF + each].tolist())
            for place, each in enumerate(node.output)
            if _SHAPE_OF + each in values
        }
        made = RULES.get(name, unknown)(Call(node, masks, known, shapes, self._opset))
        chosen = [masks[place] for place in known] if name not in FOLLOWED else []
        if any(mask is not None and mask.any() for mask in chosen):
            whole = everything(*(mask for mask in masks if mask is not None))
            return [np.full_like(mask, whole) for mask in made]
        return list(made)

    def _told(self, output: str) -> str:
        """Where the rows that ``output`` mixes met: the first node above it of which nothing that it reads does."""
        made = {name: node for node in self._graph.node for name in node.output}
        fault, name = self._faults.get(output, 0), output
        if not fault:
            return f"a row of {output} is made of another row"
        kind = _SEVERAL if fault & _SEVERAL else _COUNTED
        while above := next((each for each in _data(made[name]) if self._faults.get(each, 0) & kind), ""):
            name = above
        node, what = made[name], "another row" if kind == _SEVERAL else "how many rows there are"
        return f"{output} can depend on {what} in {operator(node)} {node.name or name!r}"


def _is_shaped(name: str) -> bool:
    return name in SHAPED or (name not in RULES and name not in _SIZES)


def _needed(node: onnx.NodeProto) -> Iterator[str]:
    """The names whose values say where, and sizes."""
    name = operator(node)
    yield from (node.output[:1] if name in _SIZES else ())
    yield from (node.input[place] for place in INDICES.get(name, ()) if place < len(node.input) and node.input[place])


def _inputs(node: onnx.NodeProto) -> list[str]:
    return [*filter(None, node.input), *_captured(node)]


def _data(node: onnx.NodeProto) -> list[str]:
    """The names of what a node computes with."""
    places = INDICES.get(operator(node), ())
    return [name for place, name in enumerate(node.input) if place not in places] + _captured(node)


def _captured(node: onnx.NodeProto) -> list[str]:
    """The names of outer values that the bodies of ``node`` read."""
    found = dict[str, None]()
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            own = {each.name for each in (*body.input, *body.initializer)}
            own |= {name for inner in body.node for name in inner.output}
            read = [name for inner in body.node for name in _inputs(inner)] + [each.name for each in body.output]
            found.update(dict.fromkeys(name for name in read if name not in own))
    return list(found)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two indices, of one row more or less, are the same where both have elements."""
    part = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
    return bool((a[part] == b[part]).all())


def _faults(mask: Mask) -> int:
    return _SEVERAL * bool(_HAS_SEVERAL[mask & ROWS].any()) | _COUNTED * bool((mask & COUNT).any())


def _is_apart(mask: Mask, rows: int) -> bool:
    return mask.shape[:1] == (rows,) and not any((mask[row] & ~np.uint8(1 << row)).any() for row in range(rows))
