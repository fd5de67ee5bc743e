"""How far two graphs that differ by rounded weights may lie apart.

The fold moves maps exactly, in float64, and rounds each edited tensor once. So over the real numbers the
original is the folded graph with every weight moved by at most half a unit in its last place:

    | folded(x) - original(x) |  <=  what such a move can do to folded(x)

and what it can do is measured: the folded graph is run again with every stored number moved up or down by up
to a whole unit. Signs are drawn at random, so the largest of a few such runs times SAMPLES stands for the worst. A
sum that cancels, or a tiny channel behind a huge one, is judged by what rounding really does to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
from messages import EPS, coarsest
from reals import Arrays, Change, Truth, unshared
from strategies import Case

NEAR = 8.0
"""Errors below this many units in the last place of a channel's largest value need no closer look."""

RUNS, SAMPLES = 40, 12.0
"""Runs with moved weights, if so many are needed, and how many times the largest move they show an error may be."""

_LAST = 2.0**-1074
"""The last place of every float64 below the smallest normal one: what is left of a product or a softmax may be there,
in which no moved weight shows."""

_TIE = 16.0
"""Units in the last place by which numbers that should be equal may differ in float64: a sum has so many terms."""


def different(case: Case, new: onnx.ModelProto) -> Iterator[str]:
    """Where the folded model computes something else."""
    eps = EPS[coarsest(case.proto)]
    old_runs, new_runs = Truth(case.proto), Truth(new)
    for feed in case.feeds:
        olds, news = old_runs(feed), new_runs(feed)
        for name, expected in olds.items():
            actual = news[name]
            if expected.shape != actual.shape:
                yield f"{name}: shape {expected.shape} became {actual.shape}"
            elif relative_error(expected, actual) > NEAR * eps:
                yield from closer_look(case, new, feed, name, expected, actual)


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest error of a channel of any axis, relative to its largest value; infinite where one is not finite."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    return _worst(_distance(expected, actual, finite), np.abs(np.where(finite, expected, 0.0)))


def _distance(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``|a - b|`` where asked, else 0."""
    return np.abs(np.subtract(a, b, where=where, out=np.zeros(a.shape)))


def _worst(error: np.ndarray, size: np.ndarray) -> float:
    """The largest ratio of the maxima of both over a slice of any axis."""
    worst = 0.0
    for axis in range(error.ndim):
        others = tuple(i for i in range(error.ndim) if i != axis)
        top, bottom = error.max(axis=others, initial=0.0), size.max(axis=others, initial=0.0)
        ratio = np.divide(top, bottom, out=np.where(top > 0, np.inf, 0.0), where=bottom > 0)
        worst = max(worst, float(ratio.max(initial=0.0)))
    return worst if error.ndim else float(error / size if size else np.inf if error else 0.0)


def closer_look(
    case: Case,
    new: onnx.ModelProto,
    feed: Arrays,
    name: str,
    expected: np.ndarray,
    actual: np.ndarray,
    rounded: float | None = None,
    spread: np.ndarray | float = 0.0,
) -> Iterator[str]:
    """The error against what moved weights do to both graphs (the original's own move by float64's rounding).

    Each number that the original computes is moved by that rounding too: what is subtracted from 1e25 is lost there,
    where a fold may keep it, and a norm of data far from zero loses its bias.
    Where ``rounded`` is given, both ran elsewhere, each number may be off by so much of itself, and ``spread`` is what
    was seen there.
    """
    if expected.dtype.kind != "f":
        yield from _otherwise_chosen(case, new, feed, name, expected, actual)
        return
    spread, differs = np.broadcast_to(spread, expected.shape), np.zeros(expected.shape, bool)
    old = unshared(case.proto)  # in float64, what is b - b for one tensor need not be so after the fold
    float64 = 2.0**-50 if rounded is None else rounded
    exact = [actual, expected]
    if rounded is not None:
        exact = [Truth(proto)(feed)[name] for proto in (new, old)]
        lost = _distance(expected, exact[1], np.isfinite(expected) & np.isfinite(exact[1]))
        spread = np.fmax(spread, lost.max(initial=0.0))  # no more than it was off unfolded, times SAMPLES
    units = 1.0 if rounded is None else EPS[coarsest(case.proto)] / EPS[onnx.TensorProto.DOUBLE]
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        moves = [
            (Truth(proto, _moved(rng, eps))(_moved_feed(feed, rng, float64))[name], at)
            for proto, at, eps in zip((new, old), exact, (rounded, float64), strict=True)
        ]
        moves += [(Truth(old, seed=seed, units=units)(feed)[name], exact[1])]
        for other, at in moves:
            if other.shape == spread.shape == at.shape:
                differs |= ~(other == at)
                spread = np.fmax(spread, _distance(other, at, np.isfinite(at) & np.isfinite(other)))
        problem = _unexplained(expected, actual, spread, differs)
        if problem is None:
            return
    yield f"{name}: {'' if rounded is None else 'in ONNX Runtime, '}{problem}"


def _otherwise_chosen(
    case: Case, new: onnx.ModelProto, feed: Arrays, name: str, expected: np.ndarray, actual: np.ndarray
) -> Iterator[str]:
    """Whether integers differ that no rounding decides: each graph, moved a little, must choose what the other does.

    A comparison chooses them, of numbers that may be equal but for what rounding does.
    """
    chosen = [expected == actual, expected == actual]
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        for index, (proto, other) in enumerate(((unshared(case.proto), actual), (new, expected))):
            weights = Truth(proto, _moved(rng, units=SAMPLES))(_moved_feed(feed, rng, 2.0**-50))[name]
            numbers = Truth(proto, seed=seed, units=_TIE)(feed)[name]
            for found in (weights, numbers):
                chosen[index] = chosen[index] | (found == other if found.shape == other.shape else False)
        if np.all(chosen):
            return
    yield f"{name}: {expected.tolist()} became {actual.tolist()}"


def _unexplained(expected: np.ndarray, actual: np.ndarray, spread: np.ndarray, differs: np.ndarray) -> str | None:
    """What is wrong beyond the ``spread`` that was seen, or beyond where anything ``differs``; None if nothing is."""
    finite = np.isfinite(expected) & np.isfinite(actual)
    if np.any(~finite & ~differs & (expected != actual)):
        return "not finite where the original is"
    worst = _worst(_distance(expected, actual, finite), np.fmax(spread, _LAST))
    error = relative_error(expected, actual)
    return (
        f"relative error {error:.3g}, {worst:.3g} times what rounding the weights can do" if worst > SAMPLES else None
    )


def _moved(rng: np.random.Generator, eps: float | None = None, units: float = 1.0) -> Change:
    """Every number moved up or down by so many ``units`` in its last place, or by ``eps`` of itself."""

    def change(array: np.ndarray) -> np.ndarray:
        exact = array.astype(np.float64)
        limits = ml_dtypes.finfo(array.dtype)
        unit = np.abs(exact) * float(limits.eps if eps is None else eps)
        if eps is None:  # below the smallest normal number the units stay as they are there, or all is flushed
            tiny = float(limits.smallest_normal)
            unit = np.maximum(unit, tiny if array.dtype == np.float32 else tiny * float(limits.eps))
        return exact + units * unit * signs(rng, exact.shape)

    return change


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Half a unit to a whole one, up or down: no two moves cancel."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))


def _moved_feed(feed: Arrays, rng: np.random.Generator, eps: float, least: float = 0.0) -> Arrays:
    """The inputs moved by what running may lose."""
    return {
        name: array + (np.abs(array) * eps + least) * signs(rng, array.shape) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }
