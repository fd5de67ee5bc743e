"""Modules with norms, small and seeded: how many of their norms go, and how many stay because a module has no place.

The statistics, scales of both signs and biases are as training could leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class ModuleCase:
    """One module.

    Attributes:
        name: for humans.
        build: makes it.
        shapes: of its inputs.
        gone: norms that go whole, or lose their scale and bias.
        left: norms that stay as they were.
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    gone: int
    left: int = 0

    def module(self) -> nn.Module:
        """Return the module in eval mode, seeded."""
        torch.manual_seed(0)
        made = self.build().eval()
        for part in made.modules():
            randomize(part)
        return made

    def inputs(self) -> Inputs:
        """Return seeded inputs."""
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(shape, generator=generator) for shape in self.shapes)


@torch.no_grad()
def randomize(part: nn.Module) -> None:
    """Draw statistics, scales and biases of one module."""
    if isinstance(mean := getattr(part, "running_mean", None), Tensor):
        mean.normal_()
        part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]  # both are there
    if (
        isinstance(part, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
        and part.weight is not None
    ):
        part.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(part.weight) < 0.3, -1.0, 1.0))
    if isinstance(bias := getattr(part, "bias", None), nn.Parameter):
        bias.normal_()


class Net(nn.Module):
    """Parts by name, and a forward that is given."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


class Net2(Net):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]  # another number of them
        return self.call(self, x, y)


class FrozenBatchNorm(nn.Module):
    """Statistics and affine as buffers, spelled with a product and a sum, as in torchvision and DETR."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.2, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with its activation inside, as in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(super().forward(x))
        return out


class StandardizedConv(nn.Conv2d):
    """A convolution whose weight is standardized whenever it is called."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("var", torch.linspace(0.5, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(self.conv(x), self.mean, self.var))


def _ones(size: int) -> nn.Module:
    """A layer whose weight is its own transpose."""
    layer = nn.Linear(size, size)
    nn.init.ones_(layer.weight)
    return layer


def _all(layers: Any, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _two_names() -> nn.Module:
    net = Net(lambda s, x: s.again(torch.tanh(s.first(x))), first=nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    net.again = net.first
    return net


def _net(
    call: Callable[..., Any], make: Callable[[], dict[str, Any]], kind: type[Net] = Net
) -> Callable[[], nn.Module]:
    return lambda: kind(call, **make())


def _net2(call: Callable[..., Any], make: Callable[[], dict[str, Any]]) -> Callable[[], nn.Module]:
    return _net(call, make, Net2)


def _tied() -> nn.Module:
    net = Net(
        lambda s, x: s.head(torch.tanh(s.norm(s.up(x)))),
        up=nn.Linear(6, 5),
        norm=nn.BatchNorm1d(5),
        head=nn.Linear(5, 6),
    )
    net.head.weight = nn.Parameter(net.up.weight.detach().T.clone())
    return net


def _shared_weight() -> nn.Module:
    net = Net(
        lambda s, x: s.n2(s.b(torch.relu(s.n1(s.a(x))))),
        a=nn.Linear(5, 5), b=nn.Linear(5, 5), n1=nn.BatchNorm1d(5), n2=nn.BatchNorm1d(5),
    )  # fmt: skip
    net.b.weight = net.a.weight
    return net


def _weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


def _old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


def _spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 7)), nn.BatchNorm1d(7))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)


IMAGE = ((2, 3, 9, 11),)
"""No size twice, but where a case is about that."""
CASES = [
    # a convolution or a linear layer in front
    ModuleCase("conv, bn", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGE, 1),
    ModuleCase(
        "conv without bias, bn", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGE, 1
    ),
    ModuleCase("padded conv, bn", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), IMAGE, 1),
    ModuleCase(
        "grouped conv, bn", lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), ((2, 4, 9, 11),), 1
    ),
    ModuleCase(
        "depthwise conv, bn",
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)),
        ((2, 4, 9, 11),),
        1,
    ),
    ModuleCase("conv1d, bn", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), ((2, 3, 9),), 1),
    ModuleCase("conv3d, bn", lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), ((2, 3, 5, 6, 7),), 1),
    ModuleCase(
        "transposed conv, bn", lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4)), IMAGE, 1
    ),
    ModuleCase(
        "grouped transposed conv, bn",
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
        ((2, 4, 5, 7),),
        1,
    ),
    ModuleCase("linear, bn", lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), ((3, 5),), 1),
    ModuleCase(
        "linear without bias, bn", lambda: nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)), ((3, 5),), 1
    ),
    ModuleCase("square linear of ones, bn", lambda: nn.Sequential(_ones(5), nn.BatchNorm1d(5)), ((3, 5),), 1),
    ModuleCase(
        "conv, bn without affine", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGE, 1
    ),
    ModuleCase("bn, conv", lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), IMAGE, 1),
    ModuleCase("bn, linear", lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4, bias=False)), ((3, 5),), 1),
    ModuleCase(
        "conv, bn, relu, conv, bn",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
        IMAGE,
        2,
    ),
    ModuleCase(
        "conv, dropout, bn", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)), IMAGE, 1
    ),
    ModuleCase(
        "conv, average pool, bn",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    ModuleCase(
        "conv, flatten, bn", lambda: nn.Sequential(nn.Conv2d(3, 4, (9, 11)), nn.Flatten(), nn.BatchNorm1d(4)), IMAGE, 1
    ),
    # three axes
    ModuleCase(
        "linear on 3 axes, bn over its features",
        _net(lambda s, x: s.bn(s.fc(x).transpose(1, 2)), lambda: {"fc": nn.Linear(5, 7), "bn": nn.BatchNorm1d(7)}),
        ((2, 9, 5),),
        1,
    ),
    ModuleCase(
        "the same without bias",
        _net(
            lambda s, x: s.bn(s.fc(x).transpose(1, 2)),
            lambda: {"fc": nn.Linear(5, 7, bias=False), "bn": nn.BatchNorm1d(7)},
        ),
        ((2, 9, 5),),
        1,
    ),
    ModuleCase(
        "linear on 3 axes, flattened, bn",
        _net(
            lambda s, x: s.bn(s.fc(x).flatten(0, 1)).view(2, 9, 7),
            lambda: {"fc": nn.Linear(5, 7, bias=False), "bn": nn.BatchNorm1d(7)},
        ),
        ((2, 9, 5),),
        1,
    ),
    ModuleCase(
        "linear on 3 axes, bn over the steps",
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(9)),
        ((2, 9, 5),),
        0,
        1,
    ),
    ModuleCase(
        "as many steps as features, bn over the steps",
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)),
        ((2, 7, 5),),
        0,
        1,
    ),
    ModuleCase(
        "linear on 4 axes, bn",
        _net(lambda s, x: s.bn(s.fc(x).permute(0, 3, 1, 2)), lambda: {"fc": nn.Linear(5, 7), "bn": nn.BatchNorm2d(7)}),
        ((2, 4, 6, 5),),
        1,
    ),
    # sharing
    ModuleCase(
        "one conv with two norms",
        _net(
            lambda s, x: s.a(s.conv(x)) + s.b(s.conv(x)),
            lambda: {"conv": nn.Conv2d(3, 4, 3), "a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4)},
        ),
        IMAGE,
        0,
        2,
    ),
    ModuleCase(
        "one conv, one norm, twice",
        _net(
            lambda s, x: s.bn(s.conv(torch.relu(s.bn(s.conv(x))))),
            lambda: {"conv": nn.Conv2d(3, 3, 3), "bn": nn.BatchNorm2d(3)},
        ),
        IMAGE,
        1,
    ),
    ModuleCase(
        "one norm behind two convs",
        _net(
            lambda s, x: s.bn(s.a(x)) + torch.relu(s.bn(s.b(x))),
            lambda: {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)},
        ),
        IMAGE,
        1,
    ),
    ModuleCase(
        "one norm, once behind a conv and once behind a relu",
        _net(lambda s, x: s.bn(torch.relu(s.bn(s.a(x)))), lambda: {"a": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)}),
        IMAGE,
        0,
        1,
    ),
    ModuleCase(
        "one conv, normed once and once not",
        _net(
            lambda s, x: s.bn(s.conv(x)) * torch.sigmoid(s.conv(x)),
            lambda: {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)},
        ),
        IMAGE,
        0,
        1,
    ),
    ModuleCase(
        "conv with another reader",
        _net(
            lambda s, x: (y := s.conv(x)) * torch.sigmoid(s.bn(y)),
            lambda: {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)},
        ),
        IMAGE,
        0,
        1,
    ),
    ModuleCase("one weight in two layers", _shared_weight, ((3, 5),), 2),
    ModuleCase("two weights that are alike", _tied, ((3, 6),), 1),
    ModuleCase(
        "one list of layers, called twice",
        _net(
            lambda s, x: _all(s.layers, _all(s.layers, x)),
            lambda: {"layers": nn.ModuleList([nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh()])},
        ),
        ((3, 5),),
        1,
    ),
    ModuleCase("one module under two names", _two_names, ((3, 5),), 2),
    # branches
    ModuleCase(
        "residual block",
        _net(
            lambda s, x: torch.relu(s.bn(s.conv(x)) + x),
            lambda: {"conv": nn.Conv2d(3, 3, 3, padding=1), "bn": nn.BatchNorm2d(3)},
        ),
        IMAGE,
        1,
    ),
    ModuleCase(
        "sum of two convs, bn",
        _net(
            lambda s, x: s.bn(s.a(x) + s.b(x)),
            lambda: {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)},
        ),
        IMAGE,
        1,
    ),
    ModuleCase(
        "concatenated, bn",
        _net(
            lambda s, x: s.bn(torch.cat([s.a(x), s.b(x)], 1)),
            lambda: {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 2, 3), "bn": nn.BatchNorm2d(6)},
        ),
        IMAGE,
        1,
    ),
    ModuleCase(
        "RepVGG block",
        _net(
            lambda s, x: torch.relu(s.na(s.a(x)) + s.nb(s.b(x)) + s.n(x)),
            lambda: {
                "a": nn.Conv2d(3, 3, 3, padding=1, bias=False),
                "na": nn.BatchNorm2d(3),
                "b": nn.Conv2d(3, 3, 1, bias=False),
                "nb": nn.BatchNorm2d(3),
                "n": nn.BatchNorm2d(3),
            },
        ),
        IMAGE,
        2,
        1,
    ),
    ModuleCase(
        "bn behind an input that two read",
        _net2(
            lambda s, x, y: s.a(s.n(x)) + s.b(s.n(x)) * y,
            lambda: {"n": nn.BatchNorm2d(3), "a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1)},
        ),
        ((2, 3, 9, 11), (2, 4, 9, 11)),
        1,
    ),
    # padding
    ModuleCase("bn, padded conv", lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), IMAGE, 1),
    ModuleCase(
        "relu, bn, padded conv",
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
        IMAGE,
        1,
    ),
    ModuleCase(
        "conv, relu, bn, max pool, zero pad, conv",
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Conv2d(4, 5, 3)
        ),
        IMAGE,
        0,
        1,
    ),
    # norms of other kinds
    ModuleCase("ln, linear", lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4)), ((2, 7, 5),), 1),
    ModuleCase(
        "ln, linear without bias", lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4, bias=False)), ((2, 7, 5),), 1
    ),
    ModuleCase(
        "ln, two linears",
        _net(
            lambda s, x: s.a(y := s.ln(x)) * torch.sigmoid(s.b(y)),
            lambda: {"ln": nn.LayerNorm(5), "a": nn.Linear(5, 4), "b": nn.Linear(5, 4)},
        ),
        ((2, 7, 5),),
        1,
    ),
    ModuleCase("ln at the end", lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), ((2, 7, 5),), 0, 1),
    ModuleCase("pre-norm encoder", _encoder, ((2, 7, 16),), 4, 1),
    ModuleCase("rms norm, linear", lambda: nn.Sequential(nn.RMSNorm(5), nn.Linear(5, 4)), ((2, 7, 5),), 1),
    ModuleCase("group norm, conv", lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 5, 1)), ((2, 4, 5, 6),), 1),
    ModuleCase(
        "instance norm with statistics",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        IMAGE,
        1,
    ),
    ModuleCase("conv, frozen bn", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm(4), nn.ReLU()), IMAGE, 1),
    ModuleCase("linear, layer scale", lambda: nn.Sequential(nn.Linear(5, 4), LayerScale(4), nn.Tanh()), ((3, 5),), 0),
    ModuleCase("conv, bn with its activation inside", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)), IMAGE, 1),
    ModuleCase("conv, SyncBatchNorm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), IMAGE, 1),
    ModuleCase("functional batch_norm", FunctionalNorm, IMAGE, 0, 1),
    # weights that are computed
    ModuleCase("weight_norm", _weight_norm, IMAGE, 1),
    ModuleCase("weight_norm of old", _old_weight_norm, IMAGE, 1),
    ModuleCase("spectral_norm", _spectral_norm, ((3, 5),), 1),
    ModuleCase(
        "standardized conv, bn", lambda: nn.Sequential(StandardizedConv(3, 4, 3), nn.BatchNorm2d(4)), IMAGE, 0, 1
    ),
    ModuleCase(
        "constant of the code, bn",
        _net(lambda s, x: s.bn(s.fc(x) * 0.5 + 1), lambda: {"fc": nn.Linear(5, 4), "bn": nn.BatchNorm1d(4)}),
        ((3, 5),),
        0,
        1,
    ),
]
