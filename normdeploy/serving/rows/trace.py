"""A graph is followed node by node: the rows that each element can depend on, and the axes that have one entry a row.

Three things keep rows apart. No element of an output depends on another row, or on how many there are. No operator
works along an axis whose size is that of the batch: what it does there at other sizes, nobody has seen. And no size or
place is chosen by the values of a row, but the entry that a Gather takes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from normdeploy.serving.rows.along import along
from normdeploy.serving.rows.call import COUNT, ROWS, Call, Mask, operator
from normdeploy.serving.rows.probe import SIZES, Feed, Seen, seen
from normdeploy.serving.rows.rules import unknown
from normdeploy.serving.rows.table import FOLLOWED, INDICES, MOVED, RULES

MOST = 7
"""Rows that can be told apart."""
_SEVERAL, _COUNTED = 1, 2
_HAS_SEVERAL = np.array([rows.bit_count() > 1 for rows in range(ROWS + 1)])
_RESIZED = frozenset({"AffineGrid", "ConstantOfShape", "Expand", "Resize", "Reshape", "Upsample"})
"""Operators whose results have the size of the batch, and the same entries, where they are told it."""
_COMPARING = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Clip"})
_AXES = {**dict.fromkeys(("CumSum", "Squeeze", "Unsqueeze"), (1,)), "Slice": (3, 4), "Pad": (3,)}
"""Full name → the inputs that must be constants, beside the axes of reductions."""


class _MeetError(Exception):
    """Rows meet here."""


def meeting(path: Path, feed: Feed, fewer: Feed) -> str:
    """Return what lets a row of an output depend on the rows beside it; empty where nothing does.

    Args:
        path: the model, which is not changed; its folder must take another file for the time of this call.
        feed: of each input, at most ``MOST`` rows.
        fewer: the same with one row less.

    Raises what ONNX Runtime and the rules raise where they do not know what the graph holds.
    """
    model = onnx.load(path, load_external_data=False)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    try:
        return _Walk(model.graph, opset, *seen(model, path, [feed, fewer]))(feed)
    except _MeetError as error:
        return str(error)


class _Walk:
    """The nodes of a graph in their order, with what two runs show of it."""

    def __init__(self, graph: onnx.GraphProto, opset: int, more: Seen, fewer: Seen) -> None:
        self._graph, self._opset, self._more, self._fewer = graph, opset, more, fewer
        self._made = {name: node for node in graph.node for name in node.output}
        self._masks: dict[str, Mask] = {}
        self._faults: dict[str, int] = {}
        self._fixed = {each.name for each in graph.initializer} - {each.name for each in graph.input}
        self._counts, self._places, self._decided = set[str](), set[str](), set[str]()

    def __call__(self, feed: Feed) -> str:
        self._start(feed)
        outputs = [each.name for each in self._graph.output]
        left = Counter([name for node in self._graph.node for name in _inputs(node)] + outputs)
        for node in self._graph.node:
            self._step(node)
            for name in _inputs(node):
                left[name] -= 1
                if not left[name]:
                    self._masks.pop(name, None)
        rows = len(next(iter(feed.values())))
        return next((self._told(name) for name in outputs if not self._is_apart(name, rows)), "")

    def _start(self, feed: Feed) -> None:
        for name, array in feed.items():
            bits = np.left_shift(1, np.arange(len(array))).astype(np.uint8)
            self._masks[name] = np.broadcast_to(bits.reshape([-1, *[1] * (array.ndim - 1)]), array.shape)
        for name in (*self._fixed, *(each.values.name for each in self._graph.sparse_initializer)):
            self._masks.setdefault(name, np.broadcast_to(np.uint8(0), self._more.shapes[name]))

    def _step(self, node: onnx.NodeProto) -> None:
        name = operator(node)
        if name in SIZES:
            differs = self._more.values[node.output[0]] != self._fewer.values[node.output[0]]
            made = [np.where(differs, np.uint8(COUNT), np.uint8(0))]
        else:
            call = self._call(node, name)
            self._require_apart(call, name)
            self._decide(call, name)
            told = np.uint8(0)
            if name not in FOLLOWED and any((call.mask(place) & COUNT).any() for place in call.values):
                told = np.uint8(COUNT)  # by where it says the entries are, and not by their sizes alone
            made = [mask | told for mask in RULES.get(name, unknown)(call)]
        for output, mask in zip(node.output, made, strict=False):
            if output:
                self._masks[output] = np.asarray(mask, np.uint8)
                self._faults[output] = _faults(self._masks[output])
        self._note(node, name)

    def _note(self, node: onnx.NodeProto, name: str) -> None:
        """Note of the outputs whether they are constants, sizes as they are, or each row's own number."""
        outputs = set(filter(None, node.output))
        if all(each in self._fixed for each in _inputs(node)) and (name in ("Constant", *SIZES) or name in RULES):
            self._fixed |= outputs
        moves = name in (*MOVED, "Cast", "Identity", "Gather") and name != "Concat"
        others = all(each in self._fixed for each in node.input[1:] if each)
        if name in SIZES or (moves and node.input[0] in self._counts and others):
            self._counts |= outputs
        if name == "Range" and self._counts_rows(node):
            self._places |= outputs
        if name in ("Cast", "Expand", "Identity", "Reshape", "Unsqueeze") and node.input[0] in self._places:
            self._places |= outputs

    def _counts_rows(self, node: onnx.NodeProto) -> bool:
        """Whether a Range goes from 0 in steps of 1 to how many rows there are, by the values of both runs."""
        first, last, step = (self._more.values.get(each) for each in node.input)
        begins = (
            first is not None and step is not None and node.input[0] in self._fixed and node.input[2] in self._fixed
        )
        return bool(begins and last is not None and first == 0 and step == 1 and node.input[1] in self._counts)

    def _call(self, node: onnx.NodeProto, name: str) -> Call:
        given = (*node.input, *_captured(node))
        places = [place for place in INDICES.get(name, ()) if place < len(node.input) and node.input[place]]
        known = {place: self._more.values[node.input[place]] for place in places}
        computed = frozenset(place for place, each in enumerate(given) if each and each not in self._fixed)
        counts = frozenset(place for place in computed if given[place] in self._counts)
        shapes = {place: self._more.shapes[each] for place, each in enumerate(node.output) if each}
        masks = [self._masks[each] if each else None for each in given]
        own = name == "GatherND" and self._is_own_row(node.input[1])
        call = Call(node, masks, known, shapes, self._opset, computed, counts, own)
        for place in places:
            masks[place] = self._without_count(call, name, place)
        return call

    def _without_count(self, call: Call, name: str, place: int) -> Mask:
        """The mask of an index, without how many rows there are where that is only a size, or a row's own number."""
        mask = call.mask(place)
        if name in _RESIZED or (name == "Tile" and not self._repeated(call)):
            return mask & np.uint8(ROWS)
        if name == "Slice" and place == 2 and 2 in call.counts:
            axes = call.axes("axes", 3) or range(len(call.values[2]))
            batch = self._batch_axes(call.node.input[0])
            return mask & np.uint8(ROWS) if {axis % call.mask(0).ndim for axis in axes} <= batch else mask
        if name == "GatherND" and call.own_row:
            mask = np.array(mask)
            mask[..., 0] &= np.uint8(ROWS)
        return mask

    def _repeated(self, call: Call) -> list[int]:
        """The axes with several entries that a Tile repeats."""
        both = zip(call.values[1], self._fewer.values[call.node.input[1]], call.mask(0).shape, strict=True)
        return [axis for axis, (times, fewer, size) in enumerate(both) if size > 1 and (times, fewer) != (1, 1)]

    def _is_own_row(self, name: str) -> bool:
        """Whether the first coordinate of an index along axis 0 is the number of the row."""
        node = self._made.get(name)
        if node is None or operator(node) != "Concat" or node.input[0] not in self._places:
            return False
        shape = self._more.shapes[node.input[0]]
        last = node.attribute[0].i in (-1, len(shape) - 1)
        return last and shape[-1] == 1 and 0 in self._batch_axes(node.input[0])

    def _batch_axes(self, name: str) -> set[int]:
        """The axes whose size is another one where there is a row less."""
        more, fewer = self._more.shapes.get(name, ()), self._fewer.shapes.get(name, ())
        if len(more) != len(fewer):
            raise _MeetError(f"how many axes {name!r} has depends on how many rows there are")
        return {axis for axis, sizes in enumerate(zip(more, fewer, strict=True)) if sizes[0] != sizes[1]}

    def _require_apart(self, call: Call, name: str) -> None:
        """Raise _MeetError where the operator itself is a place for rows to meet."""
        given, where = (*call.node.input, *_captured(call.node)), f"{name} {call.node.name or call.node.output[0]!r}"
        axes = _AXES.get(name, (1,) if name.startswith("Reduce") else ())
        if any(place in call.computed for place in axes):
            raise _MeetError(f"the axes of {where} are computed")
        if name not in FOLLOWED and any((call.mask(place) & ROWS).any() for place in call.values):
            raise _MeetError(f"a row chooses sizes or axes of {where}")
        if name not in RULES and call.rest() & ROWS:
            raise _MeetError(f"what a row depends on is not known behind {where}")
        if any(given[place] in self._decided for place in call.values):
            raise _MeetError(f"how many rows there are decides about sizes or axes of {where}")
        if name == "MaxPool" and len(call.node.output) > 1 and call.node.output[1]:
            raise _MeetError(f"the indices of {where} count all rows")
        for place, axis in along(name, call):
            if axis in self._batch_axes(given[place]):
                raise _MeetError(f"{where} works along the batch")

    def _decide(self, call: Call, name: str) -> None:
        """Note what is computed from how many rows there are by a comparison: it goes another way at other numbers."""
        decides = (name in _COMPARING and call.rest() & COUNT) or (name == "Equal" and self._compares(call))
        if decides or any(each in self._decided for each in call.node.input):
            self._decided.update(filter(None, call.node.output))

    def _compares(self, call: Call) -> bool:
        """Whether a number that depends on how many rows there are is compared with another than -1, and 0."""
        if not call.rest() & COUNT:
            return False
        others = [self._more.values[each] for each in call.node.input if each in self._fixed]
        return not others or not np.isin(others[0], (-1, 0)).all()

    def _is_apart(self, name: str, rows: int) -> bool:
        mask = self._masks[name]
        if mask.shape[:1] != (rows,) or self._batch_axes(name) != {0}:
            return False
        return not any((mask[row] & ~np.uint8(1 << row)).any() for row in range(rows))

    def _told(self, output: str) -> str:
        """Where the rows that ``output`` mixes met: the first node above it of which nothing that it reads does."""
        fault, name = self._faults.get(output, 0), output
        if not fault:
            return f"a row of {output} is made of another row"
        kind = _SEVERAL if fault & _SEVERAL else _COUNTED
        while above := next((each for each in _data(self._made[name]) if self._faults.get(each, 0) & kind), ""):
            name = above
        node, what = self._made[name], "another row" if kind == _SEVERAL else "how many rows there are"
        return f"{output} can depend on {what} in {operator(node)} {node.name or name!r}"


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


def _faults(mask: Mask) -> int:
    return _SEVERAL * bool(_HAS_SEVERAL[mask & ROWS].any()) | _COUNTED * bool((mask & COUNT).any())
