"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm absorb from behind: what scales their output is their own scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.float64 import execute
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.operators import loose, sizes
from normdeploy.fold.operators.rows import (
    Maps,
    Nature,
    Parameters,
    Row,
    Written,
    all_but,
    along,
    only_first,
    require_not_over,
    vector,
)  # fmt: skip
from normdeploy.fold.plan import Step
from normdeploy.graph import operator


def layer_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass a map: ``s (gamma z + beta) + t = (s gamma) z + (s beta + t)``, over the normalized axes."""
    m = require_not_over(step, only_first(step, outs), range(step.attr("axis", -1) % step.rank()))
    scale = step.edit(1)
    if scale is None or (step.input(2) is not None and step.edit(2) is None):
        raise step.view.not_constant("its scale and bias are", step.node, *step.node.inputs[1:])
    factor, shift = _trimmed(m.scale), _trimmed(m.shift)
    bias = step.edit(2)
    if bias is not None:
        shape = _parameter_shape(step, bias, factor, shift)
        step.put(2, bias.scaled(left=np.broadcast_to(factor, shape)).shifted(np.broadcast_to(shift, shape)))
    elif np.any(shift):
        if operator(step.node) != "LayerNormalization":
            raise step.refuse("NF108", "it has no bias to take a shift")
        shape = _parameter_shape(step, scale, shift)
        step.put(2, Edit(None, scale.dtype, shift=np.broadcast_to(shift, shape).copy()))
    shape = _parameter_shape(step, scale, factor)
    step.put(1, scale.scaled(left=np.broadcast_to(factor, shape)))
    step.absorbed()
    return {}


def _parameter_shape(step: Step, old: Edit, *moved: Array) -> tuple[int, ...]:
    """Return the shape of a scale or bias that takes what ``moved`` varies over: as it was, or that of the normalized
    axes.

    The specification lets parameters broadcast against the data; to make a larger one of them takes fixed sizes.
    """
    if np.broadcast_shapes(old.shape, *(a.shape for a in moved)) == old.shape:
        return old.shape
    sizes = step.view.require_shape(step.data(), step.node)[step.attr("axis", -1) % step.rank() :]
    fixed = tuple(size for size in sizes if isinstance(size, int))
    if len(fixed) < len(sizes):
        raise step.refuse("NF014", "its parameters would have to grow to a size that is not fixed")
    if any(size != 1 for size in old.shape[: max(len(old.shape) - len(sizes), 0)]):
        raise step.refuse("NF304", "its parameters vary over an axis that it does not normalize")
    return fixed


def _trimmed(array: Array) -> Array:
    """Return ``array`` without leading axes of size 1."""
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def group_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Return the same over the channels, since opset 21; before, the scale was one number a group."""
    if step.view.opset < 21:
        raise step.refuse("NF303", "its scale and bias are not constant numbers for each channel")
    return instance_norm_up(step, outs)


def instance_norm_up(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """Pass a map: ``s (gamma z + beta) + t`` over the channels, as :func:`layer_norm_up` over the features."""
    factor, shift = vector(step, only_first(step, outs), axis=1)
    scale, bias = step.edit(1), step.edit(2)
    if scale is None or bias is None:
        raise step.view.not_constant("its scale and bias are", step.node, *step.node.inputs[1:])
    step.put(1, scale.scaled(left=factor))
    step.put(2, bias.scaled(left=factor).shifted(shift))
    step.absorbed()
    return {}


def tail_of(view: View, node: ir.Node) -> AffineMap | None:
    """Return the affine tail of a norm over trailing axes; None where the norm has none.

    Raises:
        Refused: its scale or bias is not constant, or a further output is used.
    """
    view.require_known_attributes(node)
    rank = view.require_rank(node.outputs[0], node)
    scale = view.exact(node.inputs[1])
    bias = view.exact(node.inputs[2]) if has_bias(node) else np.zeros(())
    if scale is None or bias is None:
        raise view.not_constant("its scale and bias are", node, *node.inputs[1:])
    tail = AffineMap.of(scale, bias, rank)
    if not tail.is_finite:
        raise Refused("NF105", "its scale or bias is not finite", node)
    return None if tail.is_identity else tail


def has_bias(node: ir.Node) -> bool:
    """Return whether a norm over trailing axes has a bias."""
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _layer_norm_writes(step: Step, axis: int) -> Written:
    """Refuse a norm with an affine: the mean of what it writes depends on the input; without, it is centred already."""
    try:
        bare = tail_of(step.view, step.node) is None
    except Refused:
        bare = False
    last = step.rank() - 1
    if not bare or axis != last or step.attr("axis", -1) % (last + 1) != last:
        raise step.refuse("NF325", "a norm with scale and bias writes into it (post-LN)")
    yield from ()


# -- BatchNormalization ----------------------------------------------------------------------------


def _batch_normalization(view: View, node: ir.Node) -> AffineMap | None:
    """Return the map ``gamma (x - mean) / sqrt(var + eps) + beta`` (Ioffe & Szegedy 2015, arXiv 1502.03167)."""
    _require_inference(view, node)
    rank = view.require_rank(node.inputs[0], node) if node.inputs[0] is not None else 0
    scale, bias, mean, var = (_channel_vector(view, node, index) for index in (1, 2, 3, 4))
    eps = float(np.float32(view.attr(node, "epsilon", 1e-5)))
    with np.errstate(all="ignore"):
        if np.any(var + eps <= 0):
            raise Refused(
                "NF106", "its running variance plus epsilon is not positive", node, "re-estimate its statistics"
            )
        factor = scale / np.sqrt(var + eps)
        channels = (-1, *(1,) * (rank - 2))
        return AffineMap.of(factor.reshape(channels), (bias - factor * mean).reshape(channels), rank)


def _require_inference(view: View, node: ir.Node) -> None:
    if view.attr(node, "training_mode", 0):
        raise Refused("NF301", "it is in training mode (training_mode=1)", node, _EVAL)
    if any(view.is_used(node, output) for output in range(1, len(node.outputs))):
        raise Refused("NF301", "its statistics are outputs: it is in training mode", node, _EVAL)
    if view.opset < 14 and sum(bool(out.name) for out in node.outputs) > 1:
        raise Refused("NF301", "it has more than one output, which means training mode", node, "export after .eval()")
    if view.opset < 7 and not view.attr(node, "is_test", 0):
        raise Refused("NF301", "it is in training mode (is_test=0)", node)
    if view.opset < 9 and not view.attr(node, "spatial", 1):
        raise Refused("NF303", "it normalizes every cell by statistics of its own (spatial=0)", node)


def _channel_vector(view: View, node: ir.Node, index: int) -> Array:
    array = view.array(node.inputs[index]) if index < len(node.inputs) else None
    if array is None:
        name = ("input", "scale", "bias", "mean", "variance")[index]
        raise view.not_constant(f"its {name} is", node, *node.inputs[index : index + 1])
    if array.ndim != 1:
        raise Refused("NF303", "its parameters are not vectors over the channels", node)
    return array.astype(np.float64)


def _added_up(attributes: dict[str, Any], inputs: list[np.ndarray | None]) -> tuple[dict[str, Any], Any]:
    """Return what is taken off is added, by its size."""
    mean = inputs[3]
    return attributes, [*inputs[:3], None if mean is None else -mean, inputs[4]]


# -- the rows --------------------------------------------------------------------------------------

_EVAL = "export the module after .eval()"
_STATISTICS = ("NF302", "it divides by statistics of its own input")
_TRAILING = sizes.Probing(pins=loose.by_rows, size=loose.shortened)
_PER_CHANNEL = sizes.Probing(pins=sizes.by_channels)
_PARAMETERS: Parameters = {1: all_but(), 2: along()}

ROWS = (
    Row(
        ("BatchNormalization",), norm=True, map=_batch_normalization, nature=Nature.LINEAR,
        evaluate=execute.batch_normalization, absolute=_added_up,
        probing=sizes.Probing(pins=sizes.by_channels, size=sizes.small_or_pinned, same_axes=True),
    ),
    # those over trailing axes absorb what scales their output
    Row(
        ("LayerNormalization",), up=layer_norm_up, why=_STATISTICS, norm=True, parameters=_PARAMETERS,
        spare_outputs=True, evaluate=execute.layer_normalization, probing=_TRAILING, centre=_layer_norm_writes,
    ),
    Row(
        ("RMSNormalization", "SimplifiedLayerNormalization"), up=layer_norm_up, why=_STATISTICS, norm=True,
        parameters=_PARAMETERS, spare_outputs=True, evaluate=execute.rms_normalization, probing=_TRAILING,
    ),
    # those of channels as well
    Row(
        ("GroupNormalization",), up=group_norm_up, why=_STATISTICS, norm=True, parameters=_PARAMETERS,
        evaluate=execute.group_normalization, probing=_PER_CHANNEL,
    ),
    Row(
        ("InstanceNormalization",), up=instance_norm_up, why=_STATISTICS, norm=True, parameters=_PARAMETERS,
        evaluate=execute.instance_normalization, probing=_PER_CHANNEL,
    ),
    Row(("SkipLayerNormalization",), why=_STATISTICS, norm=True),
)  # fmt: skip
