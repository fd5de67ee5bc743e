"""Where 16 bits have no room for what a model computes: activations beyond the largest number, by module name.

The 16-bit graph is run in float32, so that every value is what it would be if there were room. Only the largest size
of each leaves the graph, so nothing is held that the model itself would not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normdeploy.disk import scratch
from normdeploy.errors import NormdeployError, listed
from normdeploy.graph import label, operator
from normdeploy.parity.feeds import Feed
from normdeploy.precision.decide import LARGEST
from normdeploy.precision.widen import widened
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import first_line

_MASKING = frozenset({"Add", "Sub", "Sum", "Min", "Max", "Where"})
"""Operators that join a mask to what it hides."""
_SHOWN = 5


@dataclass(frozen=True)
class Overflow:
    """A value of the graph that grows beyond the largest number of its type.

    Attributes:
        module: the module that makes it, by its PyTorch name.
        value: its name in the graph.
        dtype: its type.
        peak: its largest size.
        feed: the name of the feed on which it is so large.
    """

    module: str
    value: str
    dtype: ir.DataType
    peak: float
    feed: str

    def __str__(self) -> str:
        return f"{self.module} ({self.value} reaches {self.peak:.3g} on {self.feed!r})"


def overflow_notes(model: ir.Model, feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Return what is to be said of the overflows of ``model``: nothing, or one sentence that names the modules."""
    try:
        found = overflows(model, feeds)
    except (NormdeployError, OSError) as error:  # no kernel, no room: a note must not cost the deployment
        return (f"whether activations overflow in 16 bits is not known: {first_line(error)}",)
    if not found:
        return ()
    worst: dict[str, Overflow] = {}
    for each in found:
        if each.module not in worst or each.peak > worst[each.module].peak:
            worst[each.module] = each
    dtype, named = found[0].dtype, listed(worst.values(), _SHOWN)
    return (
        f"activations overflow {dtype.name.lower()}, whose largest number is {LARGEST[dtype]:.6g}, in {named}: "
        "deploy in bf16 or fp32, or scale what goes in",
    )


def overflows(model: ir.Model, feeds: Sequence[Feed]) -> tuple[Overflow, ...]:
    """Return every 16-bit value of ``model`` that some of ``feeds`` drives beyond the largest number of its type.

    In the order of the graph, each on the feed where it is largest. Values in the bodies of branches and loops are not
    looked at, nor what a mask hides: there, beyond the largest number is as good as at it.

    Args:
        model: a graph that computes in float16 or bfloat16; it is not changed.
        feeds: inputs in the dtypes of its own.

    Raises:
        UnavailableError: onnxruntime, or one of its kernels, is missing.
        InputError: it cannot run the graph in float32.
    """
    narrow = _narrow(model)
    if not narrow:
        return ()
    peaks = dict.fromkeys(narrow, (0.0, ""))
    for feed, found in _peaks(model, list(narrow), feeds):
        peaks = {name: max(known, (found[name], feed)) for name, known in peaks.items()}
    beyond = {name for name, value in narrow.items() if peaks[name][0] > LARGEST[_dtype(value)]}
    masked = _masked(model, {name: peak for name, (peak, _) in peaks.items()})
    return tuple(
        Overflow(label(node), name, _dtype(value), *peaks[name])
        for name, value in narrow.items()
        if name in beyond - masked and (node := value.producer()) is not None
    )


def _narrow(model: ir.Model) -> dict[str, ir.Value]:
    """Name → value, of the 16-bit values that nodes of the main graph make."""
    return {
        value.name: value for node in model.graph for value in node.outputs if value.name and _dtype(value) in LARGEST
    }


def _dtype(value: ir.Value) -> ir.DataType:
    return value.dtype or ir.DataType.UNDEFINED


def _peaks(model: ir.Model, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[tuple[str, dict[str, float]]]:
    """The name of each feed, with the largest size of each value on it; what is infinite in float32 too is no peak."""
    wide = widened(model)
    values = {str(value.name): value for node in wide.graph for value in node.outputs}
    del wide.graph.outputs[:]
    for index, name in enumerate(names):
        size = ir.node("Abs", [values[name]])
        peak = ir.node("ReduceMax", size.outputs, {"keepdims": 0})
        for node in (size, peak):
            node.name = node.outputs[0].name = f"normdeploy.{operator(node)}.{index}"
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            wide.graph.append(node)
        peak.outputs[0].shape = ir.Shape([])
        wide.graph.outputs.append(peak.outputs[0])
    with scratch() as folder:
        path = folder / "wide.onnx"
        ir.save(wide, path, external_data="wide.onnx.data")
        runner = OnnxRuntimeRunner(path)
        for feed in feeds:
            inputs = {name: _fed(array) for name, array in feed.arrays.items()}
            found = np.array(list(runner(inputs).values()), np.float64)
            yield feed.name, dict(zip(names, np.where(np.isfinite(found), found, 0.0).tolist(), strict=True))


def _fed(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _masked(model: ir.Model, peaks: dict[str, float]) -> set[str]:
    """The values that are beyond their limit by a mask alone: it lies exactly on the limit, where masks are cut."""
    found: set[str] = set()
    for node in model.graph:
        out, inputs = node.outputs[0], [value for value in node.inputs if value is not None]
        if operator(node) in _MASKING and _dtype(out) in LARGEST:
            limit = LARGEST[_dtype(out)]
            if any(value.name in found or _peak(value, peaks) == limit for value in inputs):
                found.add(str(out.name))
    return found


def _peak(value: ir.Value, peaks: dict[str, float]) -> float:
    if value.const_value is None or _dtype(value) not in LARGEST:
        return peaks.get(str(value.name), 0.0)
    return float(np.abs(value.const_value.numpy().astype(np.float64)).max(initial=0.0))
