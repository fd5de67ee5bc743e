"""Random ONNX graphs from the whole table of operators, with feeds, for hypothesis.

A graph grows operator by operator, each reading mostly the newest value and sometimes an older one, so that
chains, branches, diamonds and dead ends all come up. What fits nowhere is left out: every graph is valid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import bodies
import customs
import movers
import numpy as np
import onnx
import products
import sequences
import weighted
from functions import with_functions
from graphs import Draw, Graph, Shape, Unfit, Value, numpy_dtype, reads
from hypothesis import strategies as st
from journeys import ABSORBERS, MAPS, PLAIN, Makers, diamond, fitting, fork, join, journey, partners, twins
from onnx import TensorProto, helper
from reals import Arrays

OPSETS = (17, 20, 13, 21, 15, 11, 9, 7, 18, 12, 8, 10, 22, 23)

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

BLOCKS: Makers = (
    *(weighted.parallel_branches,) * 3,
    *(weighted.layer_scale,) * 2,
    *(weighted.norm_of_tokens,) * 2,
    weighted.embedding,
    weighted.running_instance_norm,
    weighted.attention,
    *(products.attention,) * 2,
)
"""Maps and weights together as networks have them."""

OTHERS: Makers = (
    movers.quantized,
    *(movers.statistics_of_data,) * 3,
    movers.spelled_layer_norm,
)
"""What no map passes."""

BODIES: Makers = (*(bodies.conditional,) * 3, bodies.loop, bodies.scan)
"""Graphs inside graphs."""

NO_TENSORS: Makers = (*(sequences.sequence,) * 3, sequences.optional)
"""Sequences and optional values."""

GROUPS: tuple[tuple[int, Makers], ...] = (
    (14, MAPS),
    (11, ABSORBERS),
    (14, PLAIN),
    (8, BLOCKS),
    (5, OTHERS),
    (28, (journey,)),
    (6, (fork,)),
    (7, (join,)),
    (4, (diamond,)),
    (3, (twins,)),
    (4, (partners,)),
)
"""How often one of each is drawn. All numbers stay small: hypothesis draws the ends of a long range too often."""

SURROUNDED: tuple[tuple[int, Makers], ...] = (
    (7, BODIES),
    (4, NO_TENSORS),
    (4, (customs.twin,)),
    (2, (products.multi_head_attention,)),
)
"""Those that are not plain: graphs in graphs, values that are no tensors, operators of other domains."""

_PLAIN = [makers for count, makers in GROUPS for _ in range(count)]
_DRAWN = [*_PLAIN, *(makers for count, makers in SURROUNDED for _ in range(count))]


@dataclass(frozen=True)
class Case:
    """A model, the model as it is given to the fold (perhaps with its nodes unsorted), and inputs for both."""

    proto: onnx.ModelProto
    given: onnx.ModelProto
    feeds: tuple[Arrays, ...]

    def __repr__(self) -> str:
        return f"a graph of {len(self.proto.graph.node)} nodes"  # its text is in the violation


@st.composite
def cases(draw: Callable[[Any], Any], plain: bool = False) -> Case:
    """A valid model of up to about twenty operators with at least one map in it; ``plain``: as `_PLAIN` has them."""
    d = Draw(draw)
    opset = d.one(OPSETS)
    dtype = d.one([TensorProto.FLOAT, *_FLOATS] + [TensorProto.BFLOAT16] * (opset >= 22))
    old = opset <= 8 and d.odds(50)
    g = Graph(d, opset, dtype, 3 if old else 4 if opset <= 9 else 8)
    g.plain = plain
    _input(g)
    if d.odds(25):
        _input(g)
    for _ in range(d.int(1, 10)):
        _grow(g)
    proto = _wrapped(g, _model(g))
    given = _unsorted(d, proto) if d.odds(5) else proto
    return Case(proto, given, _feeds(g, proto))


def _grow(g: Graph) -> None:
    with suppress(Unfit):
        fitting(g, g.d.one(_PLAIN if g.plain else _DRAWN))


def _input(g: Graph) -> None:
    """An input of rank 2 to 5, batch and cells perhaps dynamic."""
    d = g.d
    rank = d.one([4, 2, 3, 4, 3, 4, 5, 1])
    sizes = [d.one([2, 1, 3]), d.one([3, 4, 2, 6, 1, 8]), *d.ints(max(rank - 2, 0), 2, 7)][:rank]
    if rank == 5:
        sizes[1:] = [min(n, 4) for n in sizes[1:]]
    if rank > 2 and d.odds(35):
        sizes[d.int(2, rank - 1)] = sizes[1]  # nothing but its place tells an axis from the channels
    dims: list[str | int] = list(sizes)
    there = list(sizes)
    for axis in range(rank):
        if axis != 1 and d.odds(30 if axis == 0 else 10):
            dims[axis] = f"{'NCHWD'[axis]}{len(g.inputs)}"
            there[axis] = d.one([1, 2, 3]) if axis == 0 else sizes[axis] + d.int(1, 2)
    g.input((tuple(sizes), tuple(there)), dims)


# -- the model -------------------------------------------------------------------------------------


def _model(g: Graph) -> onnx.ModelProto:
    outputs = _outputs(g)
    used = reads(g.nodes) | {value.name for value in outputs}
    initializers = [tensor for name, tensor in g.constants.items() if name in used]
    inputs = [_info(value, g.symbols[value.name]) for value in g.inputs if value.name in used]
    if g.ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    elif initializers and g.d.odds(4):
        tensor = g.d.one(initializers)  # a default that a caller may override
        inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    told = [_info(value) for value in g.declared if value.name not in {output.name for output in outputs}]
    graph = helper.make_graph(g.nodes, "g", inputs, [_info(value) for value in outputs], initializers, value_info=told)
    opsets = [helper.make_opsetid("", g.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(g.domains))]
    called = list(g.functions.values())
    told = {"ir_version": g.ir_version, "producer_name": ""}
    return helper.make_model(graph, opset_imports=opsets, functions=called, **told)


def _outputs(g: Graph) -> list[Value]:
    """All that nothing reads, and now and then a value in the middle, or a constant."""
    d = g.d
    read = reads(g.nodes)
    made = {name for node in g.nodes for name in node.output}
    ends = [value for value in (*g.values, *g.exposed) if value.name in made and value.name not in read]
    middle = [value for value in g.values if value.name in made and value.name in read]
    if middle and d.odds(12):
        ends.append(d.one(middle))
    plain = [value for value in g.weights if value.name in g.constants and value.name in read]
    if plain and d.odds(3):
        ends.append(d.one(plain))
    if not ends:
        ends.append(g.emit("Identity", [g.values[0]], g.values[0].shapes))
    return ends


def _info(value: Value, dims: Any = None) -> onnx.ValueInfoProto:
    if value.wrap:
        tensor = helper.make_tensor_type_proto(value.dtype, None)
        make = helper.make_sequence_type_proto if value.wrap == "sequence" else helper.make_optional_type_proto
        return helper.make_value_info(value.name, make(tensor))
    if dims is None:
        dims = [a if a == b else None for a, b in zip(*value.shapes, strict=True)]
    return helper.make_tensor_value_info(value.name, value.dtype, dims)


def _wrapped(g: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Now and then all of it is the body of an If, or of a local function, or parts of it are functions."""
    kind = g.d.int(0, 99)
    if kind >= 97 and g.ir_version >= 8 and not any(i.name in g.constants for i in proto.graph.input):
        return _as_function(proto)
    if 80 <= kind < 94 and g.ir_version >= 8 and not g.plain:
        return with_functions(g.d, proto)
    plain = not any(info.name in g.constants for info in proto.graph.output) and not _has_bodies(proto)
    tensors = all(info.type.HasField("tensor_type") for info in proto.graph.output)
    return _as_branch(g, proto) if 94 <= kind < 97 and g.ir_version >= 4 and plain and tensors else proto


def _has_bodies(proto: onnx.ModelProto) -> bool:
    return any(attr.HasField("g") for node in proto.graph.node for attr in node.attribute)


def _as_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = proto.graph
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    ins, outs = [i.name for i in graph.input], [o.name for o in graph.output]
    body = helper.make_function("local", "F", ins, outs, [*constants, *graph.node], proto.opset_import)
    call = helper.make_node("F", ins, outs, domain="local", name="call")
    outer = helper.make_graph([call], "g", list(graph.input), list(graph.output))
    opsets = [*proto.opset_import, helper.make_opsetid("local", 1)]
    functions = [body, *proto.functions]
    return helper.make_model(outer, opset_imports=opsets, ir_version=proto.ir_version, functions=functions)


def _as_branch(g: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """``If`` with the same body twice: both read the same weights, outside or each its own."""
    graph, inside = proto.graph, g.d.odds(50)
    overridable = {info.name for info in graph.input}
    own = [t for t in graph.initializer if inside and t.name not in overridable]
    bodies = []
    for prefix in ("then_", "else_"):
        body = onnx.compose.add_prefix_graph(
            helper.make_graph(graph.node, "b", [], [_bare(info) for info in graph.output], own), prefix
        )
        bodies.append(
            _reading_outside(body, prefix, overridable | {t.name for t in graph.initializer} - {t.name for t in own})
        )
    node = helper.make_node(
        "If", ["cond"], [o.name for o in graph.output], then_branch=bodies[0], else_branch=bodies[1]
    )
    condition = helper.make_tensor_value_info("cond", TensorProto.BOOL, [])
    rest = [t for t in graph.initializer if t not in own]
    outer = helper.make_graph([node], "g", [*graph.input, condition], list(graph.output), rest)
    told = {"ir_version": proto.ir_version, "functions": list(proto.functions)}
    return helper.make_model(outer, opset_imports=proto.opset_import, **told)


def _bare(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, None)


def _reading_outside(body: onnx.GraphProto, prefix: str, outside: set[str]) -> onnx.GraphProto:
    """Undo the prefix of what the body reads from the graph around it."""
    for node in body.node:
        for i, name in enumerate(node.input):
            if name.removeprefix(prefix) in outside:
                node.input[i] = name.removeprefix(prefix)
    return body


def _unsorted(d: Draw, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its nodes in reverse order."""
    given = copy.deepcopy(proto)
    nodes = list(reversed(given.graph.node))
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    return given


# -- inputs ----------------------------------------------------------------------------------------


def _feeds(g: Graph, proto: onnx.ModelProto) -> tuple[Arrays, ...]:
    """Zeros, which expose padding mistakes, random numbers, and random numbers at other sizes."""
    rng = g.rng()
    shapes = {value.name: value.shapes for value in g.inputs}
    dtypes = {value.name: value.dtype for value in g.inputs}
    names = [info.name for info in proto.graph.input if info.name in shapes]
    given = [info for info in proto.graph.input if info.name not in g.constants]
    choices = [info.name for info in given if info.type.tensor_type.elem_type == TensorProto.BOOL]
    names = [name for name in names if name not in choices]

    def feed(setting: int, numbers: Callable[[Shape], np.ndarray]) -> Arrays:
        found: Arrays = {name: np.array(True) for name in choices}
        for name in names:
            shape = shapes[name][setting]
            whole = dtypes[name] == TensorProto.INT64
            found[name] = rng.integers(0, 3, shape) if whole else _rounded(numbers(shape), dtypes[name])
        return found

    random = [feed(0, np.zeros), feed(0, rng.standard_normal)]
    if any(a != b for a, b in shapes.values()):
        random.append(feed(1, lambda shape: 1.0 + 2.0 * rng.standard_normal(shape)))
    if choices:
        random += [{**item, **dict.fromkeys(choices, np.array(False))} for item in random]
    return tuple(random)


def _rounded(array: np.ndarray, dtype: int) -> np.ndarray:
    """As the model's own dtype would hold it, in float64."""
    return array.astype(numpy_dtype(dtype)).astype(np.float64)
