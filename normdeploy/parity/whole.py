"""Whole numbers in 16 bits, such as an argmax's: how many of more feeds are others than in float64.

Of few elements the share that differs says little: of one it is all or nothing, by chance. So where it fails, it is
taken over more feeds, the deployed one's and eager's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from normdeploy.parity.feeds import Feed
from normdeploy.parity.metrics import EXACT, Errors, differing, is_float, usable
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.verdict import Measurement

SAMPLES = 24
"""Feeds that the share is taken over."""
ENOUGH = 256
"""Elements that end the sampling sooner."""


def over_more_feeds(
    measured: Measurement, feed: Feed, oracle: Oracle, run: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]
) -> Measurement:
    """Return ``measured`` with the shares of more feeds like ``feed``; as it is where they cannot be had.

    ``run`` returns, for inputs and the module's outputs in float64, the outputs that are judged, and what they should
    be.
    """
    name = measured.output
    own: list[Errors] = []
    found: list[Errors] = []
    elements = 0
    for inputs in _like(feed):
        exact, eager = oracle.exact(inputs), oracle.eager(inputs)
        if exact is None:
            return measured
        actual, meant = run(inputs, exact)
        if len({each[name].shape for each in (exact, eager, actual, meant)}) > 1:
            return measured
        own.append(differing(eager[name], exact[name]))
        found.append(differing(actual[name], meant[name]))
        elements += exact[name].size
        if elements >= ENOUGH:
            break
    return replace(measured, eager=usable(_mean(own)), deployed=_mean(found)) if found else measured


def _like(feed: Feed) -> Iterator[Arrays]:
    """Return inputs of the same sizes and values, those of real numbers in other places."""
    generator = np.random.default_rng(0)
    real = [name for name, array in feed.arrays.items() if is_float(array.dtype.name)]
    for _ in range(SAMPLES if real else 0):
        moved = {
            name: generator.permutation(feed.arrays[name].ravel()).reshape(feed.arrays[name].shape) for name in real
        }
        yield {**feed.arrays, **moved}


def _mean(shares: list[Errors]) -> Errors:
    share = float(np.mean([each.rms for each in shares]))
    return replace(EXACT, rms=share, max=share)
