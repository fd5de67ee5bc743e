"""A graph whose output has another shape in float64 than the module's.

It is wrong where PyTorch gives one shape in each dtype. Where PyTorch's own shape changes with the dtype, or with how
its weights are rounded, as that of the elements above a threshold may, no graph can be held to one of its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, INCOMPARABLE
from normdeploy.parity.reference import Oracle
from normdeploy.parity.verdict import Measurement

Array = npt.NDArray[Any]

_DRAWS = range(4)
"""Roundings of the weights that are tried: to nearest, and at random."""


def of_another_shape(
    oracle: Oracle, feed: Feed, base: Measurement, exact: Array | None, meant: Array, note: Callable[[str], None]
) -> Iterator[Measurement]:
    """Return ``base`` with an error without bound, or nothing where the module's own shape hangs on rounding.

    ``base`` is of eager's output in its own dtype, ``exact`` that of the module in float64 (None where it does not run
    so) and ``meant`` the graph's. What was found is noted either way.
    """
    why = _excuse(oracle, feed, base, exact)
    told = f"{base.output} on {feed.name}: the graph in float64 has the shape {list(meant.shape)}, eager PyTorch "
    if why:
        note(f"{told}{list(base.shape)}; {why}: the graph is judged by its runtime alone")
        return
    note(f"{told}{list(base.shape)} in {base.dtype} and in float64 alike: a size or a choice in the graph is wrong")
    yield replace(base, eager=EXACT, deployed=INCOMPARABLE)


def _excuse(oracle: Oracle, feed: Feed, base: Measurement, exact: Array | None) -> str:
    """Return why no graph can be held to the shape of the module's output; empty where it can."""
    if exact is None:
        return "the module does not run in float64, so which of them is right there is not known"
    if exact.shape != base.shape:
        return f"eager PyTorch in float64 has {list(exact.shape)}, for its shape changes with the dtype"
    for draw in _DRAWS:
        shape = oracle.rounded(feed.arrays, draw)[base.output].shape
        if shape != exact.shape:
            return f"eager PyTorch has {list(shape)} where its weights are rounded otherwise"
    return ""
