"""Which form of a model is kept: the default, unless another one's advantage is outside the noise, twice.

    ratio = median(default) / median(candidate),   faster where the 95 % interval of the ratio begins above 1 + MARGIN

The interval is that of :mod:`.stats`, of rounds in which both took turns. The best of several candidates looks better
than it is, for it was chosen by these same rounds: so it is measured again, in a fresh session on fresh rounds which
chose nothing, and must hold there as well. It has that one chance; a second best would be a second draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normdeploy.bench.stats import FEWEST, ratio_interval
from normdeploy.fold.levels import Level, Target

MARGIN = 0.02
"""What an advantage must exceed: two sessions of one and the same model differ by up to 0.6 %, and no number of rounds
makes that go away, for it is where their memory lies."""


@dataclass(frozen=True)
class Spread:
    """The middle half of a runner's latencies, in milliseconds a call."""

    low_ms: float
    median_ms: float
    high_ms: float


@dataclass(frozen=True)
class Race:
    """A candidate beside the default, in turns.

    Attributes:
        n: rounds.
        default: latencies of the default in them.
        candidate: latencies of the candidate.
        ratio: the default's median over the candidate's: above 1 the candidate is the faster one.
        ratio_low: lower end of the ratio's 95 % confidence interval.
        ratio_high: its upper end.
    """

    n: int
    default: Spread
    candidate: Spread
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Candidate:
    """A form that the model could be deployed in.

    Attributes:
        name: tells it from the others.
        layernorm: how far its LayerNorms were taken.
        target: what it was folded for.
        options: ONNX Runtime session options that it runs with.
        race: beside the default; None for the default itself, and for what was not measured.
        again: the same on fresh rounds, of the fastest one.
        parity: whether its own verdict passed; None where it was not judged, not being faster.
        kept: whether it is what was deployed.
        reason: why it was kept or not.
    """

    name: str
    layernorm: Level
    target: Target
    options: Mapping[str, str]
    race: Race | None = None
    again: Race | None = None
    parity: bool | None = None
    kept: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """What was tried, the default first.

    Attributes:
        threads: threads that every candidate was given.
        feed: name of the feed.
        margin: how far above 1 an interval had to begin.
    """

    candidates: tuple[Candidate, ...]
    threads: int
    feed: str
    margin: float = MARGIN


def race(default_ms: Sequence[float], candidate_ms: Sequence[float], *, seed: int = 0) -> Race:
    """Return the race of two sequences of milliseconds whose i-th samples belong to one round."""
    low, high = ratio_interval(default_ms, candidate_ms, seed=seed)
    default, candidate = _spread(default_ms), _spread(candidate_ms)
    return Race(len(default_ms), default, candidate, default.median_ms / candidate.median_ms, low, high)


def why_not(race: Race) -> str:
    """Return why ``race`` does not show that the candidate is the faster one; empty where it does."""
    if race.n < FEWEST:
        return f"only {race.n} rounds, too few to tell"
    if race.ratio_high < 1:
        return "slower"
    if race.ratio_low <= 1:
        return "no difference"
    if race.ratio_low <= 1 + MARGIN:
        return "too little"
    return ""


def choose(
    candidates: Sequence[Candidate], judge: Callable[[Candidate], str], race_again: Callable[[Candidate], Race]
) -> tuple[Candidate, ...]:
    """Return ``candidates``, the default first, each with the reason why it is kept or not; one of them is.

    Args:
        candidates: those without a race are left as they are.
        judge: why parity of a candidate fails; empty where it passes. Asked only of what would be kept.
        race_again: measures a candidate on fresh rounds.
    """
    default, *others = candidates
    rows = {each.name: _raced(each) for each in others}
    faster = [each for each in rows.values() if each.race is not None and not each.reason]
    for candidate in sorted(faster, key=_at_least, reverse=True):
        if wrong := judge(candidate):
            rows[candidate.name] = replace(candidate, parity=False, reason=f"faster, but wrong: {wrong}")
            continue
        again = race_again(candidate)
        doubt = why_not(again)
        reason = f"not again: {doubt}" if doubt else "kept: faster, twice"
        best = rows[candidate.name] = replace(candidate, parity=True, again=again, kept=not doubt, reason=reason)
        rows |= {each.name: replace(each, reason=_behind(best)) for each in rows.values() if _is_open(each)}
        break
    kept = not any(each.kept for each in rows.values())
    reason = "kept: the default" if kept else "the default"
    return (replace(default, parity=True, kept=kept, reason=reason), *rows.values())


def _raced(candidate: Candidate) -> Candidate:
    return candidate if candidate.race is None else replace(candidate, reason=why_not(candidate.race))


def _at_least(candidate: Candidate) -> float:
    """How fast it is at the least: a ratio that noise drew out says little."""
    return 0.0 if candidate.race is None else candidate.race.ratio_low


def _is_open(candidate: Candidate) -> bool:
    return candidate.race is not None and not candidate.reason


def _behind(best: Candidate) -> str:
    return "faster, but not the fastest" if best.kept else "not the fastest, which alone is measured again"


def _spread(samples_ms: Sequence[float]) -> Spread:
    low, middle, high = (float(value) for value in np.percentile(samples_ms, [25, 50, 75]))
    return Spread(low, middle, high)
