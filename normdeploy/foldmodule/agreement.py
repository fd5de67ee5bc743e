"""The proof of a folded module: it is the folded graph and the module it was made of, in float64.

    |folded module - folded graph|  ≤  1e-6 of the graph's output, both in float64 with the same weights
    |folded module - module|        ≤  what parity allows a deployed graph: eager's own error, see normdeploy.parity

The second is asked at other batch sizes too, where the module runs at them: a forward that branches on its sizes may
skip a norm there. In its own dtype the folded module may lose some of what eager loses more: it rounds other products.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.errors import InputError, NormdeployError, VerdictError
from normdeploy.export.encoder import one_path
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Array, Feed
from normdeploy.parity.metrics import errors, is_float
from normdeploy.parity.verdict import Criteria, judge_one
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.float64 import Float64Runner, NoFloat64Error
from normdeploy.runtime.ties import FirstOfEqual
from normdeploy.specs import Dim, Signature, TensorSpec

_IN_ITS_DTYPE = Criteria(k=16.0, floor_eps=64.0)
"""DETR's encoder was seen at 4.9 times eager's error, of which none is in float64."""
SAME = 1e-6
"""RMS of the difference over that of the output, of two computations in float64 with the same weights."""


def require_agreement(module: nn.Module, folded: nn.Module, graph: ir.Model, specs: Signature, feed: Feed) -> None:
    """Raise NormdeployError where ``folded`` is not ``graph`` or not ``module``, on ``feed`` and what is made of it.

    Only copies are run: a module may keep what it computed, in the dtype that it was computed in.
    """
    feeds = [feed, replace(feed, name="zeros", arrays=dict(_zeros(feed.arrays)), corner=True)]
    _require_same_as_graph(folded, graph, specs, feeds)
    _require_same_as_module(module, folded, graph, specs, feeds)


def require_other_batches(module: nn.Module, folded: nn.Module, specs: Signature, feed: Feed) -> None:
    """Raise NormdeployError where ``folded`` is not ``module`` with one item, one more or twice as many as in ``feed``.

    Sizes at which the module does not run are left out.
    """
    for other, at in _other_batches(specs, feed):
        if _runs(module, other, at):
            _require_same_as_module(module, folded, None, other, [at])


def _require_same_as_graph(folded: nn.Module, graph: ir.Model, specs: Signature, feeds: Sequence[Feed]) -> None:
    try:
        runner, exact = Float64Runner(graph), EagerRunner(copy.deepcopy(folded), specs, dtype=torch.float64)
        for feed in feeds:
            with np.errstate(all="ignore"), one_path(), FirstOfEqual():
                actual, wanted = exact(feed.arrays), runner(feed.arrays)
            for name, value in wanted.items():
                off = errors(actual[name], value, "float64")
                if is_float(value.dtype.name) and not off.rms <= SAME:
                    raise _failed(f"{name} is off from the folded graph by {off.rms:.2g} in float64", feed)
    except NoFloat64Error:  # then it is judged beside the module alone
        return
    except InputError as error:
        raise NormdeployError(f"the folded module does not run: {error.what}", where=error.where, fix=_FIX) from error


def _require_same_as_module(
    module: nn.Module, folded: nn.Module, graph: ir.Model | None, specs: Signature, feeds: Sequence[Feed]
) -> None:
    try:
        deployed = EagerRunner(copy.deepcopy(folded), specs)
        with FirstOfEqual():  # the folded module too, which is PyTorch's as the module is
            measured = measure(copy.deepcopy(module), specs, deployed, feeds, graph=graph)
    except VerdictError as error:
        raise NormdeployError(f"the folded module does not run: {error.what}", where=error.where, fix=_FIX) from error
    for each in measured.measurements:
        criteria = Criteria() if each.part == "graph" else _IN_ITS_DTYPE
        if not judge_one(each, criteria, measured.reference).passed:
            raise _failed(f"{each.output} is off from the module by {each.deployed.rms:.2g} on {each.feed}", feeds[0])


_FIX = "report it; normdeploy.export writes the same fold as an ONNX file"


def _failed(what: str, feed: Feed) -> NormdeployError:
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.arrays.items())
    fix = "if forward branches on its sizes, let it not skip a norm; otherwise report it"
    return NormdeployError(f"the folded module is not the module: {what}", where=shapes, fix=fix)


def _zeros(arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name, array in arrays.items():
        yield name, np.zeros_like(array) if is_float(array.dtype.name) else array


def _other_batches(specs: Signature, feed: Feed) -> Iterator[tuple[Signature, Feed]]:
    """Yield the feed with another number of items: of all inputs whose first axis is as long as the first one's."""
    batch = next((int(array.shape[0]) for array in feed.arrays.values() if array.ndim), 0)
    for size in sorted({1, batch + 1, 2 * batch} - {batch, 0}):
        arrays, changed = {}, []
        for spec in specs:
            array = feed.arrays[spec.name]
            follows = array.ndim > 0 and array.shape[0] == batch
            arrays[spec.name] = np.take(array, np.arange(size) % batch, axis=0) if follows and batch else array
            changed.append(replace(spec, dims=(Dim(None, size, size, size), *spec.dims[1:])) if follows else spec)
        yield Signature(changed, specs.values, specs.outputs), Feed(f"{size} items", arrays)


def _runs(module: nn.Module, specs: Sequence[TensorSpec], feed: Feed) -> bool:
    try:
        EagerRunner(copy.deepcopy(module), specs)(feed.arrays)
    except InputError:
        return False
    return True
