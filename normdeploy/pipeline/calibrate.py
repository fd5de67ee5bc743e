"""``calibrate``: the running statistics of a network's norms, estimated again on data, in a new checkpoint."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from normdeploy.arguments import checked
from normdeploy.disk import disk_errors, room
from normdeploy.disk.outputs import exists
from normdeploy.doctor import calibration
from normdeploy.doctor.calibration import Collected
from normdeploy.doctor.checks import Layer
from normdeploy.doctor.partial import Partial, read
from normdeploy.errors import InputError
from normdeploy.parity.feeds import Feed
from normdeploy.pipeline.keywords import Data, Source
from normdeploy.pipeline.places import check_calibrate
from normdeploy.pipeline.source import app_dir_of, data_feeds, load
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import Dim, Signature, TensorSpec, parse

_EVERY = 10.0
"""Seconds between two partial results on disk."""
_ANY_SIZE = 1 << 31
_SHOWN = 3

Counted = Callable[[int], None]
"""Called with the number of batches that are done."""


@dataclass(frozen=True)
class Row:
    """What calibration made of one norm.

    Attributes:
        module: dotted module name.
        mean_before: the mean over the channels of the running means.
        mean_after: the same afterwards.
        var_before: the mean over the channels of the running variances.
        var_after: the same afterwards.
        moved: the largest change of a running mean, in standard deviations of before.
    """

    module: str
    mean_before: float
    mean_after: float
    var_before: float
    var_after: float
    moved: float


@dataclass(frozen=True)
class Calibrated:
    """What was estimated: a row a norm, and from how many batches."""

    rows: tuple[Row, ...]
    batches: int


@checked(Source)
def calibrate(
    model: str,
    inputs: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    data: Data = None,
    batch: int = 32,
    only: Sequence[str] = (),
    momentum: float | None = None,
    pooled: bool = False,
    partial: str | Path | None = None,
    merge: Sequence[str | Path] = (),
    force: bool = False,
    counted: Counted | None = None,
    **source: Unpack[Source],
) -> Calibrated:
    """Estimate the statistics of the BatchNorms of ``model`` on ``data``, and write all its weights to ``out``.

    Args:
        model: ``package.module:factory``; ``source`` says where its weights are.
        inputs: one spec an input; their sizes may be exceeded by the data.
        out: the safetensors file to write; never one that is there, but with ``force``, and never the old checkpoint.
        data: .npz or safetensors files, taken ``batch`` items at a time, or functions that yield batches.
        batch: items a batch.
        only: patterns (fnmatch) of the norms to estimate; all by default.
        momentum: update them as training does, in the order of the data; None takes the average over all batches.
        pooled: the variance of all values together in place of the average of those of the batches.
        partial: what was counted is kept in this file, and gone on with where it is there.
        merge: partial results of other machines, to be added.
        force: replace ``out``.
        counted: is told how many batches are done.

    Raises InputError where the module cannot be loaded or run, there is nothing to estimate, or a file is in the way.
    """
    _check(out, partial, merge, data, momentum)
    new, kept = (None if path is None else Path(path) for path in (out, partial))
    check_calibrate(new, kept, [*map(Path, merge)], model=model, data=data, source=source, force=force)
    module = load(model, source, check=False).module
    _to_eval(module)
    norms = calibration.calibrated(module, only)
    before = [_summary(layer) for layer in norms]
    oddities: dict[str, None] = {}
    runs = _runs(module, inputs, data, batch, app_dir_of(source), oddities)
    with _with_oddities(oddities):
        if momentum is not None:
            batches = calibration.exponential(norms, _told(runs, counted), momentum)
        else:
            part = _collected(module, norms, runs, kept, _fingerprint(data, batch) if kept else "", counted)
            moments = calibration.merged(
                [each for each in (part.moments, *_others(merge, part.weights, norms)) if each]
            )
            calibration.store(norms, moments, pooled=pooled)
            batches = max(each.batches for each in moments.values())
    if new is not None:
        _write(module, new, force)
    return Calibrated(tuple(_row(layer, old) for layer, old in zip(norms, before, strict=True)), batches)


def _check(
    out: str | Path | None,
    partial: str | Path | None,
    merge: Sequence[str | Path],
    data: Data,
    momentum: float | None,
) -> None:
    if out is None and partial is None:
        raise InputError("there is nowhere to write", fix="give --out, or --partial for what one machine has counted")
    if not data and not merge:
        raise InputError("there are no data", where="--data", fix="give files, or module:function that yields batches")
    if momentum is not None and (partial is not None or merge):
        what = "statistics with a momentum depend on the order of the batches, and cannot be merged"
        raise InputError(what, where="--momentum", fix="leave it out: the average over all batches merges exactly")


def _to_eval(module: nn.Module) -> None:
    for part in module.modules():
        part.training = False


def _runs(
    module: nn.Module, inputs: Sequence[str], data: Data, batch: int, app_dir: Path | None, oddities: dict[str, None]
) -> Iterator[Callable[[], object]]:
    """Yield what runs the module on one batch, for each batch of ``data``; ``oddities`` gets what is odd about them."""
    if not data:
        return
    specs = parse(inputs)
    wide = Signature([_of_any_size(spec) for spec in specs], specs.values)
    run = EagerRunner(module, wide)
    for feed in data_feeds(wide, data, app_dir):
        oddities.update(dict.fromkeys(feed.notes))
        for part in batches(feed, batch):
            yield lambda part=part: run(part)  # type: ignore[misc]  # a default that binds


@contextmanager
def _with_oddities(oddities: Mapping[str, None]) -> Iterator[None]:
    """Tell beside an error of statistics what is odd about the data: NaN."""
    try:
        yield
    except calibration.NotFiniteError as error:
        where = "; ".join((error.where, *list(oddities)[:_SHOWN]))
        raise InputError(error.what, where=where, fix=error.fix) from error


def _of_any_size(spec: TensorSpec) -> TensorSpec:
    """Return ``spec`` with ranges that end nowhere: a file holds more items than a batch."""
    return replace(spec, dims=tuple(dim if dim.fixed else Dim(dim.name, 1, dim.opt, _ANY_SIZE) for dim in spec.dims))


def batches(feed: Feed, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield ``feed`` in parts of ``size`` items: of all inputs whose first axis is as long as that of the first one."""
    items = next((len(array) for array in feed.arrays.values() if array.ndim), 1)
    for start in range(0, items, size):
        yield {
            name: array[start : start + size] if array.ndim and len(array) == items else array
            for name, array in feed.arrays.items()
        }


def _told(runs: Iterator[Callable[[], object]], counted: Counted | None) -> Iterator[Callable[[], object]]:
    for done, run in enumerate(runs, 1):
        yield run
        if counted is not None:
            counted(done)


def _collected(
    module: nn.Module,
    norms: Sequence[Layer],
    runs: Iterator[Callable[[], object]],
    path: Path | None,
    data: str,
    counted: Counted | None,
) -> Partial:
    """Return the moments of all ``runs``, of which those that ``path`` has are not run again."""
    weights = calibration.digest(module, norms)
    part = _known(path, weights, [layer.info.name for layer in norms], data)
    saved, done = time.monotonic(), 0
    for done, run in enumerate(runs, 1):
        if done > part.done:
            part = replace(part, done=done, moments=calibration.collect(norms, run, part.moments))
        if counted is not None:
            counted(done)
        if path is not None and time.monotonic() - saved > _EVERY:
            part.write(path)
            saved = time.monotonic()
    if done < part.done:
        what = f"the partial result has {part.done} batches, the data {done}"
        raise InputError(what, where=str(path), fix="go on with the data and the --batch that it was begun with")
    if path is not None:
        part.write(path)
    return part


def _fingerprint(data: Data, batch: int) -> str:
    """Return the SHA-256 of the files of ``data``, or of the names of functions, and of the size of a batch."""
    told = hashlib.sha256(str(batch).encode())
    for each in [data] if isinstance(data, str | Path) else data or ():
        if Path(each).is_file():
            with Path(each).open("rb") as file:
                told.update(hashlib.file_digest(file, "sha256").digest())
        else:
            told.update(str(each).encode())
    return told.hexdigest()


def _known(path: Path | None, weights: str, names: Sequence[str], data: str) -> Partial:
    if path is None or not path.exists():
        return Partial(weights, 0, {}, data)
    part = read(path)
    if part.weights != weights or (part.moments and set(part.moments) != set(names)):
        what = "the partial result is of other weights, or of other norms"
        raise InputError(what, where=str(path), fix="choose another --partial, or give what it was begun with")
    if part.data != data:
        what = "the partial result is of other data, or of batches of another size"
        raise InputError(what, where=str(path), fix="choose another --partial, and give both to --merge")
    return part


def _others(merge: Sequence[str | Path], weights: str, norms: Sequence[Layer]) -> Iterator[Collected]:
    seen: dict[bytes, Path] = {}
    for path in map(Path, merge):
        part = read(path)
        if (first := seen.setdefault(part.to_bytes(), path)) is not path:
            what = f"it is the same partial result as {first}, and would be counted twice"
            raise InputError(what, where=str(path), fix="give each once with --merge")
        calibration.require_norms(norms, part.moments)
        if part.weights != weights:
            what = "the partial result was counted with other weights, or other statistics of what --only leaves out"
            raise InputError(what, where=str(path), fix="merge results of one checkpoint, with one --only")
        yield part.moments


def _write(module: nn.Module, path: Path, force: bool) -> None:
    with disk_errors(path, "the checkpoint"), room(path) as place:
        save_file({name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}, place.new)
        try:
            place.settle(path, replace=force)
        except FileExistsError as error:
            raise exists(path) from error


def _summary(layer: Layer) -> tuple[Tensor, Tensor]:
    return layer.module.running_mean.double().clone(), layer.module.running_var.double().clone()


def _row(layer: Layer, before: tuple[Tensor, Tensor]) -> Row:
    mean, variance = _summary(layer)
    moved = ((mean - before[0]).abs() / (before[1].clamp(min=0) + (layer.info.eps or 0.0)).sqrt()).max()
    numbers = (float(before[0].mean()), float(mean.mean()), float(before[1].mean()), float(variance.mean()))
    return Row(layer.info.name, *numbers, float(torch.nan_to_num(moved, nan=float("inf"))))
