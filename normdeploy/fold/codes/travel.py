"""NF001 to NF029: the way that a map takes through the graph, and the axes that it varies over."""

from __future__ import annotations

from normdeploy.codes import Page

PAGES = (
    Page(
        "NF001", "an operator that no affine map passes",
        "The map meets an operator for which neither direction has a rule: upward f(x) would have to become s f(x) + t "
        "by a change of x, downward f(s x + t) would have to become a map of f(x).",
        "Sigmoid, Softmax, Gelu and the like are not affine, so no change of weights before or behind them does the "
        "same. An operator of another domain counts as opaque too, whatever its name is.",
        "A BatchNorm between a Sigmoid and a graph output.",
        "None without a change of the network. If the operator is ONNX's own and affine, it lacks a row in the table: "
        "report it with the model.",
    ),
    Page(
        "NF002", "the value is an output",
        "The map would change a value that is an output of the model, or of the body or function that it stands in.",
        "Whoever runs the model reads that value, and must find in it what was there before.",
        "A model that returns the features before its last BatchNorm as well as what follows.",
        "Export without that output if nobody reads it.",
    ),
    Page(
        "NF003", "the value is an input",
        "The map went up to an input of the model, or of the body or function that it stands in.",
        "There are no weights behind it that could take the map: a caller brings the value.",
        "A BatchNorm on the raw input whose result goes into a Sigmoid.",
        "None in the model. A normalization of inputs can be done where the data is prepared.",
    ),
    Page(
        "NF004", "the value crosses the border of a body",
        "The map reaches a value that another graph makes or reads: the body of an If, Loop or Scan.",
        "A body may run never or many times, so a map is only moved inside the graph that it stands in.",
        "A BatchNorm in front of an If whose branches hold the convolutions.",
        "Export the branch that is needed, or a trace without control flow.",
    ),
    Page(
        "NF005", "other readers need the value as it is",
        "A value that would have to change has another reader, which does not ask for the same map.",
        "What is folded into the weights that make a value changes it for everyone who reads it.",
        "A skip connection that is taken between a convolution and its BatchNorm.",
        "Take the connection behind the norm, if the network allows it.",
    ),
    Page(
        "NF006", "nothing would be gained",
        "As many operators would be left as there are.",
        "A plan counts only if it takes work away; moving a norm from one place to another takes none.",
        "A per-channel Mul between two Sigmoids that could only join another Mul.",
        "None is needed.",
    ),
    Page(
        "NF007", "the search was given up",
        "All journeys in this graph together visited more operators than the limit allows.",
        "Norms in a long row, of which each would pass all the others, cost the square of their number.",
        "Thousands of maps in one row behind an operator that none of them passes.",
        "Report it with the model if the fold should have found more.",
    ),
    Page(
        "NF008", "kept, as asked",
        "The name matches a pattern of --keep.",
        "Somebody asked for it.",
        "normdeploy fold model.onnx --out folded.onnx --keep 'head.*'",
        "Fold without that pattern.",
    ),
    Page(
        "NF009", "rank or shape is not known",
        "The rule needs the rank or the shape of a value, and the model does not tell it.",
        "Without the rank nobody can say which axis of a tensor is the channel.",
        "The output of an operator of another domain that goes into a BatchNorm.",
        "Run ONNX's shape inference on the model, or declare the shape as value_info.",
    ),
    Page(
        "NF010", "an attribute is a parameter of the function",
        "The operator stands in a function, and one of its attributes is given anew by each call.",
        "What the operator does is known only at the call, and the calls may differ.",
        "A function with an attribute axis that its BatchNorm's neighbour refers to as @axis.",
        "Inline the functions: onnx.inliner.inline_local_functions(model).",
    ),
    Page(
        "NF011", "the map arrives at another input than the data",
        "The map comes to an input that is no data: the weight of a MatMul, a mask, a cache, or a second map of the "
        "same plan.",
        "The rule of an operator holds for its data; its other inputs act on the result in other ways.",
        "A BatchNorm whose result is used as the mask of an attention.",
        "None without a change of the network.",
    ),
    Page(
        "NF012", "an old opset with other rules",
        "At the opset of the model this operator broadcasts, or takes its inputs, by rules that later ones dropped.",
        "The rules of the fold are proven for the operator as it is today.",
        "Mul at opset 6 with broadcast=1.",
        "Export with opset 13 or newer, or convert the model: onnx.version_converter.",
    ),
    Page(
        "NF013", "an input is missing",
        "An input that the operator's specification requires is left out.",
        "Nothing can be said of what the operator does.",
        "A BatchNormalization whose first input is empty.",
        "Check the model with onnx.checker, and export it again.",
    ),
    Page(
        "NF014", "a size is not fixed",
        "The rule needs a size that the model leaves open.",
        "How many channels go where depends on it, so weights could not be right for every size.",
        "A Concat along an axis of which one part has a symbolic length.",
        "Export with that dimension fixed.",
    ),
    Page(
        "NF015", "the map varies over an axis that the operator mixes",
        "The map is different from index to index along an axis which the operator sums, averages, resizes or repeats.",
        "A map passes such an axis only if it is the same all along it.",
        "A Mul by a constant for each column, in front of a global average pooling.",
        "None without a change of the network.",
    ),
    Page(
        "NF016", "the map varies over an axis that the weight does not have",
        "The weight that should take the map has no index that tells the map's parts apart.",
        "A weight is the same for all samples and positions, so it can only take a map over its own channels.",
        "A constant for each position added behind a Linear.",
        "None without a change of the network.",
    ),
    Page(
        "NF017", "an axis is merged with one of unknown size",
        "A Reshape or a like operator mixes the map's axis with one whose size is not fixed.",
        "Which channel stands where behind it depends on that size.",
        "Reshape of (N, C, H, W) to (N, -1) with H and W left open, in front of a BatchNorm over all features.",
        "Export with that dimension fixed.",
    ),
    Page(
        "NF018", "elements that become one need different maps",
        "Operators that gather, tile, or move phases into channels make several elements of one, and the map treats "
        "these in different ways.",
        "One element of a weight cannot be scaled by two numbers.",
        "A PixelShuffle with a BatchNorm in front whose scales differ within what becomes one channel.",
        "None without a change of the weights.",
    ),
    Page(
        "NF019", "the indices are not constant",
        "A Gather picks along the axis of the map, and which elements it picks is not known before it runs.",
        "The map would have to be picked along with the elements.",
        "Gather of channels by indices that are an input of the model.",
        "Export with constant indices.",
    ),
    Page(
        "NF020", "a branch is broadcast along the axis of the map",
        "An operand of the sum or product has one element where the map has many.",
        "The map of the result cannot be put on an operand that is the same for all channels.",
        "Add of (N, C, H, W) and (N, 1, H, W) in front of a BatchNorm.",
        "None without a change of the network.",
    ),
    Page(
        "NF021", "part of a GELU",
        "A GELU is spelled out, as opsets before 20 have to, and the map is one of its factors or would change one.",
        "Runtimes know a GELU by its numbers, and compute it in one operator that is faster than a Mul that is saved.",
        "The factor 1/2 of torch.nn.GELU in front of a Linear, exported at opset 17.",
        "None is needed. Exported at opset 20 or newer it is one operator.",
    ),
    Page(
        "NF022", "a value in between would outgrow float16",
        "The plan makes a float16 value more than 16 times larger than the original computes there: a large scale went "
        "up through an average or a sum, or a small one was taken off in front of one.",
        "float16 ends at 65504, and what the average made small again would be infinite before it. How large the "
        "values are, no graph tells.",
        "A float16 BatchNorm whose scale is 300, behind a global average pooling.",
        "None is needed: the norm stays. To fold it, deploy in bf16 or fp32.",
    ),
    Page(
        "NF023", "the scale or bias of a norm that stays spelled out",
        "The map is the scale or bias of a LayerNorm or RMSNorm that stays spelled out: the opset has no operator for "
        "it, or --layernorm off was asked for.",
        "ONNX Runtime makes one operator of such a norm, and knows it by its scale. Moved into the Linear behind, it "
        "would leave seven operators that are slower than the two that it saves. A norm in another spelling is written "
        "so, with a scale of 1 and a bias of 0 where it has none.",
        "torch.nn.LayerNorm in front of a Linear, exported at opset 14.",
        "Export at opset 17 or newer (RMSNorm: 23, or fold for onnxruntime), where the norm is one operator.",
    ),
)  # fmt: skip
"""The pages, in the order of their codes."""
