"""Four small classifiers of scikit-learn's handwritten digits, one for each place a norm can live in.

Every network takes ``x``: float32 ``[N, 1, 8, 8]``, grey values in [0, 1], and returns logits, float32
``[N, 10]``. The factories return fresh networks in training mode; trained weights lie beside this file as
``digits_<factory>.safetensors`` with their held-out accuracy in ``digits_<factory>.json``, both written by
``scripts/train_digits.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SIDE = 8  # pixels
GREY_LEVELS = 16  # the scans count the inked pixels of 4x4 cells: 0..16
HELD_OUT = 360  # scans, a fifth
SPLIT_SEED = 0

Scans = tuple[Tensor, Tensor]
"""Images, float32 ``[N, 1, 8, 8]`` in [0, 1], and labels, int64 ``[N]`` in 0..9."""


def split() -> tuple[Scans, Scans]:
    """The 1,797 scans as (training, held out), always the same, stratified by digit; needs scikit-learn."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.reshape(-1, 1, SIDE, SIDE) / GREY_LEVELS
    parts = train_test_split(pixels, labels, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=labels)
    train_pixels, held_pixels, train_labels, held_labels = (torch.from_numpy(part) for part in parts)
    return (train_pixels.float(), train_labels.long()), (held_pixels.float(), held_labels.long())


def held_out() -> Scans:
    """The 360 scans that no training has seen."""
    return split()[1]


def batches() -> Iterator[dict[str, Tensor]]:
    """Yield the scans of the training, 64 at a time, as ``--data models.digits:batches`` asks for them."""
    (scans, _), _ = split()
    for start in range(0, len(scans), 64):
        yield {"x": scans[start : start + 64]}


def resnet() -> nn.Module:
    """A residual network: bias-less Conv2d, each followed by BatchNorm2d, with 1x1 projections where shapes change."""
    return ResNet()


def conv1d() -> nn.Module:
    """The eight rows as a sequence: BatchNorm1d after every Conv1d and after the hidden Linear."""
    return Conv1d()


def conv3d() -> nn.Module:
    """The image and its copies shifted by one pixel as frames in time: BatchNorm3d after every Conv3d."""
    return Conv3d()


def vit() -> nn.Module:
    """A pre-norm transformer over 2x2 patches; mean over the tokens after a final LayerNorm."""
    return ViT()


class ResNet(nn.Module):
    """See :func:`resnet`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of scans ``[N, 1, 8, 8]``."""
        x = functional.relu(self.norm(self.conv(x)))
        pooled: Tensor = functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut: ``[N, C, H, W]`` to ``[N, C', H / stride, W / stride]``."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """The branch plus the shortcut, rectified."""
        branch = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(branch)) + self.shortcut(x))


class Conv1d(nn.Module):
    """See :func:`conv1d`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(SIDE, 48, 3, padding=1)
        self.norm1 = nn.BatchNorm1d(48)
        self.conv2 = nn.Conv1d(48, 64, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(64)
        self.hidden = nn.Linear(64 * SIDE, 96)
        self.norm3 = nn.BatchNorm1d(96)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of scans ``[N, 1, 8, 8]``."""
        sequence = x.squeeze(1).transpose(1, 2)  # [N, columns, rows]: a row is one step, its pixels are the channels
        sequence = functional.relu(self.norm1(self.conv1(sequence)))
        sequence = functional.relu(self.norm2(self.conv2(sequence)))
        logits: Tensor = self.head(functional.relu(self.norm3(self.hidden(sequence.flatten(1)))))
        return logits


class Conv3d(nn.Module):
    """See :func:`conv3d`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(16)
        self.conv2 = nn.Conv3d(16, 32, 3, stride=(1, 2, 2), padding=1)
        self.norm2 = nn.BatchNorm3d(32)
        self.conv3 = nn.Conv3d(32, 48, 3, stride=(1, 2, 2), padding=1, bias=False)
        self.norm3 = nn.BatchNorm3d(48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of scans ``[N, 1, 8, 8]``."""
        padded = functional.pad(x, (1, 0, 1, 0))  # one empty column on the left, one empty row on top
        frames = [x, padded[..., 1:, :SIDE], padded[..., :SIDE, 1:]]  # as it is, shifted right, shifted down
        video = torch.stack(frames, dim=2)  # [N, 1, 3, 8, 8]
        video = functional.relu(self.norm1(self.conv1(video)))
        video = functional.relu(self.norm2(self.conv2(video)))
        video = functional.relu(self.norm3(self.conv3(video)))
        logits: Tensor = self.head(video.mean(dim=(2, 3, 4)))
        return logits


class ViT(nn.Module):
    """See :func:`vit`."""

    patch = 2  # pixels
    width = 48

    def __init__(self) -> None:
        super().__init__()
        self.grid = SIDE // self.patch
        self.embed = nn.Linear(self.patch**2, self.width)
        self.position = nn.Parameter(torch.empty(self.grid**2, self.width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(Block(self.width, heads=4) for _ in range(3)))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 10]`` of scans ``[N, 1, 8, 8]``."""
        cells = x.reshape(-1, self.grid, self.patch, self.grid, self.patch).transpose(2, 3)
        tokens = self.embed(cells.reshape(-1, self.grid**2, self.patch**2)) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


class Block(nn.Module):
    """Attention, then a perceptron, each behind its own LayerNorm: tokens ``[N, T, width]`` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after both branches."""
        x = x + self.attention(self.norm1(x))
        branch: Tensor = self.contract(functional.gelu(self.expand(self.norm2(x))))
        return x + branch

    def attention(self, x: Tensor) -> Tensor:
        """Every token attends to every token: ``[N, T, width]`` to the same."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]  # indexed, not unpacked: one Gather each in an exported graph
        mixed = functional.scaled_dot_product_attention(query, key, value)  # [N, heads, T, width / heads]
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return projected
