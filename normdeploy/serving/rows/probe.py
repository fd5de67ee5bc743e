"""What two runs in ONNX Runtime tell of a graph: shapes of all its values, and the values that say where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.serving.rows.call import operator
from normdeploy.serving.rows.table import INDICES

Feed = Mapping[str, np.ndarray]
SIZES = ("Shape", "Size")
_SHAPE_OF = "normdeploy.shape_of."
_NO_TENSORS = ("Sequence", "SplitToSequence", "Optional")
"""How the names of operators begin whose outputs have no shape."""


class Seen:
    """What a run shows.

    Attributes:
        values: of shapes, indices and axes, by name.
        shapes: of every tensor.
    """

    def __init__(self, feed: Feed, found: Feed, constants: Mapping[str, tuple[int, ...]]) -> None:
        shown = {name: array for name, array in found.items() if not name.startswith(_SHAPE_OF)}
        shapes = {name[len(_SHAPE_OF) :]: array for name, array in found.items() if name.startswith(_SHAPE_OF)}
        self.values = {**feed, **shown}
        self.shapes = {
            **constants,
            **{name: array.shape for name, array in feed.items()},
            **{name: tuple(array.tolist()) for name, array in shapes.items()},
        }


def seen(model: onnx.ModelProto, path: Path, feeds: list[Feed]) -> list[Seen]:
    """Return what a run with each of ``feeds`` shows of ``model``, whose weights lie where ``path`` does.

    Raises what ONNX Runtime does.
    """
    graph = model.graph
    constants = {each.name: tuple(each.dims) for each in graph.initializer}
    constants.update({each.values.name: tuple(each.dims) for each in graph.sparse_initializer})
    wanted = dict.fromkeys(name for node in graph.node for name in needed(node) if name not in feeds[0])
    shapes = [
        onnx.helper.make_node("Shape", [name], [_SHAPE_OF + name])
        for node in graph.node
        if not node.op_type.startswith(_NO_TENSORS)
        for name in node.output
        if name
    ]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.node.extend(shapes)
    del probe.graph.output[:]
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in (*wanted, *(each.output[0] for each in shapes))
    )
    beside = path.with_name(".rows.onnx")
    try:
        beside.write_bytes(probe.SerializeToString())
        runner = OnnxRuntimeRunner(
            beside, options={"graph_optimization_level": "disable"}, where="the model with its shapes", checked=True
        )
        return [Seen(feed, runner(feed), constants) for feed in feeds]
    finally:
        beside.unlink(missing_ok=True)


def needed(node: onnx.NodeProto) -> list[str]:
    """Return the names whose values say where, and sizes; and what sizes are compared with, and counted to."""
    name = operator(node)
    found = [node.output[0]] if name in SIZES else []
    found += [node.input[place] for place in INDICES.get(name, ()) if place < len(node.input)]
    found += node.input if name in ("Equal", "Range") else ()
    return [each for each in found if each]
