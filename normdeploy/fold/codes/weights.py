"""NF100 to NF129: the weights that would take a map, as they are stored."""

from __future__ import annotations

from normdeploy.codes import Page

PAGES = (
    Page(
        "NF101", "a parameter is not constant",
        "A weight, bias, statistic or other parameter is computed when the model runs.",
        "A fold changes what is stored; what is computed cannot be changed ahead of it.",
        "A convolution whose weight comes out of another network.",
        "Export in eval mode; replace a parametrization (weight norm, spectral norm) by the weight that it computes.",
    ),
    Page(
        "NF102", "a parameter is an input with a default value",
        "The parameter is an initializer that is also an input of the model, which a caller may override (from IR "
        "version 4 on).",
        "A weight that was folded would be overwritten by one that was not.",
        "A file that an old exporter wrote with keep_initializers_as_inputs=True.",
        "Fold with --inputs-are-constants and the names, or all, where no caller overrides them.",
    ),
    Page(
        "NF103", "the numbers are not floating-point",
        "What would take the map, or what it acts on, are integers.",
        "A scale by a fraction cannot be stored in integers.",
        "A Mul of an int64 tensor by a constant, behind a Gather from a table of integers.",
        "None is needed: integers of a graph are shapes and indices.",
    ),
    Page(
        "NF104", "a constant would enlarge what it meets",
        "The constant has a size where the tensor has 1, or the rank of the tensor is smaller.",
        "Such a Mul or Add is no map of its input: it makes a larger tensor of it.",
        "Add of (N, 1, H, W) and a constant (C, 1, 1).",
        "None without a change of the network.",
    ),
    Page(
        "NF105", "a number is not finite",
        "A scale, a shift or a map that was composed of several is infinite or NaN.",
        "No weight can hold it, and the original does not compute with it either.",
        "A BatchNorm with a running variance of NaN.",
        "Re-estimate the running statistics of the norms, and look at the checkpoint.",
    ),
    Page(
        "NF106", "the variance plus epsilon is not positive",
        "The running variance of a channel plus epsilon is zero or negative.",
        "Its root is no number to divide by.",
        "A BatchNorm with a running variance of -1, as a broken checkpoint has it.",
        "Re-estimate the running statistics of the norms, and look at the checkpoint.",
    ),
    Page(
        "NF107", "the map acts on nothing",
        "An axis of the constants is empty.",
        "There is nothing to fold, and nothing to prove it with.",
        "A BatchNorm over zero channels.",
        "None is needed.",
    ),
    Page(
        "NF108", "there is no bias to take a shift",
        "The operator has weights for the scale, but no bias: MatMul, Einsum, an RMSNorm.",
        "The shift stays as one Add, which most runtimes fuse with what stands before it.",
        "A Linear on a 3-D tensor, exported as MatMul without an Add, in front of a BatchNorm.",
        "None is needed.",
    ),
    Page(
        "NF109", "a dtype is not known",
        "The model does not tell the dtype of the output that a new bias or constant would have.",
        "A constant of another dtype makes the model invalid.",
        "A convolution behind an operator of another domain, with no value_info.",
        "Run ONNX's shape inference on the model, or declare the type as value_info.",
    ),
    Page(
        "NF110", "the weight is a vector",
        "The constant factor of the product has one axis only.",
        "What it makes has no axis of channels any more.",
        "MatMul of (N, K) and (K), whose result is (N).",
        "Give the weight a second axis of size 1.",
    ),
    Page(
        "NF111", "the folded weight overflows its dtype",
        "A number of the weight, with all maps in it, is larger than its dtype can hold.",
        "It would be stored as infinity.",
        "A float16 convolution with a BatchNorm whose scale is 1e6.",
        "Fold in float32 first: convert the original, or use --precision after the fold.",
    ),
    Page(
        "NF112", "the folded weight underflows its dtype",
        "Numbers of the weight, with all maps in it, are too small for its dtype, and their channel would notice.",
        "They would be stored as zero or with few digits.",
        "A float16 convolution with a BatchNorm whose scale is 1e-7.",
        "Fold in float32 first: convert the original, or use --precision after the fold.",
    ),
    Page(
        "NF113", "a shared weight is too large to copy",
        "Another operator reads the same weight, and it is larger than 64 MiB.",
        "A weight that one reader needs changed and another does not is copied first.",
        "A language model whose embedding table is also the weight of its head.",
        "Store two weights, if the memory is there.",
    ),
    Page(
        "NF114", "what would be left is no single operator",
        "What stays of the map is written neither as one Mul, one Add, nor in place of the norm that was there.",
        "A fold leaves no more operators than it found.",
        "A map over two axes of which one has an unknown size.",
        "None is needed.",
    ),
    Page(
        "NF115", "which channels a weight has is not known",
        "The row of the operator does not say which axes of this input tell output channels apart.",
        "The check of rounding compares each number with its channel.",
        "None is known.",
        "This is a mistake of normdeploy: report it with the model.",
    ),
    Page(
        "NF120", "a scale does not fit the scale of a quantized weight",
        "The weight is stored as integers with one scale for all, for blocks, or for other channels than the map's.",
        "A quantized weight is folded into its scale; it is never turned back into floats.",
        "A convolution with a per-tensor quantized weight in front of a BatchNorm.",
        "Quantize it per output channel, or fold before quantizing.",
    ),
    Page(
        "NF121", "the integers of a quantized weight cannot be turned",
        "The map has a negative or zero scale, and its integers (or 8-bit floats) have no room for their negatives.",
        "The scale of a quantized weight is positive, so the sign must go into the integers; -128 has no negative.",
        "An int8 weight that holds -128, in front of a BatchNorm with a negative gamma.",
        "Quantize to -127 … 127, or fold before quantizing.",
    ),
    Page(
        "NF122", "the operator rounds to integers",
        "The map meets QuantizeLinear, DequantizeLinear or arithmetic on integers.",
        "Rounding does not commute with a scale or a shift.",
        "A BatchNorm behind QLinearConv.",
        "Fold before quantizing.",
    ),
)  # fmt: skip
"""The pages, in the order of their codes."""
