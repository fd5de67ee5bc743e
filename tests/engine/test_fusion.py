"""What the real builder makes of deployed graphs, by its layer table: nothing of a BatchNorm is left, activations are
in the convolutions, a LayerNorm is one layer. The counts are of TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import onnx_ir as ir
import pytest
import torch
from nets import DIGIT_SPECS, DIGITS, Bert, MobileNetV2, ResNet, ViT, digits, folded, settled
from torch import nn

from normdeploy.engine import EngineBuild, EngineLayer, build
from normdeploy.export import to_graph
from normdeploy.precision import Precision

pytestmark = pytest.mark.usefixtures("rtx")

PRECISIONS = ("fp32", "fp16", "bf16")
CONVOLUTIONAL = {"resnet": 9, "conv1d": 2, "conv3d": 3, "ResNet": 9, "MobileNetV2": 11}
"""Net → its convolutions."""
ACTIVATIONS = {"resnet": 7, "conv1d": 3, "conv3d": 3, "ResNet": 7, "MobileNetV2": 8}
"""Net → its ReLUs and ReLU6s; one of conv1d's follows a Linear."""
NORMS = {"vit": 7, "ViT": 5, "Bert": 5}
"""Net → its LayerNorms."""


def net(name: str) -> tuple[nn.Module, tuple[object, ...]]:
    torch.manual_seed(0)
    if name in DIGITS:
        return digits(name), DIGIT_SPECS
    kind = {"ResNet": ResNet, "MobileNetV2": MobileNetV2, "ViT": ViT, "Bert": Bert}[name]
    return settled(kind()), kind.specs


@cache
def exported(name: str) -> ir.Model:
    return folded(*net(name), opset=22)  # the first at which a convolution may be bfloat16


@cache
def built(name: str, precision: Precision) -> EngineBuild:
    return build(exported(name), net(name)[1], precision=precision)


def holding(build: EngineBuild, *operators: str) -> list[EngineLayer]:
    return [layer for layer in build.layers if not set(operators).isdisjoint(layer.operators)]


def multiplying(build: EngineBuild) -> list[EngineLayer]:
    """The layers that are convolutions, without those that only lay out their data."""
    return [layer for layer in holding(build, "Conv") if not layer.moves]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_no_batch_norm_is_left_and_activations_are_in_the_convolutions(name: str, precision: Precision) -> None:
    engine = built(name, precision)
    assert holding(engine, "BatchNormalization") == []
    convolutions = multiplying(engine)
    assert len(convolutions) == CONVOLUTIONAL[name]
    assert {layer.precision for layer in convolutions} == {precision}
    activated = [layer for layer in engine.layers if not layer.moves and {"Relu", "Clip"} & set(layer.operators)]
    assert len(activated) == ACTIVATIONS[name]
    assert all({"Conv", "Gemm", "MatMul"} & set(layer.operators) for layer in activated)
    alone = [layer for layer in holding(engine, "Relu", "Clip") if layer.moves and "Conv" not in layer.operators]
    assert alone == []


def test_the_same_net_without_folding_shows_its_batch_norms() -> None:
    """The table would show them: without the fold they are kernels of their own, or inside others."""
    module, specs = net("MobileNetV2")
    engine = build(to_graph(module, specs).model, specs)
    left = holding(engine, "BatchNormalization")
    assert len({name for layer in left for name in layer.modules}) >= 11
    assert len(engine.layers) >= len(built("MobileNetV2", "fp32").layers)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NORMS)
def test_a_layer_norm_is_one_layer_with_float32_statistics(name: str, precision: Precision) -> None:
    """But for the last one, whose second half the builder merges with the pooling behind it."""
    engine = built(name, precision)
    layers = holding(engine, "LayerNormalization")
    named = [pair for layer in layers for pair in zip(layer.nodes, layer.operators, strict=True)]
    nodes = Counter(node for node, operator in named if operator == "LayerNormalization")
    assert len(nodes) == NORMS[name]
    assert sorted(nodes.values()) == [1] * (NORMS[name] - 1) + [2]
    assert {layer.statistics for layer in layers} == {"fp32", ""}
    assert [layer.statistics for layer in layers].count("") == 1


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_residual_add_is_a_layer_of_its_own(name: str, precision: Precision) -> None:
    """In float32 it is in the norm behind it, in 16 bits in that or in the matrix product in front."""
    engine = built(name, precision)
    allowed = {"LayerNormalization", "MatMul", "Gemm", "Conv", "Softmax"}
    movers = {"Reshape", "Transpose", "Mul"}  # a projection's bias is added where its heads are laid out
    alone = [
        layer
        for layer in holding(engine, "Add")
        if not allowed & set(layer.operators) and not movers & set(layer.operators)
    ]
    assert alone == []
    if precision == "fp32":
        added = [layer for layer in holding(engine, "LayerNormalization") if "Add" in layer.operators]
        assert len(added) == NORMS[name]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *NORMS])
def test_every_module_that_multiplies_is_in_the_table_under_its_own_name(name: str, precision: Precision) -> None:
    module, _ = net(name)
    weighted = {path for path, each in module.named_modules() if isinstance(each, (nn.Linear, nn.modules.conv._ConvNd))}
    assert weighted <= {path for layer in built(name, precision).layers for path in layer.modules}
