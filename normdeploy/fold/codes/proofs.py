"""NF400 to NF429: proofs that did not hold (those plans were dropped), and notes of the ledger."""

from __future__ import annotations

from normdeploy.codes import Page

_REPORT = "The model is right without it. Report it with the model: a rule or a proof of normdeploy is mistaken."

PAGES = (
    Page(
        "NF401", "both sides differ",
        "In float64 the rewritten operator does not give what the original gives, to 1e-12 a channel.",
        "A plan that is not proven is dropped, whatever rule asked for it.",
        "None is known: a rule with a mistake.",
        _REPORT,
    ),
    Page(
        "NF402", "the proof cannot be run",
        "An operator of the plan cannot be executed in float64, or not on a probe of a size that fits into memory.",
        "What was not seen to be right is not done.",
        "An operator for which onnx.reference has no implementation.",
        _REPORT,
    ),
    Page(
        "NF403", "a sign or a shift is not allowed here",
        "A map with a shift or a scale that is not positive stands around an operator with a kink or a maximum.",
        "A finite number of probes cannot show that such a map is right everywhere, so it is checked by itself.",
        "None is known: a rule with a mistake.",
        _REPORT,
    ),
    Page(
        "NF404", "an input or output would change",
        "The plan would change a value at the border of its graph.",
        "Whoever runs the model must find there what was there before.",
        "None is known: a rule with a mistake.",
        _REPORT,
    ),
    Page(
        "NF410", "small numbers became zero or lost digits",
        "Numbers of a folded weight are below the smallest normal number of its dtype: float32 ones were flushed to 0.",
        "Numbers that small do not matter to their channel, and cost some processors much time.",
        "A BatchNorm with a gamma of 1e-30 in one channel.",
        "None is needed.",
    ),
    Page(
        "NF411", "a GroupNormalization that ONNX Runtime computes less exactly",
        "A GroupNorm that was spelled out is one operator now, and the target is any runtime.",
        "ONNX Runtime computes its variance on the CPU as E[x²] - E[x]², which loses groups with a large mean.",
        "A GroupNorm of PyTorch folded with --target onnx.",
        "Fold with --target onnxruntime if that is what runs the model.",
    ),
    Page(
        "NF412", "inputs that have a default value",
        "Initializers are also inputs of the model, which a caller may override (from IR version 4 on).",
        "None of them counts as a constant, so nothing is folded into them.",
        "A file that an old exporter wrote with keep_initializers_as_inputs=True.",
        "Fold with --inputs-are-constants and the names, or all, where no caller overrides them.",
    ),
    Page(
        "NF413", "functions bear names of ONNX's operators",
        "A local function has the name and the domain of an operator that a fold writes, so nothing was folded.",
        "What the fold writes would call that function.",
        "A function Conv in the domain of ONNX.",
        "Rename the function, or give it a domain of its own.",
    ),
    Page(
        "NF414", "shapes could not be inferred",
        "ONNX's shape inference failed on the model or on a part of it.",
        "Maps are found only where ranks are known.",
        "A model with contradicting declared shapes.",
        "Look at what onnx.shape_inference.infer_shapes(model, strict_mode=True) says.",
    ),
    Page(
        "NF415", "the graph was cleaned first",
        "What only computes constants, changes nothing, or leads nowhere was taken out; functions that hid a norm were "
        "inlined. GELUs, and norms that the opset has no operator for, are in the spelling that runtimes know.",
        "Exporters write constants as subgraphs, behind which no weight would be seen. ONNX Runtime makes one operator "
        "of a norm that squares by Pow, and none of one that squares by Mul.",
        "A file of torch.onnx.export(optimize=False).",
        "None is needed.",
    ),
    Page(
        "NF416", "a norm that no plugin runs",
        "Plugins were asked for, and this norm stays as it is, for the reason that is told.",
        "A plugin holds scale and bias, knows how long its rows are, computes in 16 or 32 bits, makes one output, and "
        "is put into the main graph alone.",
        "A LayerNorm whose scale is an input of the model, beside one whose scale is constant, with --plugin.",
        "None is needed: TensorRT runs such a norm as it is.",
    ),
    Page(
        "NF417", "training_info was taken out",
        "The model has training_info: graphs that initialize and update its initializers by name.",
        "A fold changes those initializers, so the algorithm would train another network; inference reads none of it.",
        "A file of onnxruntime's training tools.",
        "None is needed to run the model. Train with the file that was given, and fold what comes out.",
    ),
    Page(
        "NF418", "norms that plugins run",
        "Plugins took the place of so many norms: LayerNorm and RMSNorm of a norm alone, AddLayerNorm with the sum in "
        "front, LayerNormQuantize with the quantization behind. Norms in elementary operators are told by name.",
        "A plugin is an operator of its own, so a norm that the opset has no operator for can be one.",
        "A LayerNorm behind a residual sum, with --plugin --target tensorrt.",
        "None is needed. Build the graph with the full TensorRT, the only one that runs it.",
    ),
    Page(
        "NF419", "plugins and shapes that change",
        "Plugins compiled ahead of time lie in an engine whose shapes change.",
        "TensorRT is reported to leak a CUDA module at each change of shape with such plugins (its issue 4849).",
        "A batch of 1 to 64 with --plugin.",
        "Fix the shapes, or give --plugin-form python, which needs Python and this package where it is served.",
    ),
    Page(
        "NF420", "declared sizes contradict the inputs",
        "The model declares a size of a value in between, and its inputs make it another, or no reader can take it.",
        "It may be from before the inputs were made dynamic: it stays declared, and no such size is believed.",
        "A batch of 1 that was renamed to N at the inputs alone, its values in between still declared as [1, ...].",
        "Take value_info out of the model, and run onnx.shape_inference.infer_shapes on it.",
    ),
    Page(
        "NF421", "norms that ONNX Runtime joins with the sum in front",
        "A LayerNorm that was spelled out is one operator now, and nothing else reads the sum that it normalizes.",
        "ONNX Runtime makes one SkipLayerNormalization of both, which takes longer on the CPU than the two, and than "
        "the operators that were there.",
        "A post-norm block whose LayerNorm squares by Mul, on the CPU.",
        "Create the session with disabled_optimizers=['SkipLayerNormFusion'].",
    ),
)  # fmt: skip
"""The pages, in the order of their codes."""
