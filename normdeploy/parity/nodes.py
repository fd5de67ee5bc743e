"""Which node of a graph its runtime computes worst: each value against the float64 value of the node's own inputs.

So an error that a node only hands on is not its own. Values are made outputs of the model, which keeps a runtime from
fusing across them: what is blamed is the kernel of the node, not of a fusion around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from normdeploy.disk import scratch
from normdeploy.errors import NormdeployError
from normdeploy.graph import label
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import errors, is_float
from normdeploy.precision.decide import LARGEST
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error
from normdeploy.runtime.isolated import IsolatedRunner
from normdeploy.runtime.placement import CPU, Placement

Array = npt.NDArray[Any]

MOST_MEMORY = 1 << 30
"""Bytes of values that are held at once, where nothing else is asked for."""
OVERFLOWS = "overflows"
"""The word by which a node without room for its value is told from a kernel that is off."""
_SHAPED = frozenset({"Shape", "Size", "Constant", "ConstantOfShape", "Cast", "Identity"})
"""Operators that cannot be wrong by a kernel's arithmetic."""
_NAMED = re.compile(r"[\w./:-]+")


@dataclass(frozen=True)
class NodeError:
    """A node and its own error.

    Attributes:
        module: the PyTorch module that it came from.
        operator: its operator.
        node: its name.
        rms: RMS of the difference over RMS of the float64 value of its own inputs.
        max: largest difference over the largest size of that value.
        runtime: what ran it: ONNX Runtime, or the provider of it that was asked for.
        dtype: the 16-bit type whose largest number the float64 value is beyond; empty where it has room.
        peak: the largest size of that value, where it has not.
    """

    module: str
    operator: str
    node: str
    rms: float
    max: float
    runtime: str = "onnxruntime"
    dtype: str = ""
    peak: float = 0.0

    def __str__(self) -> str:
        if self.dtype:
            return f"{self.operator} {self.node} of {self.module} {OVERFLOWS} {self.dtype}: it reaches {self.peak:.3g}"
        return f"{self.operator} {self.node} of {self.module}, by {self.runtime}'s kernel, off by {self.rms:.2g}"


def worst_node(
    model: ir.Model,
    feed: Feed,
    options: Mapping[str, str] | None = None,
    *,
    max_memory: int = MOST_MEMORY,
    placement: Placement = CPU,
) -> NodeError | None:
    """Return the node of the main graph with the largest error of its own on ``feed``; None where none can be told.

    Args:
        model: what the runtime runs; it is not changed.
        feed: its inputs.
        options: of the session.
        max_memory: bytes of values to hold at once; the runtime is run as often as that takes.
        placement: where it runs, by which provider: each has kernels of its own.

    Raises CrashError where the runtime dies, and InputError where it refuses the model.
    """
    exact = Float64Runner(model)
    worst: NodeError | None = None
    for nodes in _chunks(model, _sizes(exact, feed), max_memory):
        found = _values(model, nodes, feed, options or {}, placement)
        for node in nodes:
            error = _own_error(exact, node, found)
            if error is not None and (worst is None or error.rms > worst.rms):
                worst = error
    if worst is None or placement == CPU:
        return worst
    return replace(worst, runtime=placement.name)


def rounded_alone(
    model: ir.Model, feed: Feed, most: float, *, max_memory: int = MOST_MEMORY
) -> dict[str, Array] | None:
    """Return what ONNX Runtime makes of ``feed`` where no node adds more than ``most`` to what it was given.

    So they differ from what float64 makes of ``model`` by what rounding leaves, however much that becomes behind it.
    None where a node is off by more, RMS or largest, or where that is not known of one that makes real numbers.

    Raises as :func:`worst_node` does.
    """
    exact, found = Float64Runner(model), dict[str, Array]()
    for nodes in _chunks(model, _sizes(exact, feed), max_memory):
        found = _values(model, nodes, feed, {}, CPU)
        for node in nodes:
            error = _own_error(exact, node, found)
            if _makes_real(node, found) if error is None else not max(error.rms, error.max) <= most:
                return None
    return found


def _makes_real(node: ir.Node, values: Mapping[str, Array]) -> bool:
    """Return True unless ``node`` is known to make whole numbers alone."""
    made = [values.get(str(value.name)) for value in node.outputs if value.name]
    return any(array is None or is_float(array.dtype.name) for array in made)


def named_in(text: str, model: ir.Model) -> str:
    """Return the module of the node that a runtime's message names; empty where it names none."""
    owners = {str(node.name): label(node) for node in model.graph.all_nodes() if node.name}
    return next((owners[word] for word in _NAMED.findall(text) if word in owners), "")


def stuck_at(model: ir.Model, feed: Feed, shapes: Mapping[str, Sequence[int]], taps: Mapping[str, str]) -> str:
    """Return the module where the graph cannot take ``feed``, or first makes another shape than the module did.

    ``shapes`` are those that the modules returned, ``taps`` their values in the graph. Empty where neither is so.
    """
    try:
        values = Float64Runner(model).run(feed.arrays, wanted=set(taps.values()))
    except NoFloat64Error as error:
        return named_in(error.where, model) or error.where
    for name, shape in shapes.items():
        value = values.get(taps.get(name, ""))
        if isinstance(value, np.ndarray) and value.shape != tuple(shape):
            return name
    return ""


def _sizes(exact: Float64Runner, feed: Feed) -> dict[str, int]:
    """Return the bytes of each value of the main graph."""
    sizes: dict[str, int] = {}

    def watch(node: ir.Node, _: Sequence[Any], outputs: Sequence[Any]) -> None:
        for value, array in zip(node.outputs, outputs, strict=False):
            sizes[str(value.name)] = array.nbytes if isinstance(array, np.ndarray) else 0

    try:
        exact.run(feed.arrays, watch=watch)
    except NoFloat64Error:
        return sizes  # up to there
    return sizes


def _chunks(model: ir.Model, sizes: Mapping[str, int], most: int) -> Iterator[list[ir.Node]]:
    """Cut the nodes that can be to blame into runs whose inputs and outputs fit into ``most`` bytes."""
    chunk: list[ir.Node] = []
    held = 0
    for node in model.graph:
        names = {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type in _SHAPED or not any(str(value.name) in sizes for value in node.outputs):
            continue
        size = sum(sizes.get(name, 0) for name in names)
        if chunk and held + size > most:
            yield chunk
            chunk, held = [], 0
        chunk.append(node)
        held += size
    if chunk:
        yield chunk


def _values(
    model: ir.Model, nodes: Sequence[ir.Node], feed: Feed, options: Mapping[str, str], placement: Placement
) -> dict[str, Array]:
    """Return what the runtime makes of the inputs and outputs of ``nodes``."""
    wanted = {str(value.name) for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}
    tapped = model.clone()
    present = {value.name for value in tapped.graph.outputs}
    made = [value for node in tapped.graph for value in node.outputs if value.name in wanted - present]
    tapped.graph.outputs.extend(value for value in made if isinstance(value.type, ir.TensorType))
    with scratch() as folder:
        path = folder / "tapped.onnx"
        ir.save(tapped, path, external_data="tapped.onnx.data")
        runner = IsolatedRunner(path, options=dict(options), placement=placement)
        try:
            return {**feed.arrays, **runner(feed.arrays)}
        finally:
            runner.close()


def _own_error(exact: Float64Runner, node: ir.Node, values: Mapping[str, Array]) -> NodeError | None:
    """Return the largest error of a node's real outputs; None where it has none, or an input is not known."""
    inputs: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
        elif str(value.name) in values:
            inputs.append(values[str(value.name)])
        elif value.const_value is not None:
            inputs.append(np.asarray(value.const_value.numpy()))
        else:
            return None
    try:
        wanted = exact.run_node(node, inputs)
    except (NormdeployError, KeyError):
        return None
    pairs = [(values.get(str(value.name)), array) for value, array in zip(node.outputs, wanted, strict=False)]
    found = [
        _error(node, actual, array)
        for actual, array in pairs
        if actual is not None and is_float(actual.dtype.name) and np.shape(array) == actual.shape
    ]
    return max(found, key=lambda each: each.rms, default=None)


def _error(node: ir.Node, actual: Array, wanted: Array) -> NodeError:
    dtype = actual.dtype.name
    off = errors(actual, wanted, dtype)
    # NaN or infinity that float64 has not, of the very same inputs: nothing is further off
    rms, largest = (off.rms, off.max) if off.finite else (np.inf, np.inf)
    found = NodeError(label(node), node.op_type, str(node.name), rms, largest)
    peak = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    beyond = not off.finite and peak > LARGEST.get(ir.DataType.from_numpy(actual.dtype), np.inf)
    return replace(found, dtype=dtype, peak=peak) if beyond else found
