"""Pages of the codes ``ND…``: what ``normdeploy doctor`` looks for."""

from __future__ import annotations

from normdeploy.codes import Page


def _page(code: str, title: str, what: str, why: str, example: str, fix: str) -> Page:
    return Page(f"ND{code}", title, what, why, example, fix)


PAGES = (
    _page(
        "001",
        "training mode inside eval",
        "A norm is in training mode inside a module that is in eval mode.",
        "It normalizes with the statistics of each batch, and an exporter writes its running ones without a word: the "
        "deployed network is another one than the one that was validated.",
        "model.eval(); model.bn.train()",
        "Call .eval() on it in the factory, or pass --force-eval to deploy its running statistics.",
    ),
    _page(
        "002",
        "statistics never updated",
        "Every running mean is 0 and every running variance 1.",
        "These are the values that a BatchNorm is made with: no batch has passed it in training "
        "mode, or the checkpoint "
        "was not loaded into it.",
        "torch.nn.BatchNorm2d(64).eval()",
        "Load the checkpoint that was trained, or estimate the statistics with normdeploy calibrate.",
    ),
    _page(
        "003",
        "no running statistics",
        "A BatchNorm has track_running_stats=False.",
        "In eval mode too it normalizes over the batch: what comes out for an item depends on the other items, and "
        "nothing of it can be folded.",
        "torch.nn.BatchNorm2d(64, track_running_stats=False)",
        "Train with running statistics, or give it some: a BatchNorm with track_running_stats=True, "
        "calibrated on data.",
    ),
    _page(
        "004",
        "NaN or infinity in a norm",
        "A running statistic, a scale or a bias of a norm is NaN or infinite.",
        "Its channel is NaN for every input. Training diverged, or 16-bit statistics overflowed.",
        "bn.running_var = [0.9, nan]",
        "Take a checkpoint from before that, or estimate the statistics again with normdeploy calibrate.",
    ),
    _page(
        "005",
        "negative variance",
        "A running variance is below 0.",
        "No data have a negative variance: the file is damaged, or was quantized or averaged with negative weights.",
        "bn.running_var = [0.9, -0.1]",
        "Take the original checkpoint, or estimate the statistics again with normdeploy calibrate.",
    ),
    _page(
        "006",
        "variance of zero",
        "A running variance is exactly 0: the channel never changed in training.",
        "It is divided by the square root of eps, so what little changes in it later is multiplied "
        "by up to 1000 at the "
        "usual eps. It folds, exactly; the weights of that channel become as large.",
        "a channel behind a ReLU that is never above 0",
        "Nothing, where the channel stays constant on your data: check with --data. Else prune the "
        "channel or calibrate.",
    ),
    _page(
        "007",
        "subnormal variance",
        "A running variance is above 0 and below the smallest normal number of float32, 1.2e-38.",
        "It was 0 for so long that its average decayed; eps alone decides, as for a variance of 0. "
        "Subnormal numbers are "
        "several times slower on CPUs, and some runtimes take them for 0.",
        "bn.running_var = [5.6e-45]",
        "Nothing, where the channel stays constant on your data: check with --data. Folding removes the number.",
    ),
    _page(
        "008",
        "dead channel",
        "A scale is 0, or less than a millionth of the largest of its layer.",
        "What comes out of the channel is its bias, whatever goes in: it costs time and tells nothing.",
        "ln.weight = [0.8, -1.5e-9]",
        "Nothing is wrong with it; structured pruning would make the network smaller.",
    ),
    _page(
        "009",
        "exploding channel",
        "A norm multiplies a channel by more than 1000.",
        "Small errors of what reaches it become as much larger: those of a runtime, and of 16 bits "
        "above all. Often its "
        "variance is next to nothing.",
        "bn.weight = 6, bn.running_var = 0, bn.eps = 1e-5",
        "Deploy in fp32, or compare with real data; calibrate where the variance does not fit them.",
    ),
    _page(
        "010",
        "folded weights overflow in 16 bits",
        "A weight is larger than the type's largest number once the norms are folded into it.",
        "It would be stored as infinity. normdeploy export --precision folds such a norm in float32 and refuses what "
        "overflows; other tools write infinity.",
        "a convolution whose norm multiplies by 1e6",
        "Deploy in bf16 or fp32, or keep the norm with --keep.",
    ),
    _page(
        "011",
        "folded weights flush to zero in 16 bits",
        "All weights of a channel are below the smallest normal number of the type once the norms are folded.",
        "They keep fewer digits, or become 0, and with them all that the channel tells.",
        "a convolution whose norm multiplies by 1e-7",
        "Deploy in bf16 or fp32, or keep the norm with --keep. A channel this small is often dead: see ND008.",
    ),
    _page(
        "012",
        "momentum that does not average",
        "The momentum of a norm with running statistics is not between 0 and 1.",
        "0 never updates them in training, 1 keeps those of the last batch alone, others diverge. At inference it does "
        "nothing.",
        "torch.nn.BatchNorm2d(64, momentum=0.0)",
        "Nothing for a converted network. Before training on, set it: PyTorch's 0.1 is TensorFlow's 0.9.",
    ),
    _page(
        "013",
        "eps that decides",
        "The eps of a norm is 0, or negative, or larger than most of its variances, or above 0.1.",
        "It should only keep the division finite. Where it is of the size of the variances the norm "
        "divides by something "
        "else than the deviation; frameworks differ in its default, 1e-5 here, 1e-3 in Keras.",
        "torch.nn.BatchNorm2d(64, eps=0.5)",
        "Use the eps that the network was trained with.",
    ),
    _page(
        "014",
        "a norm over one element",
        "A LayerNorm or RMSNorm normalizes over a single element.",
        "An element minus its own mean is 0: a LayerNorm gives its bias for every input.",
        "torch.nn.LayerNorm(1)",
        "Normalize over the features: normalized_shape is the size of the last axes.",
    ),
    _page(
        "015",
        "squares overflow float16, by statistics",
        "The mean square of what reaches a norm, mean² + variance, is over 65504.",
        "In float16 its squares are infinite. A BatchNorm does not square at inference; a LayerNorm, a variance or a "
        "distance computed of the same values in float16 does. Of a norm that the fold takes away it is a note.",
        "bn.running_var = 497000",
        "Deploy in bf16 or fp32, or scale the input of the network; normdeploy keeps statistics in float32.",
    ),
    _page(
        "016",
        "squares overflow float16, on data",
        "A value that reaches a norm without running statistics has a square over 65504, on the data that were given.",
        "A norm that squares in float16 divides by infinity, and gives 0.",
        "a residual stream that has grown to 300",
        "Keep the statistics of norms in float32, as normdeploy export --precision fp16 does.",
    ),
    _page(
        "017",
        "one norm at several places",
        "A norm is called at several places, or is reached by several names.",
        "Its running statistics are a mixture of what reaches it at each place. It folds at each place by itself; back "
        "in a module (fold_module) only where it can go at all of them.",
        "y = bn(conv2(relu(bn(conv1(x)))))",
        "Give each place a norm of its own where that was not meant.",
    ),
    _page(
        "018",
        "statistics that do not fit the data",
        "On the data that were given, half of the channels of a norm lie a deviation off, or vary four times as much; "
        "or, on 16 items or more, the channels lie half a deviation off (root mean square).",
        "The first such norm tells most: at the input it is the classic wrong preprocessing (0 to 255 for 0 to 1, "
        "black for white, no mean taken off; the order of colours hardly shows); further in, data of another kind than "
        "those of the training.",
        "a network for values of 0 to 1 on pixels of 0 to 255",
        "Compare the preprocessing with the training's. If it is right, estimate the statistics: normdeploy calibrate.",
    ),
    _page(
        "019",
        "the network does not export",
        "The network cannot be written as one graph.",
        "Control flow that depends on values, or an operator without a translation, is in its forward.",
        "if x.sum() > 0: ...",
        "The message names the line; normdeploy export says what to ask for.",
    ),
    _page(
        "020",
        "eps that is zero in float16",
        "The eps of a LayerNorm, or of another norm of its input, is below the smallest number of float16.",
        "Where statistics are computed in float16 a constant row is divided by 0, and is NaN.",
        "torch.nn.LayerNorm(384, eps=1e-12)",
        "Keep the statistics of norms in float32, as normdeploy export --precision fp16 does.",
    ),
)
