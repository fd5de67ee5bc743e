"""Draws values that are no tensors: sequences, taken apart, changed and put together, and optional values."""

from __future__ import annotations

from typing import Any

from graphs import Graph, Shapes, Value, each
from movers import beside
from onnx import TensorProto
from weighted import need


def sequence(g: Graph) -> Value:
    """A sequence from a value, changed or not, and what is read from it."""
    d = g.d
    need(g.opset >= 11)
    v = g.pick(lambda v: v.rank >= 1 and v.dtype != TensorProto.BFLOAT16)
    made, parts = _split(g, v) if d.odds(65) else _constructed(g, v)
    for _ in range(d.int(0, 2)):
        made, parts = _changed(g, made, parts)
    if d.odds(15):
        g.exposed.append(made)
    if d.odds(10):
        g.emit("SequenceLength", [made], ((), ()), dtypes=[TensorProto.INT64])
    if d.odds(30):
        return _together(g, made, parts)
    return [_at(g, made, parts, d.int(0, len(parts) - 1)) for _ in range(d.int(1, 3))][-1]


def optional(g: Graph) -> Value:
    """A value inside an optional, and taken out of it."""
    need(g.opset >= 15)
    v = g.pick(lambda v: v.dtype != TensorProto.BFLOAT16)
    made = g.wrapped("Optional", [v], v.dtype, "optional")
    if g.d.odds(20):
        g.emit("OptionalHasElement", [made], ((), ()), dtypes=[TensorProto.BOOL])
    return g.emit("OptionalGetElement", [made], v.shapes)


def _split(g: Graph, v: Value) -> tuple[Value, list[Shapes]]:
    """SplitToSequence: one by one, kept or squeezed, in chunks, or in parts of given sizes."""
    d = g.d
    axis = d.one([axis for axis in range(v.rank) if (v.fixed(axis) or 0) > 1] or [0])
    size = v.fixed(axis)
    need(size is not None and 1 < size <= 6)
    told = axis - v.rank if d.odds(25) else axis
    kind = d.int(0, 3)
    if kind >= 2:
        keep = kind == 2
        width = (1,) if keep else ()
        parts = [each(lambda s: (*s[:axis], *width, *s[axis + 1 :]), v)] * size
        return g.wrapped("SplitToSequence", [v], v.dtype, "sequence", axis=told, keepdims=int(keep)), parts
    first = d.int(1, size - 1)
    sizes = [first, size - first] if kind == 0 else [min(first, size - start) for start in range(0, size, first)]
    split = g.ints(sizes) if kind == 0 else g.scalar(first, TensorProto.INT64)
    parts = [each(lambda s, n=n: (*s[:axis], n, *s[axis + 1 :]), v) for n in sizes]
    return g.wrapped("SplitToSequence", [v, split], v.dtype, "sequence", axis=told), parts


def _constructed(g: Graph, v: Value) -> tuple[Value, list[Shapes]]:
    fits = [u for u in g.values if u.dtype == v.dtype]
    items = [v, *(g.d.one(fits) for _ in range(g.d.int(0, 2)))]
    return g.wrapped("SequenceConstruct", items, v.dtype, "sequence"), [item.shapes for item in items]


def _changed(g: Graph, made: Value, parts: list[Shapes]) -> tuple[Value, list[Shapes]]:
    """One more element, one less, or the same in another wrapping."""
    d = g.d
    kind = d.one(["insert", "erase", "same", "optional"])
    if kind == "insert":
        item = d.one([u for u in g.values if u.dtype == made.dtype])
        place = d.int(0, len(parts)) if d.odds(60) else None
        where = None if place is None else g.scalar(place, TensorProto.INT64)
        inputs: list[Any] = [made, item] if where is None else [made, item, where]
        place = len(parts) if place is None else place
        return g.wrapped("SequenceInsert", inputs, made.dtype, "sequence"), [
            *parts[:place], item.shapes, *parts[place:]
        ]  # fmt: skip
    if kind == "erase" and len(parts) > 1:
        place = d.int(0, len(parts) - 1)
        where = g.scalar(place - len(parts) if d.odds(25) else place, TensorProto.INT64)
        return g.wrapped("SequenceErase", [made, where], made.dtype, "sequence"), parts[:place] + parts[place + 1 :]
    if kind == "same" and g.opset >= 14:
        return g.wrapped("Identity", [made], made.dtype, "sequence"), parts
    if kind == "optional" and g.opset >= 15:
        inside = g.wrapped("Optional", [made], made.dtype, "optional")
        return g.wrapped("OptionalGetElement", [inside], made.dtype, "sequence"), parts
    return made, parts


def _at(g: Graph, made: Value, parts: list[Shapes], place: int) -> Value:
    told = place - len(parts) if g.d.odds(30) else place
    return g.emit("SequenceAt", [made, g.scalar(told, TensorProto.INT64)], parts[place])


def _together(g: Graph, made: Value, parts: list[Shapes]) -> Value:
    """ConcatFromSequence, along an axis or a new one."""
    d, items = g.d, [Value("", shapes, made.dtype) for shapes in parts]
    rank = items[0].rank
    need(all(item.rank == rank for item in items))
    if all(item.shapes == items[0].shapes for item in items) and d.odds(50):
        axis = d.int(0, rank)
        shapes = each(lambda s: (*s[:axis], len(items), *s[axis:]), items[0])
        return g.emit("ConcatFromSequence", [made], shapes, axis=axis, new_axis=1)
    fits = [axis for axis in range(rank) if all(beside(items[0], item, axis) for item in items)]
    need(fits)
    axis = d.one(fits)
    shapes = each(lambda *s: (*s[0][:axis], sum(n[axis] for n in s), *s[0][axis + 1 :]), *items)
    return g.emit("ConcatFromSequence", [made], shapes, axis=axis - rank if d.odds(25) else axis)
