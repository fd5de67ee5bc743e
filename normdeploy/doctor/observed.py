"""What reaches each norm when the module runs on data: how often it is called, with what moments, and how large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.doctor.checks import HALF_MAX, Layer, layers
from normdeploy.doctor.findings import Finding, finding
from normdeploy.doctor.moments import Moments

_DRIFT = 1.0
"""Standard deviations by which a channel's mean may lie off, half of the channels."""
_RATIO = 4.0
"""Times that a channel's variance may be larger or smaller, half of the channels."""
_SPREAD, _ITEMS = 0.5, 16
"""Standard deviations that the channels' means may lie off (root mean square), where that many items were seen: fewer
that fit can lie as far off by chance.
"""


@dataclass
class Observed:
    """What a norm was seen to get: how often in one run of the module, along its first axis, and its moments."""

    layer: Layer
    calls: int = 0
    items: int = 0
    moments: Moments | None = None


@contextmanager
def watched(norms: Iterable[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Let ``see`` have the input of each of ``norms`` whenever it is called, by position or by name."""
    hooks = []
    for layer in norms:

        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: Layer = layer) -> None:
            given = next(iter((*args, *kwargs.values())), None)
            if isinstance(given, Tensor) and given.numel():
                see(layer, given)

        hooks.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def observe(module: nn.Module, runs: Iterable[Callable[[], object]]) -> list[Observed]:
    """Return what the norms of ``module`` get in ``runs``, each of which calls it once; in the order of their calls."""
    found: dict[str, Observed] = {}

    def see(layer: Layer, values: Tensor) -> None:
        entry = found.setdefault(layer.info.name, Observed(layer))
        entry.calls += 1
        entry.items += values.shape[0] if values.ndim > 1 else 1
        axis = 1 if layer.info.running and values.ndim > 1 else -1
        moments = Moments.of(values, axis if values.ndim else 0)
        entry.moments = moments if entry.moments is None else entry.moments.merged(moments)

    count = 0
    with watched(layers(module), see), torch.inference_mode():
        for run in runs:
            run()
            count += 1
    for entry in found.values():
        entry.calls //= max(count, 1)
    return list(found.values())


def check_calls(observed: Iterable[Observed]) -> Iterator[Finding]:
    """Yield the norms that are called more than once a run."""
    for entry in observed:
        if entry.calls > 1 and not entry.layer.others:
            message = f"it is called {entry.calls} times in one run: one norm at several places"
            yield finding("ND017", entry.layer.info.name, message)


def check_data(observed: Iterable[Observed]) -> Iterator[Finding]:
    """Yield what does not fit the data that was run: statistics, and squares that overflow float16."""
    for entry in observed:
        moments, name = entry.moments, entry.layer.info.name
        if moments is None:
            continue
        if moments.largest**2 > HALF_MAX and not entry.layer.info.running:  # which squares nothing
            yield finding(
                "ND016", name, f"values of up to {moments.largest:.4g} reach it: in float16 their squares overflow"
            )
        if message := _drift(entry.layer, moments, entry.items):
            yield finding("ND018", name, message)


def _drift(layer: Layer, moments: Moments, items: int) -> str:
    mean, variance = layer.values("running_mean"), layer.values("running_var")
    if mean is None or variance is None or moments.count < _FEWEST or mean.shape != moments.mean.shape:
        return ""
    if not all(bool(torch.isfinite(each).all()) for each in (mean, variance, moments.mean, moments.variance)):
        return ""  # ND004 tells of it, and a note of the data
    usual = (variance.clamp(min=0) + (layer.info.eps or 0.0)).sqrt().clamp(min=_LEAST)
    off = (moments.mean - mean).abs() / usual
    seen = moments.variance + (layer.info.eps or 0.0)
    ratio = seen / usual.square()
    spread = float(off.square().mean().sqrt())
    fits = float(off.median()) <= _DRIFT and 1 / _RATIO <= float(ratio.median()) <= _RATIO
    if fits and (items < _ITEMS or spread <= _SPREAD):
        return ""
    worst = int(off.argmax())
    return (
        f"its statistics do not fit these data: half of the channels lie {float(off.median()):.2g} standard deviations "
        f"off or more, all of them {spread:.2g} (root mean square), their variance with eps is "
        f"{float(ratio.median()):.2g} times as large (median); channel {worst} is the worst, "
        f"mean {float(moments.mean[worst]):.3g} where {float(mean[worst]):.3g} was learned"
    )


_FEWEST = 32
"""Values a channel from which on its moments say anything."""
_LEAST = 1e-30
"""In place of a deviation of 0."""
