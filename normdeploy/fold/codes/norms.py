"""NF300 to NF349: norms themselves, how they are spelled, and residual streams that are to be centred."""

from __future__ import annotations

from normdeploy.codes import Page

PAGES = (
    Page(
        "NF301", "it is in training mode",
        "The norm or dropout computes with the statistics or the mask of the batch.",
        "What it does depends on the other samples, so it is no map of one.",
        "torch.onnx.export of a module without .eval().",
        "Export the module after .eval().",
    ),
    Page(
        "NF302", "it divides by statistics of its own input",
        "The norm's mean and variance are computed when it runs: LayerNorm, GroupNorm, InstanceNorm, RMSNorm.",
        "Only its scale and bias are linear; the division by the root mean square is not.",
        "Any LayerNorm.",
        "Its scale and bias go with --layernorm affine, its mean with --layernorm centre.",
    ),
    Page(
        "NF303", "its parameters are not one number a channel",
        "The statistics, scale or bias are no vectors over the channels.",
        "The formula of the norm holds for one number a channel.",
        "A BatchNormalization of opset 7 with spatial=0.",
        "Export with opset 9 or newer.",
    ),
    Page(
        "NF304", "its parameters vary over an axis that it does not normalize",
        "The map would have to go into the scale and bias of a norm, and varies over another axis than they do.",
        "Scale and bias of a LayerNorm have the shape of the axes that it normalizes.",
        "A constant for each position behind a LayerNorm over the features.",
        "None without a change of the network.",
    ),
    Page(
        "NF310", "its variance is scaled",
        "The variance is divided by N - 1, or multiplied by another number than 1.",
        "LayerNormalization divides by N.",
        "x.std(-1) of PyTorch, which is unbiased by default, in a norm that is written out.",
        "Write it with unbiased=False if the network allows it.",
    ),
    Page(
        "NF311", "its epsilon stands elsewhere or is no float32 number",
        "Epsilon is added to the deviation instead of the variance, is negative, or needs float64.",
        "LayerNormalization adds a float32 epsilon to the variance.",
        "x / (x.std(-1) + eps), as the Annotated Transformer has it.",
        "None without a change of the network.",
    ),
    Page(
        "NF312", "its parts do not belong together",
        "The numerator is centred and its mean square is not, or the other way round; or both are of different values "
        "or axes.",
        "It looks like a norm and is another function.",
        "(x - mean(x)) / sqrt(mean(x * x) + eps).",
        "None without a change of the network.",
    ),
    Page(
        "NF313", "something inside of it is read by others",
        "The mean, the deviation or another value inside the norm has another reader or is an output.",
        "The whole region would have to stay beside the operator that takes its place.",
        "A network that returns the deviation of its input along with the norm.",
        "Compute that value again, or export without that output.",
    ),
    Page(
        "NF314", "it reads one type and makes another",
        "The types of the data and of the result are different.",
        "A norm of ONNX has one type for both.",
        "float16 data, cast to float32 inside a norm and never cast back.",
        "Cast the result back.",
    ),
    Page(
        "NF315", "the opset has no such norm",
        "ONNX has this norm from a later opset on.",
        "The opset of a model is never converted.",
        "An RMSNorm at opset 17 with --target onnx.",
        "Export with the opset that is named; RMSNormalization also folds with --target onnxruntime.",
    ),
    Page(
        "NF316", "the target would run it worse",
        "The runtime that was named has no kernel for this norm, or one that is less exact.",
        "TensorRT takes RMSNormalization apart; ONNX Runtime computes GroupNormalization as E[x²] - E[x]².",
        "--layernorm centre --target tensorrt.",
        "Fold for another target, or keep the norm as it is.",
    ),
    Page(
        "NF317", "the scale would stay in a map that has none",
        "The scale of the norm would join an Add, which would become a Mul and an Add.",
        "What was there may have gone up into this very norm, and would do so again without end.",
        "LayerNorm, Add of a constant, Sigmoid.",
        "None is needed.",
    ),
    Page(
        "NF320", "its stream cannot be centred",
        "A writer of the residual stream keeps a mean, or a reader sees it; the codes behind this one say which.",
        "The mean of a stream can go only if no writer brings one and no reader would miss it.",
        "A vision transformer whose tokens are pooled into a head without a last LayerNorm.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF321", "what reads the stream keeps the mean",
        "An operator reads the stream that is no norm over its features, and does not annihilate the mean.",
        "It would see other numbers than before.",
        "A head that is a Linear on the last hidden state, with no norm in between.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF322", "what writes into the stream cannot be centred",
        "An operator writes into the stream that has no weights over the features.",
        "Its output would keep its mean.",
        "A Sigmoid, or an LSTM, whose result is added to the stream.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF323", "the features do not stand along one axis",
        "On its way the stream has its features along two axes, broadcast, or mixed with others.",
        "A mean over the features is then no mean over one axis.",
        "A window attention that reshapes (N, T, C) so that C is cut in two.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF324", "a norm that reads the stream normalizes other axes",
        "A LayerNorm reads the stream over other axes than those that are centred.",
        "It takes off another mean.",
        "A LayerNorm over channels and positions of a stream of channels.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF325", "a norm with scale and bias writes into the stream",
        "The stream is written by the affine output of a LayerNorm (post-LN).",
        "The bias of that norm has a mean, and no weights behind it could take it off.",
        "BERT, whose LayerNorms stand behind the sums.",
        "Fold with --layernorm affine.",
    ),
    Page(
        "NF326", "its bias could not go",
        "The LayerNorm still has a bias, and an RMSNorm has none.",
        "Whatever reads the norm could not take the bias.",
        "A LayerNorm in front of a graph output.",
        "Fold with --layernorm affine.",
    ),
)  # fmt: skip
"""The pages, in the order of their codes."""
