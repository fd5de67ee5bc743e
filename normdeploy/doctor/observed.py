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


@dataclass
class Observed:
    """What a norm was seen to get: how often in one run of the module, and the moments of its channels."""

    layer: Layer
    calls: int = 0
    moments: Moments | None = None


@contextmanager
def watched(norms: Iterable[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Let ``see`` have the input of each of ``norms`` whenever it is called."""
    hooks = []
    for layer in norms:

        def hook(part: nn.Module, given: tuple[Any, ...], layer: Layer = layer) -> None:
            if given and isinstance(given[0], Tensor) and given[0].numel():
                see(layer, given[0])

        hooks.append(layer.module.register_forward_pre_hook(hook))
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
        if moments.largest**2 > HALF_MAX:
            yield finding(
                "ND016", name, f"values of up to {moments.largest:.4g} reach it: in float16 their squares overflow"
            )
        if message := _drift(entry.layer, moments):
            yield finding("ND018", name, message)


def _drift(layer: Layer, moments: Moments) -> str:
    mean, variance = layer.values("running_mean"), layer.values("running_var")
    if mean is None or variance is None or moments.count < _FEWEST or mean.shape != moments.mean.shape:
        return ""
    usual = (variance.clamp(min=0) + (layer.info.eps or 0.0)).sqrt()
    off = (moments.mean - mean).abs() / usual
    seen = moments.variance + (layer.info.eps or 0.0)
    ratio = seen / usual.square()
    if float(off.median()) <= _DRIFT and 1 / _RATIO <= float(ratio.median()) <= _RATIO:
        return ""
    worst = int(off.argmax())
    return (
        f"its statistics do not fit these data: half of the channels lie {float(off.median()):.2g} "
        "standard deviations off "
        f"or more, their variance is {float(ratio.median()):.2g} times as large (median); channel "
        f"{worst} is the worst, "
        f"mean {float(moments.mean[worst]):.3g} where {float(mean[worst]):.3g} was learned"
    )


_FEWEST = 32
"""Values a channel from which on its moments say anything."""
