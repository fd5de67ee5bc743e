"""The networks that faults are planted in: the four trained digits networks, and six small ones of other families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from models import digits

ROOT = Path(__file__).resolve().parent.parent
SCANS = "x:N=1..2..4x1x8x8@f32"


@dataclass(frozen=True)
class Net:
    """A network, its one input, and the modules that faults are planted in: a norm and a layer with a weight."""

    name: str
    build: Callable[[], nn.Module]
    spec: str
    norm: str
    layer: str

    def module(self) -> nn.Module:
        """Return the network in eval mode, seeded; no norm of it leaves its input unchanged."""
        torch.manual_seed(0)
        module = self.build()
        file = ROOT / "models" / f"digits_{self.name}.safetensors"
        if file.exists():
            module.load_state_dict(load_file(file))
        else:
            drawn(module)
        return module.eval().requires_grad_(False)


def drawn(module: nn.Module) -> None:
    """Draw statistics, scales and biases as training could leave them, in place."""
    with torch.no_grad():
        for part in module.modules():
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if name == "running_var" or (name == "weight" and tensor.ndim == 1):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.normal_(0.0, 0.3)


class Mobile(nn.Module):
    """Depthwise separable convolutions with a gate: [N, 3, 12, 12] → [N, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.deep_norm = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.point, self.point_norm = nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.gate, self.head = nn.Conv2d(20, 20, 1), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        x = functional.hardswish(self.stem_norm(self.stem(x)))
        x = functional.relu6(self.deep_norm(self.deep(x)))
        x = self.point_norm(self.point(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Dense(nn.Module):
    """Norm, ReLU, convolution, and what went in beside it: [N, 4, 10, 10] → [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 6 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.head = nn.BatchNorm2d(22), nn.Linear(22, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        out: Tensor = self.head(torch.relu(self.norm(x)).mean((2, 3)))
        return out


class Generator(nn.Module):
    """Transposed convolutions: [N, 9] → [N, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(9, 16 * 16), nn.BatchNorm1d(256)
        self.up, self.up_norm = nn.ConvTranspose2d(16, 10, 4, 2, 1), nn.BatchNorm2d(10)
        self.last = nn.ConvTranspose2d(10, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        x = functional.gelu(self.first_norm(self.first(x))).reshape(-1, 16, 4, 4)
        return torch.tanh(self.last(functional.leaky_relu(self.up_norm(self.up(x)), 0.2)))


class Grouped(nn.Module):
    """GroupNorm and a skip over a coarser scale: [N, 2, 12, 12] → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(2, 12, 3, 2, 1), nn.GroupNorm(3, 12)
        self.mid, self.mid_norm = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.up, self.out = nn.ConvTranspose2d(12, 6, 4, 2, 1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        y = functional.silu(self.down_norm(self.down(x)))
        y = functional.silu(self.mid_norm(self.mid(y))) + y
        out: Tensor = self.out(torch.cat([x, self.up(y)], 1))
        return out


class Recurrent(nn.Module):
    """A norm, an LSTM, a norm: [N, 11, 6] → [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 10), nn.LayerNorm(10)
        self.lstm, self.last_norm, self.head = nn.LSTM(10, 12, batch_first=True), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        y, _ = self.lstm(self.norm(self.enter(x)))
        out: Tensor = self.head(self.last_norm(y[:, -1]))
        return out


class Encoder(nn.Module):
    """PyTorch's own transformer, its norms in front: [N, 9, 16] → [N, 9, 3]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        out: Tensor = self.head(self.layers(x))
        return out


def nets() -> Iterator[Net]:
    """Return all ten."""
    yield Net("resnet", digits.resnet, SCANS, "blocks.1.norm1", "blocks.1.conv1")
    yield Net("conv1d", digits.conv1d, SCANS, *first_of(digits.conv1d()))
    yield Net("conv3d", digits.conv3d, SCANS, *first_of(digits.conv3d()))
    yield Net("vit", digits.vit, SCANS, "blocks.1.norm1", "blocks.1.expand")
    yield Net("mobile", Mobile, "x:N=1..2..4x3x12x12@f32", "deep_norm", "deep")
    yield Net("dense", Dense, "x:N=1..2..4x4x10x10@f32", "norms.1", "convs.1")
    yield Net("generator", Generator, "x:N=1..2..4x9@f32", "up_norm", "up")
    yield Net("grouped", Grouped, "x:N=1..2..4x2x12x12@f32", "mid_norm", "mid")
    yield Net("recurrent", Recurrent, "x:N=1..2..4x11x6@f32", "norm", "enter")
    yield Net("encoder", Encoder, "x:N=1..2..4x9x16@f32", "layers.layers.1.norm2", "layers.layers.1.linear1")


def first_of(module: nn.Module) -> tuple[str, str]:
    """Return the names of the second norm and of the second convolution."""
    norms = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    convs = [name for name, part in module.named_modules() if isinstance(part, nn.modules.conv._ConvNd)]
    return norms[1], convs[1]
