"""Whole architectures, small and untrained: every norm with statistics, scales and biases as training could leave them.

The networks are those of transformers, from ``.venv-real``; DenseNet, which it does not have, is written out here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = Path(__file__).parent.parent.parent / ".venv-real"
IMAGE = "pixel_values:N=1..2..4x3x64x64@f32"
SERIES = "past_values:B=1..2..4x32x3@f32"


@dataclass(frozen=True)
class Architecture:
    """One network and what folding must make of it.

    Attributes:
        name: for humans.
        build: makes it, its parameters as the constructor leaves them.
        spec: its one input.
        norms: layers with running statistics.
        left: how many of them stay; the reason is in the comment beside it.
        convs: convolutions in the exported and in the folded graph.
    """

    name: str
    build: Callable[[], nn.Module]
    spec: str
    norms: int
    left: int
    convs: tuple[int, int]


def randomized(architecture: Architecture) -> nn.Module:
    """The network in eval mode, seeded.

    Weights keep the size of what passes through them, so that each norm meets values of its own size and every output
    depends on the input; statistics, scales of both signs and biases are drawn.
    """
    torch.manual_seed(0)
    module = architecture.build()
    with torch.no_grad():
        for part in module.modules():
            randomize(part)
    return module.eval().requires_grad_(False)


def randomize(part: nn.Module) -> None:
    """Draw the parameters and statistics of one module, in place, its children's not."""
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        weight = part.weight  # of a parametrized module this is a computed tensor, which nothing can be written into
        if isinstance(weight, nn.Parameter):
            nn.init.kaiming_normal_(weight)
        if part.bias is not None:
            part.bias.normal_(std=0.3)
    elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
        _draw_affine(part.weight, part.bias)
    elif isinstance(
        getattr(part, "running_var", None), torch.Tensor
    ):  # duck typing: DETR's frozen norms are no nn norms
        part.running_mean.normal_()
        part.running_var.uniform_(0.5, 2.0)
        _draw_affine(part.weight, part.bias)
    for name, parameter in part.named_parameters(recurse=False):
        if "scale" in name:  # LayerScale starts so small that nothing behind it would show
            parameter.uniform_(0.5, 1.5)


def _draw_affine(weight: torch.Tensor, bias: torch.Tensor) -> None:
    weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(weight) < 0.2, -1.0, 1.0))
    bias.normal_()


def network(name: str, task: str, **options: Any) -> Callable[[], nn.Module]:
    """What builds the network ``name + task`` of transformers; ``options`` go to its configuration."""

    def build() -> nn.Module:
        transformers = library()
        module: nn.Module = getattr(transformers, name + task)(getattr(transformers, f"{name}Config")(**options))
        return module

    return build


def _classifier(name: str, **options: Any) -> Callable[[], nn.Module]:
    return network(name, "ForImageClassification", **options)


def library() -> Any:
    """The package transformers, which lies apart."""
    # behind everything else, so that no package there hides one that was tested
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    import transformers

    return transformers


def _backbone() -> Any:
    return library().ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_features=["stage4"]
    )


def _detr() -> nn.Module:
    options = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 7}
    own = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    return network("Detr", "ForObjectDetection", backbone_config=_backbone(), **own, **options, **heads)()


def _rt_detr() -> nn.Module:
    transformers = library()
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return network(
        "RTDetr", "ForObjectDetection", backbone_config=backbone, backbone=None, use_timm_backbone=False,
        use_pretrained_backbone=False, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 40], d_model=32,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
        decoder_in_channels=[32, 32, 32], decoder_layers=2, num_queries=9, num_denoising=0, num_labels=5,
        anchor_image_size=None,
    )()  # fmt: skip


def _conformer(**options: Any) -> Callable[[], nn.Module]:
    return network("Wav2Vec2Conformer", "Model", hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **options,
    )  # fmt: skip


class DenseLayer(nn.Module):
    """DenseNet's layer (Huang et al. 2017, arXiv 1608.06993): its output joins its input on the channel axis."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them, a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.first = nn.Sequential(*(DenseLayer(16 + 8 * i, 8) for i in range(3)))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)
        )
        self.second = nn.Sequential(*(DenseLayer(20 + 8 * i, 8) for i in range(2)))
        self.norm, self.fc = nn.BatchNorm2d(36), nn.Linear(36, 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.second(self.transition(self.first(self.stem(pixel_values))))
        logits: torch.Tensor = self.fc(torch.relu(self.norm(x)).mean((2, 3)))
        return logits


_SMALL = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
_PATCHES = {"context_length": 32, "patch_length": 4, "patch_stride": 4, "num_input_channels": 3, "prediction_length": 8}

ARCHITECTURES = [
    Architecture("ResNet", _classifier("ResNet", **_SMALL), IMAGE, 19, 0, (19, 19)),
    Architecture("RegNet", _classifier("RegNet", groups_width=8, **_SMALL), IMAGE, 20, 0, (30, 30)),
    Architecture("MobileNetV1", _classifier("MobileNetV1", image_size=64, depth_multiplier=0.25),
                 IMAGE, 27, 0, (27, 27)),
    Architecture("MobileNetV2", _classifier("MobileNetV2", image_size=64, depth_multiplier=0.35),
                 IMAGE, 52, 0, (52, 52)),
    Architecture("EfficientNet", _classifier("EfficientNet", image_size=64, width_coefficient=0.25,
                 depth_coefficient=0.25, hidden_dim=320), IMAGE, 22, 0, (36, 36)),
    # each norm that stays stands between a Concat with other readers and a ReLU
    Architecture("DenseNet", DenseNet, IMAGE, 13, 7, (12, 12)),
    Architecture("LeViT", _classifier("Levit", image_size=64, hidden_sizes=[32, 48, 64], depths=[2, 2, 2],
                 num_attention_heads=[2, 3, 4], key_dim=[8, 8, 8]), IMAGE, 39, 0, (4, 4)),
    Architecture("CvT", _classifier("Cvt", embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3]),
                 IMAGE, 18, 0, (21, 21)),
    Architecture("SegFormer", network("Segformer", "ForSemanticSegmentation", hidden_sizes=[16, 32, 40, 64],
                 depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 5, 8], decoder_hidden_size=32),
                 IMAGE, 1, 0, (13, 13)),
    Architecture("MobileViT", _classifier("MobileViT", image_size=64, hidden_sizes=[24, 32, 40],
                 neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 80]), IMAGE, 32, 0, (35, 35)),
    Architecture("SwiftFormer", _classifier("SwiftFormer", depths=[1, 1, 2, 1], embed_dims=[16, 24, 32, 48]),
                 IMAGE, 15, 0, (28, 28)),
    Architecture("TextNet", _classifier("TextNet"), IMAGE, 51, 0, (40, 16)),
    Architecture("PatchTST", network("PatchTST", "ForPrediction", d_model=16, num_attention_heads=2, ffn_dim=24,
                 norm_type="batchnorm", num_hidden_layers=2, **_PATCHES), SERIES, 4, 0, (0, 0)),
    # the two before the patch mixers stay: a residual sum reads what they read, and what reads them mixes another axis
    Architecture("PatchTSMixer", network("PatchTSMixer", "ForPrediction", d_model=16, num_layers=2,
                 norm_mlp="BatchNorm", **_PATCHES), SERIES, 4, 2, (0, 0)),
    # DETR's and RT-DETR's backbones spell their frozen norms with Mul and Add; RepVGG blocks become one convolution
    Architecture("DETR", _detr, IMAGE.replace("N=1..2..4", "1"), 16, 0, (17, 17)),
    Architecture("RT-DETR", _rt_detr, IMAGE.replace("N=1..2..4", "1"), 57, 0, (57, 45)),
    Architecture("Wav2Vec2-Conformer", _conformer(), "input_values:B=1..2..4x800@f32", 2, 0, (8, 8)),
    Architecture("Wav2Vec2-Conformer, rotary", _conformer(position_embeddings_type="rotary"),
                 "input_values:B=1..2..4xL=800..1600..3200@f32", 2, 0, (8, 8)),
]  # fmt: skip
