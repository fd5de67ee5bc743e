"""What can be told of a norm by its own numbers: one row a check, which gives a sentence or nothing.

With ``s = gamma / sqrt(var + eps)``, what a folded weight is multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.doctor.findings import Finding, finding
from normdeploy.doctor.inventory import NormInfo, norms

HALF_MAX = 65504.0
"""The largest number of float16."""
_SMALLEST_NORMAL = float(torch.finfo(torch.float32).smallest_normal)
_HALF_SMALLEST = 2.0**-24
"""The smallest number of float16 above 0."""
_EXPLODING = 1e3
_DEAD = 1e-6
"""Of the largest scale of its layer."""
_SHOWN = 4
_LARGE_EPS = 0.1
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_OVER_ELEMENTS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """One norm: its facts, its module, and the other names that the module is reached by."""

    info: NormInfo
    module: Any
    others: tuple[str, ...]

    def values(self, name: str) -> Tensor | None:
        """Return one of its tensors in float64."""
        tensor = getattr(self.module, name, None)
        return tensor.detach().double().cpu() if isinstance(tensor, Tensor) and not tensor.is_meta else None

    @property
    def scale(self) -> Tensor | None:
        """Return ``s`` of each channel of a norm with running statistics, else gamma; None where neither is there."""
        gamma, variance = self.values("weight"), self.values("running_var")
        if variance is None:
            return gamma
        factor = (variance.clamp(min=0) + (self.info.eps or 0.0)).rsqrt()
        return factor if gamma is None else gamma * factor


def layers(module: nn.Module) -> list[Layer]:
    """Return the norms of ``module``."""
    names: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    found = []
    for info in norms(module):
        part = module.get_submodule(info.name)
        found.append(Layer(info, part, tuple(name for name in names[id(part)] if name != info.name)))
    return found


def check(module: nn.Module) -> Iterator[Finding]:
    """Yield what is found of the norms of ``module`` by their numbers alone."""
    for layer in layers(module):
        for code, rule in CHECKS.items():
            if message := rule(layer, module):
                yield finding(code, layer.info.name, message)


# -- the checks ----------------------------------------------------------------------------------


def _training(layer: Layer, module: nn.Module) -> str:
    if not layer.info.training or module.training:
        return ""
    return "it is in training mode inside a module in eval mode: it normalizes with the statistics of each batch"


def _never_updated(layer: Layer, module: nn.Module) -> str:
    mean, variance = layer.values("running_mean"), layer.values("running_var")
    if mean is None or variance is None or bool(mean.any()) or not bool((variance == 1).all()):
        return ""
    return "its running statistics are those it was made with, mean 0 and variance 1: no batch has updated them"


def _no_statistics(layer: Layer, module: nn.Module) -> str:
    if not layer.info.batch_statistics:
        return ""
    return "it keeps no running statistics: in eval mode too an item is normalized with the other items of its batch"


def _not_finite(layer: Layer, module: nn.Module) -> str:
    bad = []
    for name in ("running_mean", "running_var", "weight", "bias"):
        values = layer.values(name)
        if values is not None and (count := int((~torch.isfinite(values)).sum())):
            bad.append(f"{name} is NaN or infinite in {count} of {values.numel()}")
    return "; ".join(bad)


def _negative(layer: Layer, module: nn.Module) -> str:
    variance = layer.values("running_var")
    if variance is None or not bool((variance < 0).any()):
        return ""
    below = int((variance + (layer.info.eps or 0.0) < 0).sum())
    nan = f", and {below} stay below 0 with eps added: their output is NaN" if below else ""
    lowest = float(variance[variance < 0].min())
    return f"running_var is negative in {_share(variance < 0)}, down to {lowest:.3g}{nan}"


def _zero(layer: Layer, module: nn.Module) -> str:
    variance = layer.values("running_var")
    if variance is None or not bool((variance == 0).any()):
        return ""
    return f"running_var is 0 in {_share(variance == 0)}: {_multiplied(layer, variance == 0)}"


def _subnormal(layer: Layer, module: nn.Module) -> str:
    variance = layer.values("running_var")
    tiny = None if variance is None else (variance > 0) & (variance < _SMALLEST_NORMAL)
    if variance is None or tiny is None or not bool(tiny.any()):
        return ""
    least = float(variance[tiny].min())
    return f"running_var is subnormal in {_share(tiny)}, {least:.2g} at least: {_multiplied(layer, tiny)}"


def _dead(layer: Layer, module: nn.Module) -> str:
    gamma = layer.values("weight")
    if gamma is None or gamma.ndim == 0 or not bool(torch.isfinite(gamma).all()):
        return ""
    size, largest = gamma.abs(), float(gamma.abs().max())
    dead = size < _DEAD * largest if largest else size == 0
    if not bool(dead.any()):
        return ""
    shown = ", ".join(f"{float(value):.2g}" for value in gamma[dead][:_SHOWN])
    more = ", ..." if int(dead.sum()) > _SHOWN else ""
    return f"its scale is 0, or as good as 0, in {_share(dead)} ({shown}{more}; the largest is {largest:.2g})"


def _exploding(layer: Layer, module: nn.Module) -> str:
    scale = layer.scale
    large = None if scale is None else torch.isfinite(scale) & (scale.abs() > _EXPLODING)
    if scale is None or large is None or not bool(large.any()):
        return ""
    return f"it multiplies {_share(large)} by more than {_EXPLODING:g}, by {_largest(scale, large):.4g} at most"


def _momentum(layer: Layer, module: nn.Module) -> str:
    momentum = getattr(layer.module, "momentum", None)
    if not layer.info.running or not isinstance(momentum, int | float) or 0 < momentum < 1:
        return ""
    if momentum == 0:
        return "momentum is 0: its running statistics never change in training"
    if momentum == 1:
        return "momentum is 1: its running statistics are those of the last batch alone"
    return f"momentum is {momentum:g}: running statistics are an average only between 0 and 1"


def _eps(layer: Layer, module: nn.Module) -> str:
    eps, variance = layer.info.eps, layer.values("running_var")
    variance = None if variance is None else variance[torch.isfinite(variance)]
    if eps is None:
        return ""
    if eps <= 0:
        return f"eps is {eps:g}: a channel or row without variance is divided by 0"
    if eps >= _LARGE_EPS:
        return f"eps is {eps:g}: it changes what variances of its own size come to"
    if variance is not None and variance.numel() and bool((variance > 0).any()) and float(variance.median()) < eps:
        return f"eps is {eps:g}, more than half of the variances (median {float(variance.median()):.2g}) are below it"
    return ""


def _eps_in_half(layer: Layer, module: nn.Module) -> str:
    eps = layer.info.eps
    if eps is None or layer.info.running or not 0 < eps < _HALF_SMALLEST / 2:
        return ""
    return f"eps is {eps:g}, which is 0 in float16: where statistics are computed in it, a constant row is divided by 0"


def _one_element(layer: Layer, module: nn.Module) -> str:
    shape = getattr(layer.module, "normalized_shape", None)
    if not isinstance(layer.module, _OVER_ELEMENTS) or shape is None or math.prod(shape) != 1:
        return ""
    what = "its bias" if isinstance(layer.module, nn.LayerNorm) else "the sign of its input, times its scale"
    return f"it normalizes over one element: whatever comes in, {what} comes out"


def _squares(layer: Layer, module: nn.Module) -> str:
    mean, variance = layer.values("running_mean"), layer.values("running_var")
    if mean is None or variance is None:
        return ""
    squares = mean.square() + variance
    large = torch.isfinite(squares) & (squares > HALF_MAX)
    if not bool(large.any()):
        return ""
    return (
        f"the mean square of what reaches it is over {HALF_MAX:g} in {_share(large)}, "
        f"{_largest(squares, large):,.0f} at most "
        f"(running_var up to {_largest(variance, large):,.0f}): in float16 its squares overflow"
    )


def _two_names(layer: Layer, module: nn.Module) -> str:
    return f"it is also {', '.join(layer.others)}: one norm at several places" if layer.others else ""


CHECKS: dict[str, Callable[[Layer, nn.Module], str]] = {
    "ND001": _training,
    "ND002": _never_updated,
    "ND003": _no_statistics,
    "ND004": _not_finite,
    "ND005": _negative,
    "ND006": _zero,
    "ND007": _subnormal,
    "ND008": _dead,
    "ND009": _exploding,
    "ND012": _momentum,
    "ND013": _eps,
    "ND014": _one_element,
    "ND015": _squares,
    "ND017": _two_names,
    "ND020": _eps_in_half,
}
"""Code → what it says of a layer; nothing where there is nothing to say."""


def _share(which: Tensor) -> str:
    return f"{int(which.sum())} of {which.numel()} channels"


def _multiplied(layer: Layer, which: Tensor) -> str:
    said, scale = "eps alone decides what it is divided by", layer.scale
    known = which if scale is None else which & torch.isfinite(scale)
    if scale is None or not bool(known.any()):
        return said
    return f"{said}, and folded weights are multiplied by up to {_largest(scale, known):.4g}"


def _largest(values: Tensor, which: Tensor) -> float:
    return float(values[which].abs().max())
