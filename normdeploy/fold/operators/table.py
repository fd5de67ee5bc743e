"""The one table of operators: what passes through what. A new operator is one rule and one row here."""

from __future__ import annotations

from normdeploy.fold.operators import linear, movers, norms, poolers, recurrent
from normdeploy.fold.operators.rows import Row, both_ways, unchanged, unchanged_down

_STATISTICS = "it divides by statistics of its own input"

TABLE: dict[str, Row] = {
    # operators with weights absorb maps
    "Conv": Row(linear.conv_up, linear.conv_down, heavy=True),
    "ConvTranspose": Row(linear.conv_transpose_up, linear.conv_transpose_down, heavy=True),
    "Gemm": Row(linear.gemm_up, linear.gemm_down, heavy=True),
    "MatMul": Row(linear.matmul_up, linear.matmul_down, heavy=True),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent.ROW),
    # the same to every element
    "Identity": Row(unchanged, unchanged_down),
    "Dropout": both_ways(poolers.dropout),
    "Cast": both_ways(poolers.cast),
    # axes are renamed
    "Reshape": both_ways(movers.reshape),
    "Flatten": both_ways(movers.reshape),
    "Squeeze": both_ways(movers.squeeze),
    "Unsqueeze": both_ways(movers.unsqueeze),
    "Transpose": both_ways(movers.transpose),
    "Expand": both_ways(movers.expand),
    "Tile": both_ways(movers.tile),
    # elements are picked or laid side by side
    "Slice": Row(movers.slice_up, movers.slice_down),
    "Split": Row(movers.split_up, movers.split_down),
    "Concat": Row(movers.concat_up, movers.concat_down),
    "Gather": Row(movers.gather_up, movers.gather_down),
    "DepthToSpace": both_ways(movers.depth_to_space),
    "SpaceToDepth": both_ways(movers.space_to_depth),
    # averages, whose weights sum to 1
    "AveragePool": both_ways(poolers.average_pool),
    "GlobalAveragePool": both_ways(poolers.global_pool),
    "ReduceMean": both_ways(poolers.reduce_mean),
    "Resize": both_ways(poolers.resize),
    "Upsample": both_ways(poolers.resize),
    "Pad": both_ways(poolers.pad),
    # what reads the shape alone sees no map
    "Shape": Row(down=lambda step, ins: [None]),
    "Size": Row(down=lambda step, ins: [None]),
    # sums of branches
    "Add": Row(poolers.sum_up, poolers.sum_down),
    "Sub": Row(poolers.sum_up, poolers.sum_down),
    "Sum": Row(poolers.sum_up, poolers.sum_down),
    # norms over trailing axes absorb what scales their output
    "LayerNormalization": Row(up=norms.layer_norm_up, why=_STATISTICS),
    "RMSNormalization": Row(up=norms.layer_norm_up, why=_STATISTICS),
    "SimplifiedLayerNormalization": Row(up=norms.layer_norm_up, why=_STATISTICS),
    "GroupNormalization": Row(up=norms.group_norm_up, why=_STATISTICS),
    "InstanceNormalization": Row(up=norms.instance_norm_up, why=_STATISTICS),
    # not linear, but some maps commute with them
    "MaxPool": both_ways(poolers.max_pool),
    "GlobalMaxPool": both_ways(poolers.max_pool),
    "Relu": both_ways(poolers.positively_homogeneous),
    "LeakyRelu": both_ways(poolers.positively_homogeneous),
    "PRelu": both_ways(poolers.prelu),
}

SHAPE_READERS = frozenset({"Shape", "Size"})
"""Operators to which all values of one shape are the same."""

HEAVY = frozenset(name for name, row in TABLE.items() if row.heavy)
"""Operators whose arithmetic dominates: no plan may add one."""
