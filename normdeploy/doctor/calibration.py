"""BatchNorm statistics estimated again: what each norm is to hold, from the moments of what reaches it.

As in ``torch.optim.swa_utils.update_bn`` the norms run in training mode, so each normalizes by its batch while those
behind it are measured, and the statistics are the averages of the batches' means and unbiased variances. All else stays
in eval mode: no dropout. Pooled, the variance is that of all values together, which also counts how far the batches'
means lie apart. Both are sums in float64: the order of the batches does not matter, nor on which machine each was run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.doctor.checks import Layer, layers
from normdeploy.doctor.findings import called
from normdeploy.doctor.moments import Moments
from normdeploy.doctor.observed import watched
from normdeploy.errors import InputError

Collected = dict[str, Moments]
"""Norm by its module name → the moments of what reached it."""
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def calibrated(module: nn.Module, only: Sequence[str] = ()) -> list[Layer]:
    """Return the norms of ``module`` that have running statistics, and whose name a pattern of ``only`` fits, if any.

    Raises InputError where there is none, or a pattern fits none.
    """
    known = [layer for layer in layers(module) if isinstance(layer.module, nn.modules.batchnorm._BatchNorm)]
    found = [layer for layer in known if layer.info.running]
    for pattern in only:
        if not any(fnmatchcase(layer.info.name, pattern) for layer in found):
            names = ", ".join(called(layer.info.name) for layer in found[:10]) or "none"
            raise InputError(
                f"no norm with running statistics is called {pattern!r}", where="--only", fix=f"choose among: {names}"
            )
    found = [layer for layer in found if not only or any(fnmatchcase(layer.info.name, each) for each in only)]
    if not found:
        raise InputError("the module has no BatchNorm with running statistics", fix="there is nothing to estimate")
    return found


def collect(norms: Sequence[Layer], run: Callable[[], object], before: Mapping[str, Moments]) -> Collected:
    """Return ``before`` and, merged into it, what reaches ``norms`` in one ``run``; the module is left as it was."""
    found = dict(before)

    def see(layer: Layer, values: Tensor) -> None:
        moments, name = Moments.of(values), layer.info.name
        found[name] = found[name].merged(moments) if name in found else moments

    with _training(norms), watched(norms, see), torch.no_grad():
        run()
    return found


def merged(parts: Iterable[Mapping[str, Moments]]) -> Collected:
    """Return all ``parts`` as one; InputError where they are of other norms."""
    total: Collected = {}
    for part in parts:
        if total and set(total) != set(part):
            raise InputError(
                "the partial results are of other norms", where="--merge", fix="use the same --only for each"
            )
        total = {name: total[name].merged(each) if name in total else each for name, each in part.items()}
    return total


def store(norms: Sequence[Layer], found: Mapping[str, Moments], *, pooled: bool = False) -> None:
    """Write into ``norms`` the statistics that ``found`` tells, each in its own dtype.

    Raises InputError where nothing reached a norm, or too little for a variance.
    """
    unseen = [layer.info.name for layer in norms if layer.info.name not in found]
    if unseen:
        fix = "leave them out with --only, or give data that take their path"
        raise InputError("nothing reached some norms", where=", ".join(map(called, unseen[:10])), fix=fix)
    for layer in norms:
        moments, part = found[layer.info.name], layer.module
        mean, variance = (moments.mean, moments.variance) if pooled else (moments.batch_mean, moments.batch_variance)
        if not bool(torch.isfinite(mean).all()):
            raise NotFiniteError(layer)
        if not bool(torch.isfinite(variance).all()):
            what = "a batch has one value a channel: it has no variance"
            raise InputError(what, where=called(layer.info.name), fix="give larger batches")
        part.running_mean.copy_(mean)
        part.running_var.copy_(variance)
        if part.num_batches_tracked is not None:
            part.num_batches_tracked.fill_(moments.batches)


def exponential(norms: Sequence[Layer], runs: Iterable[Callable[[], object]], momentum: float) -> int:
    """Let torch itself update ``norms`` in ``runs`` with ``momentum``, from what they hold; return how many runs.

    Raises InputError for a momentum that is none, and where statistics come out NaN or infinite.
    """
    if not 0 < momentum <= 1:
        raise InputError(
            "a momentum lies above 0, and at most at 1", where=f"--momentum {momentum:g}", fix="give e.g. 0.1"
        )
    before, count = [layer.module.momentum for layer in norms], 0
    for layer in norms:
        layer.module.train()
        layer.module.momentum = momentum
    try:
        with torch.no_grad():
            for run in runs:
                run()
                count += 1
    finally:
        for layer, value in zip(norms, before, strict=True):
            layer.module.eval()
            layer.module.momentum = value
    for layer in norms:
        if not all(bool(torch.isfinite(getattr(layer.module, name)).all()) for name in _BUFFERS[:2]):
            raise NotFiniteError(layer)
    return count


class NotFiniteError(InputError):
    """The data make values that are NaN or infinite, of which there are no statistics."""

    def __init__(self, layer: Layer) -> None:
        what = "values that are NaN or infinite reach a norm: no statistics can be made of them"
        fix = "look for NaN in the data, and in what stands in front of the norm"
        super().__init__(what, where=called(layer.info.name), fix=fix)


@contextmanager
def _training(norms: Sequence[Layer]) -> Iterator[None]:
    """Let ``norms`` normalize by their batch, and take back what that does to their statistics."""
    held: list[tuple[Any, dict[str, Tensor]]] = []
    for layer in norms:
        buffers = {name: getattr(layer.module, name) for name in _BUFFERS}
        held.append((layer.module, {name: each.clone() for name, each in buffers.items() if each is not None}))
        layer.module.train()
    try:
        yield
    finally:
        for part, buffers in held:
            part.eval()
            for name, value in buffers.items():
                getattr(part, name).copy_(value)


def require_norms(norms: Sequence[Layer], found: Iterable[str]) -> None:
    """Raise InputError where norms were ``found`` that are none of ``norms``: they normalized by their batch then."""
    others = [called(name) for name in set(found) - {layer.info.name for layer in norms}]
    if others:
        what = "the partial result was counted while other norms normalized by their batch too"
        fix = "use the same --only for each partial result and for --merge"
        raise InputError(what, where=", ".join(sorted(others)[:10]), fix=fix)


def digest(module: nn.Module, norms: Sequence[Layer]) -> str:
    """Return the SHA-256 of the parameters and buffers of ``module``, but for the statistics of ``norms``.

    Moments of ``norms`` are those of one set of weights, and of one set of statistics of the norms in front of them.
    """
    total, own = hashlib.sha256(), {f"{layer.info.name}.{name}".lstrip(".") for layer in norms for name in _BUFFERS}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in own:
            continue
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
