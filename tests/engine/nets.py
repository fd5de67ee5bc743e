"""Small nets in the shapes of the architectures that are deployed most, with statistics that folding must respect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from normdeploy.checkpoint import load
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.graph import MODULE_KEY
from normdeploy.specs import TensorSpec, parse

ROOT = Path(__file__).parents[2]
DIGITS = ("resnet", "conv1d", "conv3d", "vit")
DIGIT_SPECS = parse(["x:N=1..1..64x1x8x8@f32"])


def digits(name: str) -> nn.Module:
    weights = ROOT / f"models/digits_{name}.safetensors"
    return load(f"models.digits:{name}", app_dir=ROOT, weights=weights).module


def settled(net: nn.Module) -> nn.Module:
    """The net in eval mode, with running statistics and affine parameters that are not the identity's."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_var, module.weight):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            for tensor in (module.running_mean, module.bias):
                tensor.data = torch.randn(tensor.shape, generator=generator) * 0.3
    return net.eval()


def folded(net: nn.Module, specs: Sequence[TensorSpec], *, opset: int | None = None) -> ir.Model:
    return fold(to_graph(net, specs, opset=opset).model).model


def graph(text: str, opset: int = 18, **weights: object) -> ir.Model:
    """The model that ``text`` spells; each node belongs to the module ``net.`` and its output's name."""
    domains = "".join(f', "{domain}" : 1' for domain in ("my",) if f"{domain}." in text)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph.all_nodes():
        node.metadata_props[MODULE_KEY] = f"net.{node.outputs[0].name}"
    return model


class Bottleneck(nn.Module):
    """ResNet's: 1x1, 3x3, 1x1 around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        width = out // 2
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Stem, max pool, two bottlenecks, head: 9 convolutions, 7 of them in front of a ReLU."""

    specs = parse(["x:N=1..4..8x3x32x32@f32"])

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2 = Bottleneck(16, 32, 1), Bottleneck(32, 64, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn(self.stem(x))), 3, 2, 1)
        return self.fc(functional.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1).flatten(1))


class Inverted(nn.Module):
    """MobileNetV2's: expand, depthwise, project without activation."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        hidden = channels * 6
        self.residual = stride == 1 and channels == out
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem, three inverted residuals, last convolution, head: 11 convolutions, 8 of them in front of a ReLU6."""

    specs = parse(["x:N=1..4..8x3x32x32@f32"])

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 32, 2))
        self.last = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention; ``mask`` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """ViT's block: the norm in front of each branch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches, class token, two pre-norm blocks, norm, head: 5 LayerNorms, 4 of them behind a residual Add."""

    specs = parse(["x:N=1..4..8x3x32x32@f32"])

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 64, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 64) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, 64) * 0.02)
        self.blocks = nn.Sequential(PreNorm(64, 4), PreNorm(64, 4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class PostNorm(nn.Module):
    """BERT's layer: the norm behind each residual Add."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """Embeddings, two post-norm layers, head on the first token: 5 LayerNorms, all behind an Add."""

    specs = parse(["ids:N=1..2..8xT=4..16..32@i64[0..99]", "mask:NxT@i64[0..1]"])

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(100, 64), nn.Embedding(32, 64)
        self.norm = nn.LayerNorm(64, eps=1e-12)
        self.layers = nn.ModuleList([PostNorm(64, 4), PostNorm(64, 4)])
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.word(ids) + self.position(torch.arange(ids.shape[1])))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(x[:, 0])
