"""GridSample and DeformConv: they read an image at computed places, between its cells and beyond its borders.

What is read between cells is a sum of cells whose weights add up to 1, and to less where cells outside the image count
as 0. So a scale over channels passes always, and a shift only where nothing outside is read as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap
from normdeploy.fold.float64 import places
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators.biases import scale_bias
from normdeploy.fold.operators.linear import scale_input_channels
from normdeploy.fold.operators.rows import (
    Maps,
    Nature,
    Row,
    Shift,
    along,
    both_ways,
    only_first,
    require_not_over,
    vector,
)
from normdeploy.fold.operators.sizes import Known, Probing, Shape, fixed, spanned
from normdeploy.fold.plan import Step

# -- GridSample ------------------------------------------------------------------------------------


def grid_sample(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    """Pass a map over samples and channels, its shift where cells outside are borders or reflections."""
    del upward
    if not m.shifts_nothing and step.attr("padding_mode", "zeros") in ("zeros", b"zeros"):
        raise step.refuse("NF201", "cells outside the image are read as 0, so a shift does not pass")
    return require_not_over(step, m, range(2, m.rank))


def _grid_sample_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape] | None:
    """Return a shape for image and grid: a few cells, read at a few places, where no constant says else."""
    x, grid = (view.shape(value) for value in node.inputs[:2])
    if x is None or len(x) < 3:
        return None
    pinned, axes = spanned(maps), len(x) - 2
    channels = x[1] if isinstance(x[1], int) else pinned.get(1 - len(x), 2)
    at: Shape = (pinned.get(-len(x), 2), *range(2, 2 + axes), axes)
    if grid is not None and node.inputs[1] is not None and known(node.inputs[1]):
        at = fixed(view, node.inputs[1])
    return [(at[0], channels, *range(4, 4 + axes)), at]


# -- DeformConv ------------------------------------------------------------------------------------

_BIAS = 3


def deform_conv_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Scale the output channels of the weight, (out, in / groups, ...), and the bias, which also takes the shift."""
    scale, shift = vector(step, only_first(step, outs), axis=1)
    step.scale_weight(1, left=scale.reshape(-1, *(1,) * (step.rank(1) - 1)))
    scale_bias(step, scale, shift, _BIAS)
    return {}


def deform_conv_down(step: Step, ins: Maps) -> list[AffineMap | None]:
    """Scale the input channels of the weight."""
    scale, shift = vector(step, only_first(step, ins), axis=1)
    if np.any(shift):
        raise step.refuse("NF201", "cells outside the image are read as 0, so a shift does not pass")
    scale_input_channels(step, scale)
    return [None]


def _deform_conv_shapes(view: View, node: ir.Node, maps: Sequence[AffineMap], known: Known) -> list[Shape] | None:
    """Return a shape for image, offsets and mask: a few cells of one sample, where no constant says else."""
    del maps
    weight = fixed(view, node.inputs[1])
    if len(weight) < 3:
        return None
    count, axes = int(np.prod(weight[2:])), len(weight) - 2
    sets = view.attr(node, "offset_group", 1)
    stored = [fixed(view, value) for value in node.inputs[2:5:2] if value is not None and known(value)]
    batch, _, *cells = next(iter(stored), (1, 0, *range(2, 2 + axes)))
    x = (batch, weight[1] * view.attr(node, "group", 1), *range(4, 4 + axes))
    shapes = [x, weight, (batch, sets * count * axes, *cells), weight[:1], (batch, sets * count, *cells)]
    return shapes[: len(node.inputs)]


ROWS = (
    Row(
        ("GridSample",), **both_ways(grid_sample), since=16, nature=Nature.LINEAR, evaluate=places.grid_sample,
        probing=Probing(shapes=_grid_sample_shapes),
    ),
    Row(
        ("DeformConv",), deform_conv_up, deform_conv_down, since=19, nature=Nature.LINEAR, heavy=True,
        shift=Shift.TAKEN, parameters={1: along(0), _BIAS: along()}, evaluate=places.deform_conv, any_dtype=(1,),
        probing=Probing(shapes=_deform_conv_shapes),
    ),
)  # fmt: skip
