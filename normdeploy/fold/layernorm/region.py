"""The proof of a recognition: the spelled region and the one operator, both run in float64.

Random rows, rows as small as epsilon, constant rows and rows with a huge mean are tried. Differences are
measured against what float64 itself loses in ``x - mean`` and in ``E[x²] - E[x]²`` at such means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.reader import Dim, Refused, View
from normdeploy.fold.layernorm.targets import SINCE
from normdeploy.fold.operators.table import run
from normdeploy.fold.proof.commute import TOLERANCE
from normdeploy.graph import is_of_onnx, operator

_SEED = 20160721
_PINNING = frozenset({"Reshape", "Expand", "Unsqueeze", "Squeeze", "Slice", "Concat", "InstanceNormalization"})
"""Operators whose constants may hold sizes of the data."""


@dataclass(frozen=True, eq=False)
class Norm:
    """The operator that a region is.

    Attributes:
        end: the node whose first output the region ends in.
        data: the value the region reads.
        kind: the operator.
        attributes: its attributes.
        scale: its scale, float64.
        bias: its bias, float64; None for an operator that has none or leaves it out.
        axes: the axes of ``data`` that are normalized together.
        perm: how ``data`` is transposed in front of it (and back behind it); None where it is not.
        missing: why it is to stay spelled out, as there is no such operator; None where there is.
    """

    end: ir.Node
    data: ir.Value
    kind: str
    attributes: dict[str, Any]
    scale: Array
    bias: Array | None
    axes: tuple[int, ...]
    perm: tuple[int, ...] | None = None
    missing: Refused | None = None

    @property
    def result(self) -> ir.Value:
        """Return the value that the operator is to make."""
        return self.end.outputs[0]

    def __call__(self, x: Array, opset: int) -> Array:
        """Return what the operator makes of ``x``, in float64."""
        parameters = [self.scale] if self.bias is None else [self.scale, self.bias]
        perm = self.perm or tuple(range(x.ndim))
        since = max(opset, SINCE.get(self.kind, 1))
        (y, *_) = run(self.kind, self.attributes, [x.transpose(perm), *parameters], since)
        return y.transpose(np.argsort(perm))


def inside(view: View, norm: Norm) -> list[ir.Node]:
    """Return the nodes between the data and the end of ``norm``, constants and what only computes shapes left out."""
    found: dict[ir.Node, None] = {}
    pending = [norm.end]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found[node] = None
        for value in node.inputs:
            producer = None if value is None or value is norm.data else value.producer()
            if producer is not None and value is not None and view.is_float(value) and not view.is_constant(value):
                pending.append(producer)
    return list(found)


def residual(view: View, norm: Norm) -> float:
    """Return the largest difference between region and operator, relative to what float64 can tell.

    Raises:
        Refused: they differ, or the region cannot be run.
    """
    sizes = _probe_sizes(view, norm)
    worst = 0.0
    for x in _probes(norm, tuple(sizes.values())):
        with np.errstate(all="ignore"):
            old, new = _Region(view, norm, x).value(norm.result), norm(x, view.opset)
        worst = max(worst, _difference(norm, x, old, new))
    return worst


def _difference(norm: Norm, x: Array, old: Array, new: Array) -> float:
    if old.shape != new.shape:
        raise Refused("NF401", f"validation: its shape {old.shape} would become {new.shape}", norm.end)
    centred = x - x.mean(axis=norm.axes, keepdims=True)
    variance = (centred**2).mean(axis=norm.axes, keepdims=True) + norm.attributes["epsilon"]
    with np.errstate(all="ignore"):
        lost = 1.0 + (x**2).max(axis=norm.axes, keepdims=True) / variance
        error = np.where(old == new, 0.0, np.abs(old - new)) / np.where(variance > 0, lost, 1.0)
    worst = float(np.max(np.where(np.isnan(old) & np.isnan(new), 0.0, error), initial=0.0))
    if not worst <= TOLERANCE:
        raise Refused("NF401", f"validation: relative error {worst:.2g}", norm.end)
    return worst


# -- probes ----------------------------------------------------------------------------------------


def _probe_sizes(view: View, norm: Norm) -> dict[int, int]:
    """Return a size for each axis: real where it is normalized or a constant may hold it, else small and like no
    other.
    """
    shape = view.require_shape(norm.data, norm.end)
    pinned = any(operator(node) in _PINNING for node in inside(view, norm))
    taken = {dim for dim in shape if isinstance(dim, int)}
    fresh = (size for size in itertools.count(2) if size not in taken)
    named: dict[Dim, int] = {}
    sizes = {}
    for axis, dim in enumerate(shape):
        if isinstance(dim, int) and (pinned or axis in norm.axes or dim == 1):
            sizes[axis] = dim
        else:
            sizes[axis] = named[dim] if isinstance(dim, str) and dim in named else next(fresh)
            named[dim] = sizes[axis]
    return sizes


def _probes(norm: Norm, shape: tuple[int, ...]) -> Iterator[Array]:
    random = np.random.default_rng(_SEED)
    x = random.standard_normal(shape)
    rows = tuple(1 if axis in norm.axes else size for axis, size in enumerate(shape))
    yield x
    yield x * math.sqrt(norm.attributes["epsilon"])
    # Whole numbers: every sum of them is exact, so that a constant row has exactly no variance in any spelling.
    yield np.broadcast_to(random.integers(-999, 999, rows), shape).astype(np.float64)
    yield 1e4 + x


class _Region:
    """The values of a region for one probe, computed when they are asked for."""

    def __init__(self, view: View, norm: Norm, x: Array) -> None:
        self.view, self.norm = view, norm
        self.known: dict[ir.Value, np.ndarray] = {norm.data: x}
        dims = view.require_shape(norm.data, norm.end)
        self.sizes = {dim: size for dim, size in zip(dims, x.shape, strict=True) if isinstance(dim, str)}

    def value(self, value: ir.Value) -> np.ndarray:
        """Return what ``value`` holds."""
        if value not in self.known:
            array = self.view.array(value)
            self.known[value] = self._computed(value) if array is None else _wide(array)
        return self.known[value]

    def _computed(self, value: ir.Value) -> np.ndarray:
        node = value.producer()
        if node is None or not is_of_onnx(node):
            raise Refused("NF402", f"validation: {value.name} comes from outside of the norm", self.norm.end)
        attributes = {name: self.view.attr(node, name) for name in node.attributes}
        if operator(node) == "Shape" and node.inputs[0] is not None and node.inputs[0] not in self.known:
            return self._shape(node.inputs[0])[slice(attributes.get("start", 0), attributes.get("end"))]
        inputs = [None if item is None else self.value(item) for item in node.inputs]
        try:
            results = run(operator(node), attributes, inputs, self.view.opset, len(node.outputs))
        except Exception as error:  # whatever the reference raises: what cannot be executed is not proven
            raise Refused(
                "NF402", f"validation: it cannot be executed ({type(error).__name__}: {error})", node
            ) from error
        return results[node.outputs.index(value)]

    def _shape(self, value: ir.Value) -> np.ndarray:
        dims: Sequence[Dim] = self.view.require_shape(value, self.norm.end)
        if any(dim is None or (isinstance(dim, str) and dim not in self.sizes) for dim in dims):
            raise Refused("NF402", f"validation: the shape of {value.name} is not known", self.norm.end)
        return np.array([self.sizes[dim] if isinstance(dim, str) else dim for dim in dims], np.int64)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind in "fV" or "float" in array.dtype.name else array
