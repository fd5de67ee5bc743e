"""How operators that slide a window are probed: every cell of the kernel must meet a cell, and every pad be read."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from normdeploy.fold.graph.reader import Dim, View
from normdeploy.fold.operators.sizes import Known, Maps, Probing


def _by_kernel(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    weight = view.shape(node.inputs[1]) or (1, 1)
    return {1 - rank: int(weight[1] or 1) * int(view.attr(node, "group", 1))}


def _by_transposed_kernel(view: View, node: ir.Node, rank: int, maps: Maps, known: Known) -> dict[int, int]:
    del maps, known
    return {1 - rank: int((view.shape(node.inputs[1]) or (1, 1))[0] or 1)}


def _rank(view: View, node: ir.Node, value: ir.Value) -> int | None:
    """Return the rank of the data, which the weight has too; that of a bias is 1."""
    if value is not node.inputs[0]:
        return 1
    return view.rank(node.inputs[1]) if node.inputs[1] is not None else None


def _window(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    del dim
    if axis == 1:
        return None
    return pinned.get(-rank, 1) if axis == 0 else _sizes(view, node, rank - 2, transposed=False)[axis - 2]


def _transposed(view: View, node: ir.Node, axis: int, rank: int, dim: Dim, pinned: Mapping[int, int]) -> int | None:
    del dim, pinned
    if axis == 1:
        return None
    return 1 if axis == 0 else _sizes(view, node, rank - 2, transposed=True)[axis - 2]


def _sizes(view: View, node: ir.Node, spatial: int, *, transposed: bool) -> list[int]:
    """Return sizes, all different, at which every cell of the kernel meets a cell of the input, and windows reach all
    pads.
    """
    kernel = view.attr(node, "kernel_shape") or list((view.shape(node.inputs[1]) or ())[2:])
    strides, dilations = (view.attr(node, name) or [1] * spatial for name in ("strides", "dilations"))
    pads = view.attr(node, "pads") or [0] * 2 * spatial
    fixed = view.attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    wanted = view.attr(node, "output_shape")
    sizes: list[int] = []
    for axis, stride in enumerate(strides):
        span = int(dilations[axis]) * (int(kernel[axis]) - 1) + 1
        ends = (int(pads[axis]), int(pads[spatial + axis])) if fixed else None
        if not transposed:
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
    """Return a size at which one window lies inside, and the last ends where the pads do, or ``beyond`` them."""
    smallest = max(span + stride - 1, 2)
    rest = span - sum(pads) + beyond if pads is not None else 1
    return smallest + (rest - smallest) % stride


def _transposed_size(span: int, stride: int, cut: tuple[int, int] | None) -> int:
    """Return so many cells at both ends as are cut into, and two in between: whole kernels, and what is between
    them.
    """
    low, high = cut if cut is not None else (max(span - stride, 0),) * 2
    return -(-low // stride) - (-high // stride) + 2


CONVOLUTION = Probing(pins=_by_kernel, size=_window, rank=_rank)
TRANSPOSED = Probing(pins=_by_transposed_kernel, size=_transposed, rank=_rank)
POOL = Probing(size=_window, same_axes=True)
