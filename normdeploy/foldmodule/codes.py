"""Pages of the codes ``NT…``: why a norm of a graph could go, and that of the PyTorch module cannot."""

from __future__ import annotations

from normdeploy.codes import Page

PAGES = (
    Page(
        "NT001",
        "one weight, several values",
        "A parameter or a norm is used at several places, which want different values of it once the norms are folded.",
        "The graph copies the weight for each place. A module has one, which all its calls and all names share.",
        "y = bn1(conv(x)) + bn2(conv(x))",
        "Give each place a layer of its own (copy.deepcopy), or deploy the ONNX model.",
    ),
    Page(
        "NT002",
        "a number in the code",
        "The norm would change a number that is written in forward, or computed there, and no parameter holds.",
        "fold_module changes parameters and buffers and never code: forward would compute with the old number.",
        "y = bn(fc(x) * 0.5), or a convolution that standardizes its weight in each call",
        "Keep the number in a parameter or buffer; store a computed weight once, in the factory.",
    ),
    Page(
        "NT003",
        "a norm without a module",
        "The norm is spelled out in forward, or called as a function, on tensors that are no buffers of its module.",
        "There is no module that could become an Identity, and forward would normalize as before.",
        "y = torch.nn.functional.batch_norm(conv(x), mean.clone(), var.clone())",
        "Use the layer of torch.nn in place of the function.",
    ),
    Page(
        "NT004",
        "a form that no module has",
        "The graph would have another operator, or another shape of weight, than what forward calls.",
        "A module keeps its layers: two cannot become one, and none can become another.",
        "y = conv3x3(x) + conv1x1(x) + bn(x), which is one convolution in the graph",
        "Merge the branches in the module itself (RepVGG's switch_to_deploy), or deploy the ONNX model.",
    ),
    Page(
        "NT005",
        "no place for a shift",
        "The norm's shift has nowhere to go: what takes its scale has no bias, and none can be added.",
        "A bias appears only on layers that have the attribute, such as those of torch.nn with bias=False.",
        "y = bn(torch.nn.functional.linear(x, self.weight))",
        "Use nn.Linear or nn.Conv2d, or pass self.bias to the function and let it be a parameter.",
    ),
    Page(
        "NT006",
        "the copy was prepared",
        "Wrappers were taken off the copy, its training mode was left, or weights that it computes were stored.",
        "Norms fold into weights that are stored, of a module in eval mode.",
        "fold_module(torch.nn.DataParallel(net), x)",
        "None is needed: the module that was given is as it was.",
    ),
    Page(
        "NT007",
        "forward looks at the layer",
        "Without the norm forward does not run, or takes another path: it asks for the layer's class or its weights.",
        "An Identity stands in the place of a norm that went, and a LayerNorm that gave away its scale has no weight.",
        "y = bn(conv(x)) if isinstance(bn, nn.BatchNorm2d) else x, or x.to(ln.weight.dtype)",
        "Let forward call the norm and ask nothing of it, or deploy the ONNX model.",
    ),
)
