"""NF200 to NF229: what an operator asks of a scale or a shift that is to pass it."""

from __future__ import annotations

from normdeploy.codes import Page

PAGES = (
    Page(
        "NF201", "cells outside the data are no data",
        "The operator reads cells outside of its input, which hold 0 (or another constant), or sees only a part of its "
        "kernel at the border; a query of an attention may see no key at all.",
        "Inside, a shift of the input is a constant in the output; at the border it is another one.",
        "BatchNorm, then a 3x3 convolution with padding 1: its scale goes, its shift stays as one Add.",
        "Put the norm behind the convolution, pad by reflection, or accept the Add.",
    ),
    Page(
        "NF202", "the constant that pads would have to change",
        "The value that Pad writes would have to be another one for each channel, or is not known.",
        "Pad has one constant for all channels.",
        "A BatchNorm in front of a Pad with zeros.",
        "Pad in front of the norm with the channel's mean, or put the norm behind.",
    ),
    Page(
        "NF203", "a shift would move a kink",
        "A shift meets an operator with a kink at 0, such as ReLU.",
        "ReLU(x + t) is no shift of ReLU(x).",
        "Conv, ReLU, BatchNorm, Sigmoid: only a scale could go up, and there is a shift.",
        "None without a change of the network.",
    ),
    Page(
        "NF204", "the scale must be positive",
        "A negative scale, or a scale of 0, meets an operator that selects by order or has two sides.",
        "max(-x) is -min(x), and ReLU(-x) is no multiple of ReLU(x).",
        "A BatchNorm with a negative gamma behind a MaxPool.",
        "None without a change of the network.",
    ),
    Page(
        "NF205", "a scale of 0 cannot be divided by",
        "The map has a channel whose scale is exactly 0, and the plan would have to divide by it.",
        "What is multiplied by 0 is lost: it cannot be made up for elsewhere.",
        "A BatchNorm with a gamma of 0 in one channel, in front of a constant Add.",
        "Prune the channel.",
    ),
    Page(
        "NF206", "the branches of a sum have different scales",
        "Maps come down on the operands of a sum, and their scales are not the same.",
        "s a + u b is a multiple of a + b only if s = u.",
        "Two BatchNorms that meet in an Add, whose result is the output.",
        "None without a change of the network.",
    ),
    Page(
        "NF207", "a shift does not pass a product",
        "A shift, or a scale that the product sums over, meets a product of two activations.",
        "(x + t) y is x y + t y: the second part is no constant.",
        "BatchNorm on the queries of an attention: its shift stays.",
        "None without a change of the network.",
    ),
    Page(
        "NF208", "the scales of queries and keys are no single number",
        "The scales of Q and K do not come to one number in every product, or only one of both has a scale over "
        "features.",
        "An attention has one scale for all products of queries and keys.",
        "BatchNorm over the features of Q alone, in front of an Attention operator.",
        "None without a change of the network.",
    ),
    Page(
        "NF209", "the scale of an attention is a positive float32 number",
        "The scale that the attention would have is zero, negative, out of range, or loses digits of float64 data.",
        "It is an attribute in float32, of which a root is taken.",
        "Queries and keys that are negated each for itself, in float64.",
        "None without a change of the network.",
    ),
    Page(
        "NF210", "the inputs of an attention are cached or packed",
        "The attention keeps keys and values from call to call, or has Q, K and V in one tensor.",
        "What is in the cache was made before the fold, or by another model.",
        "A decoder with past_key and past_value.",
        "Fold the model without its cache.",
    ),
    Page(
        "NF211", "a further output is used",
        "An output behind the first is read: the mask of a Dropout, the mean of a norm, the product of Q and K.",
        "The map acts on the first output, and changes the others in ways that have no weights.",
        "A Dropout whose mask is an output of the model.",
        "Export without that output.",
    ),
    Page(
        "NF212", "a cast narrows the values",
        "The map would act in a narrower type than it does now, or among integers.",
        "What it was computed with is rounded away in front of it.",
        "A float32 BatchNorm behind a Cast from float16.",
        "Export in one type.",
    ),
    Page(
        "NF213", "an equation that no rule reads",
        "The Einsum has an ellipsis, a letter twice in one term, or other than two operands.",
        "Which axis is summed over is not plain from its letters.",
        'Einsum "...ij,jk->...ik".',
        "Write the axes out, or use a MatMul.",
    ),
    Page(
        "NF214", "the branches are no single convolution",
        "A sum of branches that are not convolutions and maps of one value, or that see different strides, dilations, "
        "groups or pads.",
        "Parallel convolutions are one only if each of their taps reads the same cell (RepVGG).",
        "A 3x3 convolution with padding 1 and a 1x1 with padding 1, added up.",
        "None without a change of the network.",
    ),
    Page(
        "NF215", "the maps that meet act on different shapes",
        "Two maps whose results are read together act on tensors of different shape.",
        "The quotient of both is then no map of either.",
        "A BatchNorm over the channels and a Mul over the columns that meet in an Add.",
        "None without a change of the network.",
    ),
)  # fmt: skip
"""The pages, in the order of their codes."""
