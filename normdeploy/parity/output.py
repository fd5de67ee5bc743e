"""One output as a runtime made it, beside what the module and the graph give: which of them it is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from normdeploy.parity.metrics import EXACT, USELESS, differing, eps, errors, is_float, usable
from normdeploy.parity.verdict import SIXTEEN, Measurement

Array = npt.NDArray[Any]

_OWN_SIZE = 0.5
"""How near to 1 an error over what was computed lies, from below or above, that is as large as that."""


def measurement(
    feed: str,
    output: str,
    eager: Array,
    exact: Array | None,
    deployed: Array,
    *,
    graph: Array | None = None,
    computes: str = "",
    fits: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Return the errors of one output as a runtime made it, all arrays of one shape.

    ``eager``, ``exact`` and ``graph`` are what the module gives, in its own dtype and in float64, and what the deployed
    graph gives in float64: the reference, in place of ``exact`` where it is not given.

    Where eager has lost the output, nothing is allowed for that, and the artefact is held to what it is nearer to: a
    norm that is right is not failed by one whose squares overflow in 16 bits. Where eager ends in NaN or infinity, the
    artefact must too: that it does not here may be the runtime's doing, which computes some of it in float32; unless
    all that the graph makes ``fits`` into its type, whatever the runtime.
    """
    dtype = eager.dtype.name
    against_eager = Measurement(
        feed, output, eager.shape, dtype, EXACT, errors(deployed, eager, dtype), "eager", computes=computes
    )
    if exact is not None and exact.shape != eager.shape:  # what eager loses is not known then
        exact = None
    meant = exact if graph is None else graph
    if meant is None or meant.shape != eager.shape:
        return against_eager
    if not is_float(dtype):
        return _of_whole_numbers(against_eager, eager, exact, meant, deployed, graph is not None)
    if meant.dtype.name != "float64":
        return against_eager
    actual = errors(deployed, meant, dtype)
    if exact is None or (computes or dtype) == "float64":  # what eager loses is not known
        base = replace(against_eager, deployed=actual)
        return base if actual.rms <= against_eager.deployed.rms else against_eager
    own = errors(eager, exact, dtype)
    base = replace(against_eager, eager=own, deployed=actual, reference="float64")
    if not no_reference(eager, exact, computes):
        return base
    nearer = actual.finite and not against_eager.deployed.rms <= actual.rms and (own.finite or fits())
    return replace(base, eager=EXACT) if nearer else against_eager


def _of_whole_numbers(
    against_eager: Measurement, eager: Array, exact: Array | None, meant: Array, deployed: Array, by_graph: bool
) -> Measurement:
    """Return eager's error, of whole numbers, or that against float64: by the share that differs in 16 bits."""
    if against_eager.deployed == EXACT or not by_graph:
        return against_eager
    found = replace(against_eager, reference="float64", deployed=differing(deployed, meant))
    if found.deployed == EXACT:
        return found
    if exact is None or against_eager.computes not in SIXTEEN:
        return against_eager
    return replace(found, eager=usable(differing(eager, exact)))


def no_reference(eager: Array, exact: Array, computes: str = "") -> str:
    """Return why ``exact`` cannot stand in for what ``eager`` should have been; "" where it can, or where they agree.

    ``computes`` is what the network computes in, where the output is wider.
    """
    dtype = eager.dtype.name
    if eager.shape != exact.shape:
        return f"float64 returns the shape {exact.shape}, not {eager.shape}"
    if not is_float(dtype):
        differing = int(np.count_nonzero(eager != exact))
        return f"float64 differs in {differing} whole numbers or booleans, as at a tie" if differing else ""
    if exact.dtype.name != "float64":
        return f"float64 returns {exact.dtype.name}"
    own = errors(eager, exact, dtype)
    if not own.finite:
        return f"{dtype} itself is NaN or infinite where float64 is not, or the other way round"
    if own.rms >= USELESS:
        return f"{dtype} itself is off by {own.rms:.2g} of the output"
    return ""


def is_noise(eager: Array, exact: Array) -> bool:
    """Return True if ``eager`` differs from float64 by as much as its own size: it is only what rounding leaves.

    Not where it is 0, or far less than float64: it has lost the output then.
    """
    if eager.shape != exact.shape or not is_float(eager.dtype.name):
        return False
    off = errors(exact, eager, eager.dtype.name)
    return off.finite and _OWN_SIZE <= off.rms <= 1 / _OWN_SIZE


def comparable(eager: Array, actual: Array, *, wider: bool) -> bool:
    """Return True if both have one shape and one dtype; with ``wider``, ``actual`` may hold wider floats."""
    dtypes = eager.dtype.name, actual.dtype.name
    widened = wider and is_float(dtypes[0]) and is_float(dtypes[1]) and eps(dtypes[1]) <= eps(dtypes[0])
    return eager.shape == actual.shape and (dtypes[0] == dtypes[1] or widened)
