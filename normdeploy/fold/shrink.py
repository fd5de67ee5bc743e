"""How large the probes of the proof are: as small as the operator allows, never smaller than what pins them.

An axis is pinned by a map that varies over it, by a constant that spans it, by a kernel that must fit.
What nothing pins gets a small size of its own, at least 2, different from its neighbours', so that a rule
that takes one axis for another cannot pass by accident.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.view import Dim, View
from normdeploy.graph import operator

Maps = Mapping[ir.Value, AffineMap]
Known = Callable[[ir.Value], bool]

_ELEMENTWISE = frozenset(
    {"BatchNormalization", "Add", "Sub", "Mul", "Div", "Neg", "Sum", "Relu", "LeakyRelu", "PRelu", "Identity", "Cast"}
    | {"Dropout"}
)
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})
_GLOBAL = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
_SAME_AXES = _ELEMENTWISE | _GLOBAL | {"Concat", "Split", "MaxPool", "AveragePool"}
_BLOCKED = frozenset({"DepthToSpace", "SpaceToDepth"})
_ROWS = 3
"""Rows of a matrix probe, at least: enough that no channel's products cancel in all of them."""


def input_shapes(view: View, node: ir.Node, maps: Maps, known: Known) -> list[tuple[int, ...]]:
    """A shape to probe each input of ``node`` with; empty for absent and constant inputs."""
    row = TABLE.get(node.op_type)
    if row is not None and row.shapes is not None:
        return row.shapes(view, node)
    names: dict[str, int] = {}
    data = [value if value is not None and not known(value) else None for value in node.inputs]
    pinned = _pinned(view, node, maps, known)
    static = {dim for value in data if value for dim in view.shape(value) or () if isinstance(dim, int)}
    fresh = _fresh_sizes(static)
    return [() if value is None else _shape(view, node, value, maps, pinned, names, fresh) for value in data]


def symbol_sizes(view: View, node: ir.Node, maps: Maps, known: Known) -> dict[str, int]:
    """What each named dimension of the data inputs of ``node`` stands for in :func:`input_shapes`."""
    found: dict[str, int] = {}
    for value, shape in zip(node.inputs, input_shapes(view, node, maps, known), strict=True):
        if value is not None and shape:
            dims = view.shape(value) or ()
            found |= {dim: size for dim, size in zip(dims, shape, strict=True) if isinstance(dim, str)}
    return found


def _shape(
    view: View,
    node: ir.Node,
    value: ir.Value,
    maps: Maps,
    pinned: Mapping[int, int],
    names: dict[str, int],
    fresh: Iterator[int],
) -> tuple[int, ...]:
    dims: tuple[Dim, ...] = view.shape(value) or (None,) * _rank(view, node, value, maps)
    rank = len(dims)
    sizes = []
    for axis, dim in enumerate(dims):
        size = _fixed(view, node, axis, rank, dim, pinned)
        if size is None:
            size = (
                _varied(maps.get(value), axis, rank)
                or (names.get(dim) if isinstance(dim, str) else None)
                or next(fresh)
            )
            if isinstance(dim, str):
                names[dim] = size
        sizes.append(size)
    if operator(node) == "Reshape":
        _make_divisible(view, node, dims, sizes, names)
    return tuple(sizes)


def _varied(m: AffineMap | None, axis: int, rank: int) -> int | None:
    """The size over which the map of the value itself varies, where inference knows none."""
    return m.size(axis) if m is not None and m.rank == rank and axis in m.axes else None


def _make_divisible(view: View, node: ir.Node, dims: tuple[Dim, ...], sizes: list[int], names: dict[str, int]) -> None:
    """Let the fixed axes of the result of a Reshape fit: a symbol of the input may be a multiple (``3*B``)."""
    after = _reshaped(view, node)
    fixed = math.prod(dim for dim in after if isinstance(dim, int))
    known = math.prod(dim for dim in dims if isinstance(dim, int))
    loose = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if not loose:
        return
    kept = {dim for dim in after if isinstance(dim, str)} & set(dims)
    alone = [axis for axis in loose if dims[axis] not in kept]
    if after and alone and all(isinstance(dim, int) or dim in kept for dim in after):
        sizes[alone[0]] = fixed // known  # nothing else fits
        for axis in alone[1:]:
            sizes[axis] = 1
    else:
        parts = [dim for dim in after if not isinstance(dim, int) and dim not in names]
        # One symbol may be taken apart: T*B into T and B.
        sizes[loose[0]] *= fixed // math.gcd(fixed, known) * 3 ** max(len(parts) - 1, 0)
    if isinstance(name := dims[loose[0]], str):
        names[name] = sizes[loose[0]]


def _reshaped(view: View, node: ir.Node) -> tuple[Dim, ...]:
    """The shape behind a Reshape, by its own word where inference knows less."""
    after = view.shape(node.outputs[0])
    target = view.array(node.inputs[1])
    if target is None or (after is not None and all(isinstance(dim, int) for dim in after)):
        return after or ()
    told = after or (None,) * target.size
    return tuple(int(size) if size > 0 else dim for size, dim in zip(target, told, strict=True))


def _fixed(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    """The size that operator, maps and constants leave for ``axis``; None where any will do."""
    behind = axis - rank
    if operator(node) in _WINDOWED and axis != 1:
        return 1 if axis == 0 else _window_sizes(view, node, rank - 2)[axis - 2]
    if operator(node) in _GLOBAL and axis != 1:
        return axis + 2
    if operator(node) in _ELEMENTWISE or (operator(node) == "Concat" and axis != view.attr(node, "axis", 1) % rank):
        return 1 if dim == 1 else pinned.get(behind) or _small_size(behind, pinned)
    if operator(node) in _BLOCKED and axis > 1:
        return (axis + 1) * (int(view.attr(node, "blocksize", 1)) if operator(node) == "SpaceToDepth" else 1)
    if operator(node) in ("MatMul", "Gemm") and behind not in pinned:
        return max(_ROWS, 2 + axis) if axis >= rank - 2 else (1 if dim == 1 else 2 + axis)
    if dim is None or isinstance(dim, str):
        return pinned.get(behind)
    return dim


def _small_size(behind: int, pinned: Mapping[int, int]) -> int:
    """A size of its own for an axis that nothing pins, the same wherever values are aligned at their last axes."""
    sizes = (size for size in itertools.count(2) if size not in pinned.values())
    return next(itertools.islice(sizes, -behind - 1, None))


def _pinned(view: View, node: ir.Node, maps: Maps, known: Known) -> dict[int, int]:
    """Sizes that maps and constants ask for, by axis counted from the back."""
    data = next((value for value in node.inputs if value is not None and not known(value)), None)
    if data is None:
        return {}
    pin = _PINS.get(operator(node))
    sizes = _by_maps(node, maps) if operator(node) in _SAME_AXES else {}
    return sizes | (pin(view, node, _rank(view, node, data, maps), maps, known) if pin is not None else {})


def _by_maps(node: ir.Node, maps: Maps) -> dict[int, int]:
    """What the maps on all sides vary over."""
    around = [maps[value] for value in (*node.inputs, *node.outputs) if value is not None and value in maps]
    return {axis - m.rank: m.size(axis) for m in around for axis in m.axes}


def _by_constants(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del rank, maps
    sizes: dict[int, int] = {}
    for value in node.inputs:
        if value is not None and known(value):
            sizes |= _trailing(view.shape(value))
    return sizes


def _by_pieces(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """All inputs share the other axes: one that is 1 in any of them is 1 in those that do not tell."""
    axis = view.attr(node, "axis", 1) % rank - rank
    ones = {i - rank: 1 for value in node.inputs for i, n in enumerate(view.shape(value) or ()) if n == 1}
    return {i: n for i, n in (ones | _by_constants(view, node, rank, maps, known)).items() if i != axis}


def _by_target(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """What an Expand leaves as it is."""
    del rank, maps, known
    target = view.array(node.inputs[1])
    return {} if target is None else _trailing(target.tolist())


def _trailing(shape: Sequence[Dim] | None) -> dict[int, int]:
    """The axes of ``shape`` that are longer than 1."""
    sizes = list(shape or ())
    return {i - len(sizes): n for i, n in enumerate(sizes) if isinstance(n, int) and n > 1}


def _by_channels(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    channels = view.shape(node.inputs[1])
    return {1 - rank: int((channels or (1,))[0] or 1)}


def _by_scale(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del rank, maps, known
    return _trailing(view.shape(node.inputs[1]))


def _by_kernel(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    weight = view.shape(node.inputs[1]) or (1, 1)
    per_group = int(weight[1] or 1) * int(view.attr(node, "group", 1))
    return {1 - rank: per_group if operator(node) == "Conv" else int(weight[0] or 1)}


def _by_squeezed(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    return {axis % rank - rank: 1 for axis in view.parameter(node, "axes", 1) or ()}


def _by_indices(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """One more cell than the indices need."""
    del maps, known
    indices = view.array(node.inputs[1])
    if indices is None or not indices.size:
        return {}
    return {view.attr(node, "axis", 0) % rank - rank: int(max(indices.max(), -indices.min() - 1)) + 2}


def _by_matrix(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    """The batch by what maps vary over, and what is summed over by the weight."""
    del rank
    batch = {axis: size for axis, size in _by_maps(node, maps).items() if axis < -2}
    right = node.inputs[1] is not None and known(node.inputs[1])
    weight = view.shape(node.inputs[int(right)]) or ()
    batch |= {axis: size for axis, size in _trailing(weight).items() if axis < -2}
    inner = weight[-2 if right and len(weight) > 1 else -1] if weight else 1
    return batch | {-1 if right else -2: int(inner or 1)}


def _by_gemm(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del rank, maps, known
    across = view.attr(node, "transA", 0)
    weight = view.shape(node.inputs[1]) or (None, None)
    sizes = {-2 if across else -1: int(weight[1 if view.attr(node, "transB", 0) else 0] or 1)}
    c = view.shape(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if c is not None and len(c) == 2 and isinstance(c[0], int) and c[0] > 1:
        sizes[-1 if across else -2] = c[0]
    return sizes


Pin = Callable[[View, ir.Node, int, Maps, Known], dict[int, int]]

_PINS: dict[str, Pin] = {
    **dict.fromkeys(_ELEMENTWISE, _by_constants),
    "Concat": _by_pieces,
    "Expand": _by_target,
    "BatchNormalization": _by_channels,
    "GroupNormalization": _by_channels,
    "InstanceNormalization": _by_channels,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _by_scale),
    "Conv": _by_kernel,
    "ConvTranspose": _by_kernel,
    "Squeeze": _by_squeezed,
    "Gather": _by_indices,
    "MatMul": _by_matrix,
    "Gemm": _by_gemm,
}
"""What the constants of an operator pin, by axis counted from the back."""


def _rank(view: View, node: ir.Node, value: ir.Value, maps: Maps) -> int:
    """The rank of a data input; where inference knows none, what the operator says of it, or else the maps around."""
    rank = view.rank(value)
    if rank is None and operator(node) == "Gemm":
        rank = 2
    if rank is None and operator(node) in ("Conv", "ConvTranspose"):
        rank = view.rank(node.inputs[1]) if node.inputs[1] is not None else None
    if rank is None:
        rank = next((maps[v].rank for v in (*node.inputs, *node.outputs) if v is not None and v in maps), 2)
    return rank


def _window_sizes(view: View, node: ir.Node, spatial: int) -> list[int]:
    """Sizes, all different, at which every cell of the kernel meets a cell of the input, and windows reach all pads."""
    kernel = view.attr(node, "kernel_shape") or list((view.shape(node.inputs[1]) or ())[2:])
    strides, dilations = (view.attr(node, name) or [1] * spatial for name in ("strides", "dilations"))
    pads = view.attr(node, "pads") or [0] * 2 * spatial
    fixed = view.attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    wanted = view.attr(node, "output_shape")
    sizes: list[int] = []
    for axis, stride in enumerate(strides):
        span = int(dilations[axis]) * (int(kernel[axis]) - 1) + 1
        ends = (int(pads[axis]), int(pads[spatial + axis])) if fixed else None
        if operator(node) != "ConvTranspose":
            size = _window_size(span, stride, ends, view.attr(node, "ceil_mode", 0))
        elif wanted is None:
            size = _transposed_size(span, stride, ends)
        else:  # as many cells as make so many
            size = max(-((span - int(wanted[axis - spatial])) // stride) + 1, 1)
        while size in sizes:
            size += stride
        sizes.append(size)
    return sizes


def _window_size(span: int, stride: int, pads: tuple[int, int] | None, beyond: int) -> int:
    """One window lies inside, and the last ends where the pads do, or ``beyond`` them; None: where it pads the most."""
    smallest = max(span + stride - 1, 2)
    rest = span - sum(pads) + beyond if pads is not None else 1
    return smallest + (rest - smallest) % stride


def _transposed_size(span: int, stride: int, cut: tuple[int, int] | None) -> int:
    """So many cells at both ends as are cut into, and two in between: whole kernels, and what is between them."""
    low, high = cut if cut is not None else (max(span - stride, 0),) * 2
    return -(-low // stride) - (-high // stride) + 2


def _fresh_sizes(taken: set[int]) -> Iterator[int]:
    return (size for size in itertools.count(2) if size not in taken)
