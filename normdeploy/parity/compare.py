"""Runs the module and the artefact on the same feeds and measures every output of every feed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from normdeploy.errors import UnavailableError, VerdictError
from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, eps, errors, is_float
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.verdict import Measurement, Reference
from normdeploy.runtime.runner import Runner, first_line
from normdeploy.specs import TensorSpec

Array = npt.NDArray[Any]

USELESS = 0.25
"""Eager's own RMS error from which on ``4 * e_eager`` lets zeros pass: float64 is no reference of that output."""


class Measured(NamedTuple):
    """The measurements, the reference ("eager" where float64 served for none of them) and what is to be said."""

    measurements: tuple[Measurement, ...]
    reference: Reference
    notes: tuple[str, ...]


def measure(
    module: nn.Module,
    specs: Sequence[TensorSpec],
    deployed: Runner,
    feeds: Sequence[Feed],
    *,
    dtype: torch.dtype | None = None,
) -> Measured:
    """The errors of eager PyTorch (in ``dtype``, or the module's own) and of ``deployed``, for each output and feed.

    Raises VerdictError, by feed and output, where the artefact does not run, where outputs are missing or unexpected,
    and where one has another shape or dtype: nothing is broadcast or cast to make it comparable. Only where ``dtype``
    is given may the artefact return wider floats than eager: a graph that computes in 16 bits keeps float32 borders.
    """
    oracle = Oracle(module, specs, dtype)
    notes = dict.fromkeys(note for feed in feeds for note in feed.notes)
    measurements: list[Measurement] = []
    served = False
    for feed in feeds:
        eager = oracle.eager(feed.arrays)
        exact = oracle.exact(feed.arrays)
        served = served or exact is not None
        actual = _run(deployed, feed)
        _require_same_outputs(eager, actual, deployed.name, feed.name, wider=dtype is not None)
        for name, value in eager.items():
            wanted = None if exact is None else exact.get(name)
            measurements.append(measurement(feed.name, name, value, wanted, actual[name]))
            if wanted is not None and (why := no_reference(value, wanted)):
                exactly = measurements[-1].reference == "float64"
                held = "float64, which it is nearer to, with nothing allowed" if exactly else "eager in its own dtype"
                notes[f"{name} on {feed.name}: {why}: judged against {held}"] = None
    return Measured(tuple(measurements), "float64" if served else "eager", (*oracle.notes, *notes))


def measurement(feed: str, output: str, eager: Array, exact: Array | None, deployed: Array) -> Measurement:
    """The errors of one output, given as eager, float64 and the artefact return it, all of one shape.

    Where eager has lost the output, nothing is allowed for that, and the artefact is held to what it is nearer to: a
    norm that is right is not failed by one whose squares overflow in 16 bits. Where eager ends in NaN or infinity, the
    artefact must too: that it does not here may be the runtime's doing, which computes some of it in float32.
    """
    dtype = eager.dtype.name
    against_eager = Measurement(feed, output, eager.shape, dtype, EXACT, errors(deployed, eager, dtype), "eager")
    if exact is None or not is_float(dtype) or exact.shape != eager.shape or not _is_float64(exact, dtype):
        return against_eager
    own, actual = errors(eager, exact, dtype), errors(deployed, exact, dtype)
    if not no_reference(eager, exact):
        return Measurement(feed, output, eager.shape, dtype, own, actual)
    nearer = own.finite and actual.finite and not against_eager.deployed.rms <= actual.rms
    return Measurement(feed, output, eager.shape, dtype, EXACT, actual) if nearer else against_eager


def _is_float64(exact: Array, dtype: str) -> bool:
    """Whether ``exact`` has digits that ``dtype`` has not."""
    return exact.dtype.name == "float64" != dtype


def no_reference(eager: Array, exact: Array) -> str:
    """Why ``exact`` cannot stand in for what ``eager`` should have been; empty where it can, or where they agree."""
    dtype = eager.dtype.name
    if eager.shape != exact.shape:
        return f"float64 returns the shape {exact.shape}, not {eager.shape}"
    if not is_float(dtype):
        differing = int(np.count_nonzero(eager != exact))
        return f"float64 differs in {differing} whole numbers or booleans, as at a tie" if differing else ""
    if dtype == "float64":
        return "it is float64 already"
    if exact.dtype.name != "float64":
        return f"float64 returns {exact.dtype.name}"
    own = errors(eager, exact, dtype)
    if not own.finite:
        return f"{dtype} itself is NaN or infinite where float64 is not, or the other way round"
    if own.rms >= USELESS:
        return f"{dtype} itself is off by {own.rms:.2g} of the output"
    return ""


def _run(deployed: Runner, feed: Feed) -> Arrays:
    try:
        return deployed(feed.arrays)
    except UnavailableError:
        raise
    except Exception as error:  # eager took this feed, so whatever it is, the artefact is not its equal
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.arrays.items())
        raise VerdictError(
            f"the artefact does not run where eager PyTorch does: {first_line(error)}",
            where=f"{deployed.name}, feed {feed.name!r}, inputs {shapes}",
            fix="narrow the ranges in --input to what the artefact supports, or export it again",
        ) from error


def _require_same_outputs(eager: Arrays, actual: Arrays, runner: str, feed: str, *, wider: bool) -> None:
    problems = []
    if missing := [name for name in eager if name not in actual]:
        problems.append(f"missing {', '.join(missing)}")
    if unexpected := [name for name in actual if name not in eager]:
        problems.append(f"unexpected {', '.join(unexpected)}")
    for name in eager.keys() & actual.keys():
        if not comparable(eager[name], actual[name], wider=wider):
            problems.append(f"{name} is {_kind(actual[name])}, eager's is {_kind(eager[name])}")
    if problems:
        raise VerdictError(
            f"the outputs of {runner} are not eager's: {'; '.join(sorted(problems))}",
            where=f"feed {feed!r}",
            fix="export the module again; a shape that follows a traced size belongs to a dimension given as fixed",
        )


def comparable(eager: Array, actual: Array, *, wider: bool) -> bool:
    """Whether both have one shape and one dtype; with ``wider``, ``actual`` may hold wider floats."""
    dtypes = eager.dtype.name, actual.dtype.name
    widened = wider and is_float(dtypes[0]) and is_float(dtypes[1]) and eps(dtypes[1]) <= eps(dtypes[0])
    return eager.shape == actual.shape and (dtypes[0] == dtypes[1] or widened)


def _kind(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
