"""Parallel branches that are one convolution (RepVGG, Ding et al. 2021, arXiv 2101.03697).

    conv_a(x) + conv_b(x) + (s x + t)  =  conv(x)   with   W = W_a + W_b⁺ + diag(s)⁺,   b = b_a + b_b + t

where ⁺ places a smaller kernel at the tap of the larger one that reads the same cells. The identity is a
1x1 kernel. All branches must read the same value with the same strides and see the same padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.operators.maps import data_input
from normdeploy.fold.operators.table import run, states
from normdeploy.fold.plan import Plan, Step
from normdeploy.fold.proof.commute import TOLERANCE
from normdeploy.graph import operator


@dataclass(frozen=True)
class Window:
    """Where a convolution looks: per spatial axis the kernel, dilation, stride and both pads."""

    kernel: tuple[int, ...]
    dilations: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """One summand: a convolution (``node`` a Conv), an affine map, or the value itself (``node`` None)."""

    node: ir.Node | None
    data: ir.Value
    map: AffineMap | None = None

    @property
    def is_conv(self) -> bool:
        """Return True if the branch is a convolution."""
        return self.node is not None and self.map is None


@dataclass(frozen=True)
class Merger:
    """What a sum becomes: one convolution in place of all branches, with its weight and bias."""

    total: ir.Node
    into: ir.Node
    branches: tuple[Branch, ...]
    weight: Edit
    bias: Edit | None


def merger(state: GraphState, total: ir.Node) -> Merger:
    """Return the one convolution that ``total``, an Add or Sum, is; a refusal where it is not."""
    branches = [_branch(state, value, total) for value in total.inputs]
    convs = [branch for branch in branches if branch.is_conv]
    if not convs or any(branch.data is not branches[0].data for branch in branches):
        raise Refused("NF214", "its branches are not convolutions and maps of one value", total)
    steps = {branch.node: _step(state, branch.node) for branch in convs}
    main = max(convs, key=lambda branch: int(np.prod(_window(steps[branch.node]).kernel)))
    found = _merged(state, total, branches, main, steps)
    for edit in (found.weight, found.bias):
        if edit is not None:
            edit.require_storable()
    return found


def _branch(state: GraphState, value: ir.Value | None, total: ir.Node) -> Branch:
    if value is None:
        raise Refused("NF013", "a branch is missing", total)
    node = value.producer()
    if node is None or node not in state.order or len(value.uses()) > 1 or value.is_graph_output():
        return Branch(None, value)
    if states(node).merges and node.inputs[0] is not None:
        return Branch(node, node.inputs[0])
    if node in state.maps:
        return Branch(node, data_input(state.view, node), state.maps[node])
    return Branch(None, value)


def _step(state: GraphState, node: ir.Node | None) -> Step:
    assert node is not None
    state.view.require_known_attributes(node)
    return Step(state.view, node, Plan(node, state.committed))


def _merged(
    state: GraphState,
    total: ir.Node,
    branches: Sequence[Branch],
    main: Branch,
    steps: dict[ir.Node | None, Step],
) -> Merger:
    del state
    step = steps[main.node]
    base, window, groups = _weight(step), _window(step), step.attr("group", 1)
    weight, bias = np.zeros(base.shape), np.zeros(base.shape[0])
    for branch in branches:
        other = steps.get(branch.node) if branch.is_conv else None
        if other is not None:
            part, where = _weight(other), _window(other)
            if other.attr("group", 1) != groups or part.shape[:2] != base.shape[:2]:
                raise other.refuse("NF214", "the branches have different groups")
            bias = bias + _bias(other)
        else:
            part, shift = _as_kernel(step, branch, base.shape, groups)
            where = Window(
                (1,) * len(window.kernel), window.dilations, (1,) * len(window.kernel), (0,) * len(window.pads)
            )
            bias = bias + shift
        weight[(slice(None), slice(None), *_taps(step, window, where))] += part
    dtype = step.edit(1)
    assert dtype is not None
    assert main.node is not None
    new_bias = Edit(None, dtype.dtype, shift=bias) if np.any(bias) or step.input(2) is not None else None
    return Merger(total, main.node, tuple(branches), Edit(None, dtype.dtype, shift=weight), new_bias)


def _weight(step: Step) -> Array:
    edit = step.edit(1)
    if edit is None:
        raise step.refuse("NF101", "its weight is not constant")
    return edit.exact()


def _bias(step: Step) -> Array | float:
    edit = step.edit(2)
    if edit is None and step.input(2) is not None:
        raise step.refuse("NF101", "its bias is not constant")
    return 0.0 if edit is None else edit.exact()


def _window(step: Step) -> Window:
    shape = step.view.require_shape(step.data(1), step.node)
    kernel = tuple(int(dim) for dim in shape[2:] if isinstance(dim, int))
    if step.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise step.refuse("NF214", "its padding depends on the input (auto_pad)")
    ones, zeros = (1,) * len(kernel), (0,) * 2 * len(kernel)
    return Window(
        kernel,
        tuple(step.attr("dilations") or ones),
        tuple(step.attr("strides") or ones),
        tuple(step.attr("pads") or zeros),
    )


def _taps(step: Step, large: Window, small: Window) -> tuple[slice, ...]:
    """Return where the small kernel sits in the large one so that both read the same cells."""
    taps, spatial = [], len(large.kernel)
    if large.strides != small.strides:
        raise step.refuse("NF214", "the branches have different strides")
    for axis in range(spatial):
        dilation, span = large.dilations[axis], large.kernel[axis] - small.kernel[axis]
        if small.kernel[axis] > 1 and small.dilations[axis] != dilation:
            raise step.refuse("NF214", "the branches have different dilations")
        before = large.pads[axis] - small.pads[axis]
        after = large.pads[spatial + axis] - small.pads[spatial + axis]
        first = before // dilation
        if before % dilation or not 0 <= first <= span or after != dilation * (span - first):
            raise step.refuse("NF214", "the branches see different padding")
        taps.append(slice(first, first + small.kernel[axis]))
    return tuple(taps)


def _as_kernel(step: Step, branch: Branch, shape: tuple[int, ...], groups: int) -> tuple[Array, Array | float]:
    """Return an identity or affine map as a 1x1 kernel and a bias."""
    channels = shape[0]
    if channels != groups * shape[1]:
        raise step.refuse("NF214", "an identity branch needs as many output as input channels")
    m = branch.map
    if m is not None and set(m.axes) - {1}:
        raise step.refuse("NF214", "the map of a branch varies over other axes than the channels")
    scale = np.broadcast_to(1.0 if m is None else m.scale.reshape(-1), (channels,))
    kernel = np.zeros((channels, shape[1], *(1,) * (len(shape) - 2)))
    kernel.reshape(channels, shape[1])[np.arange(channels), np.arange(channels) % shape[1]] = scale
    return kernel, 0.0 if m is None else np.broadcast_to(m.shift.reshape(-1), (channels,))


def residual(state: GraphState, found: Merger) -> float:
    """Return the largest relative error of a channel, all branches against the one convolution, on zeros and random
    values.

    Raises:
        Refused: it is too large, or the branches do not fit each other: the merger is not proven.
    """
    step = _step(state, found.into)
    window, shape = _window(step), _weight(step).shape
    sizes = [d * (k - 1) + 3 + i for i, (d, k) in enumerate(zip(window.dilations, window.kernel, strict=True))]
    x = np.random.default_rng(0).standard_normal((2, step.attr("group", 1) * shape[1], *sizes))
    x[0] = 0.0
    parts = [_run(state, branch, x) for branch in found.branches]
    if any(part.shape != parts[0].shape for part in parts):
        raise Refused("NF401", "validation: the branches have different sizes", found.total)
    bias = None if found.bias is None else found.bias.exact()
    merged = run(
        operator(found.into), _attributes(state, found.into), [x, found.weight.exact(), bias], state.view.opset
    )[0]
    axes = (0, *range(2, merged.ndim))
    error = np.abs(merged - sum(parts)).max(axis=axes)
    size = np.sum([np.abs(part) for part in parts], axis=0).max(axis=axes)
    worst = float(np.max(np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)))
    if not worst <= TOLERANCE:
        raise Refused("NF401", "validation: the merged convolution differs from its branches", found.total)
    return worst


def _run(state: GraphState, branch: Branch, x: Array) -> Array:
    if branch.map is not None:
        return branch.map(x)
    if branch.node is None:
        return x
    step = _step(state, branch.node)
    bias = step.edit(2)
    inputs = [x, _weight(step), None if bias is None else bias.exact()]
    return run(operator(branch.node), _attributes(state, branch.node), inputs, state.view.opset)[0]


def _attributes(state: GraphState, node: ir.Node) -> dict[str, object]:
    return {name: state.view.attr(node, name) for name in node.attributes}
