"""The table of a choice by measurement, in the words that the console and the page share."""

from __future__ import annotations

from typing import NamedTuple

from normdeploy.bench.choice import Race, Tuning
from normdeploy.report.view import count, sig

COLUMNS = ("form", "ms (middle half)", "default's ms", "ratio (95 %)", "parity", "what became of it")


class Row(NamedTuple):
    """A candidate as text: one cell for each of ``COLUMNS``, and whether it is kept."""

    cells: tuple[str, ...]
    kept: bool


def headline(tuning: Tuning) -> str:
    """Return what was kept, and beside how many others."""
    kept = next((each for each in tuning.candidates if each.kept), None)
    if kept is None:
        return "no form is kept"
    options = ", ".join(f"{name}={value}" for name, value in kept.options.items())
    measured = count(sum(each.race is not None for each in tuning.candidates), "other form")
    return f"{kept.name} is kept{f', with {options}' if options else ''}; {measured} measured"


def rule(tuning: Tuning) -> str:
    """Return what the numbers are, and what a candidate had to do."""
    return (
        f"{count(tuning.threads, 'thread')}, {tuning.feed}; the ratio is the default's median over the form's, "
        f"both in turns. Kept is what is faster beyond {1 + tuning.margin:g}, in fresh sessions too, and passes parity."
    )


def rows(tuning: Tuning) -> list[Row]:
    """Return the default and what was measured beside it, the second measurement below the first one."""
    found: list[Row] = []
    for each in tuning.candidates:
        if each.race is not None or each is tuning.candidates[0]:
            parity = {None: "–", True: "passed", False: "FAILED"}[each.parity]
            found.append(Row((each.name, *_race(each.race), parity, each.reason), each.kept))
        if each.again is not None:
            found.append(Row(("  again", *_race(each.again), "", ""), each.kept))
    return found


def not_measured(tuning: Tuning) -> list[str]:
    """Return what there was no need to measure, or no way to, and why."""
    return [f"{each.name}: {each.reason}" for each in tuning.candidates[1:] if each.race is None]


def _race(race: Race | None) -> tuple[str, str, str]:
    if race is None:
        return "–", "–", "–"
    own, ratio = race.candidate, f"{race.ratio:.3f} ({race.ratio_low:.3f} to {race.ratio_high:.3f})"
    return f"{sig(own.median_ms)} ({sig(own.low_ms)} to {sig(own.high_ms)})", sig(race.default.median_ms), ratio
