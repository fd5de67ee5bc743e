"""GroupNorm as exporters write it: the channels reshaped into groups, a norm of each, and back.

GN(x) = reshape(norm(reshape(x, [N, G, -1])), shape(x))           (Wu & He 2018, arXiv 1803.08494)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm.region import Norm
from normdeploy.fold.layernorm.spellings import Core
from normdeploy.fold.layernorm.targets import operator_type
from normdeploy.fold.layernorm.values import first, made_by, only_reader
from normdeploy.fold.levels import Target
from normdeploy.graph import operator

INSTANCES = "InstanceNormalization"
"""The norm of each channel, which is that of each group where groups are its channels."""


def of_core(view: View, core: Core, target: Target | None) -> Norm | None:
    """Return the GroupNormalization whose groups ``core`` normalizes; None where it is another norm."""
    rank = view.rank(core.data)
    if core.kind != "LayerNormalization" or rank is None or core.axes != tuple(range(2, rank)):
        return None
    if core.bias is not None or np.any(core.scale != 1.0):
        return None  # they would repeat from group to group
    return _around(view, core.terminal, core.data, core.epsilon, target)


def of_instances(view: View, node: ir.Node, target: Target | None) -> Norm | None:
    """Return the GroupNormalization that an InstanceNormalization of groups is; None where it normalizes channels."""
    if operator(node) != INSTANCES or node.inputs[0] is None:
        return None
    return _around(view, node, node.inputs[0], float(view.attr(node, "epsilon", 1e-5)), target)


def _around(view: View, node: ir.Node, data: ir.Value, epsilon: float, target: Target | None) -> Norm | None:
    split, join = made_by(data, "Reshape"), only_reader(node.outputs[0])
    if split is None or join is None or operator(join) != "Reshape" or join.inputs[0] is not node.outputs[0]:
        return None
    x = first(split)
    whole, parts, after = view.shape(x), view.shape(data), view.shape(join.outputs[0])
    if whole is None or parts is None or whole != after or None in whole or len(whole) < 3 or len(parts) < 3:
        return None
    channels, groups = whole[1], parts[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups or parts[0] != whole[0]:
        return None
    op_type = operator_type("GroupNormalization", view.opset, target)
    scale, bias = (_over_channels(view, node, index, channels, groups) for index in (1, 2))
    return Norm(
        join, x, op_type, {"epsilon": epsilon, "num_groups": groups}, scale, bias, axes=tuple(range(1, len(whole)))
    )


def _over_channels(view: View, node: ir.Node, index: int, channels: int, groups: int) -> np.ndarray:
    """Return the scale (1) or bias (2) of the norm of groups, for each channel."""
    if operator(node) != "InstanceNormalization":
        return np.full(channels, 1.0 if index == 1 else 0.0)
    vector = view.exact(node.inputs[index])
    if vector is None:
        raise Refused("NF101", "the scale and bias of its groups are not constant", node)
    return np.repeat(vector, channels // groups)
