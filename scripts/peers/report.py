"""The measurements as Markdown tables, normdeploy first, what is best in each row or column in bold.

The short ones, for the README, show beside normdeploy only the best of the others, whoever it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from peers import latency as measured
from peers.crew import OURS
from peers.graph import Graph
from peers.judge import Outcome
from peers.networks import Exported, Folded
from peers.norms import GROUPS
from peers.speed import Times
from peers.worker import CENTRE, FOLDERS, NOTHING

Rows = Sequence[Sequence[str]]


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def bold(text: str, best: bool) -> str:
    """``text``, in bold where it is the best."""
    return f"**{text}**" if best else text


def coverage(graphs: Sequence[Graph], outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """A row a folder: what it folded of what can be, and its faults."""
    maps = [graph for graph in graphs if graph.is_fold and graph.group not in GROUPS]
    norms = [graph for graph in graphs if graph.is_fold and graph.group in GROUPS]
    done = [f"maps folded, of {len(maps)}", f"norms reduced, of {len(norms)}"]
    head = ["", *done, "wrong answers", "invalid models", "crashes, not taken", "seconds"]
    numbers = {}
    for name, found in outcomes.items():
        done_of = [sum(found[graph.name].did(graph) for graph in part) for part in (maps, norms)]
        faults = [sum(bool(getattr(o, kind)) for o in found.values()) for kind in ("wrong", "invalid", "crash")]
        numbers[name] = (*done_of, *faults, sum(o.seconds or 0.0 for o in found.values()))
    columns = list(zip(*numbers.values(), strict=True))
    best = [*map(max, columns[:2]), *map(min, columns[2:])]
    rows = []
    for name, row in numbers.items():
        texts = [*map(str, row[:5]), f"{row[5]:.1f}"]
        rows.append([name, *(bold(text, value == b) for text, value, b in zip(texts, row, best, strict=True))])
    return table(head, rows)


def by_group(graphs: Sequence[Graph], outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """A row a group of the table, a column a folder: folds done."""
    rows = []
    for group in dict.fromkeys(graph.group for graph in graphs if graph.is_fold):
        folds = [graph for graph in graphs if graph.is_fold and graph.group == group]
        done = [sum(found[graph.name].did(graph) for graph in folds) for found in outcomes.values()]
        rows.append([f"{group}, of {len(folds)}", *(bold(str(n), n == max(done)) for n in done)])
    return table(["folds done", *outcomes], rows)


def by_group_short(graphs: Sequence[Graph], outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """A row a group of the table: folds done by normdeploy, at its default and at its most, and by the best other."""
    rows = []
    for group in dict.fromkeys(graph.group for graph in graphs if graph.is_fold):
        folds = [graph for graph in graphs if graph.is_fold and graph.group == group]
        done = {name: sum(found[graph.name].did(graph) for graph in folds) for name, found in outcomes.items()}
        others = {name: n for name, n in done.items() if name not in OURS}
        most = max(others.values())
        named = _names([name for name, n in others.items() if n == most]) if most else ""
        ours = [done[OURS[0]], done[CENTRE]]
        rows.append([group, str(len(folds)), *(bold(str(n), n == max(done.values())) for n in (*ours, most)), named])
    return table(["folds done", "of", OURS[0], CENTRE, "best other", ""], rows)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def faults(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """What each folder got wrong, a line each."""
    lines = []
    for name, found in outcomes.items():
        for graph, outcome in found.items():
            for kind in ("wrong", "invalid", "crash"):
                if said := getattr(outcome, kind):
                    lines.append(f"- {name}, {graph}: {kind}: {' '.join(said.split())[:160]}")
    return "\n".join(lines) or "none"


def networks(exported: Sequence[Exported], outcomes: Mapping[str, Mapping[str, Folded]]) -> str:
    """A row a network, a column a folder: BatchNormalization left, and in parentheses the passes over activations."""
    rows = []
    for network in exported:
        found = [folded[network.name] for folded in outcomes.values()]
        right = [o for o in found if not o.wrong]
        fewest = [
            min((o.norms for o in right if o.norms is not None), default=None),
            min((o.passes for o in right if o.passes is not None), default=None),
        ]
        rows.append([network.name, f"{network.norms} ({network.passes})", *(_left(o, fewest) for o in found)])
    return table(["BatchNormalization left (passes left)", "before", *outcomes], rows)


def networks_short(exported: Sequence[Exported], outcomes: Mapping[str, Mapping[str, Folded]]) -> str:
    """A row a network: BatchNormalization before, left by normdeploy, and by the best other that answers right."""
    rows = []
    for network in exported:
        found = {name: folded[network.name] for name, folded in outcomes.items()}
        right = {name: o.norms for name, o in found.items() if name != OURS[0] and not o.wrong and o.norms is not None}
        ours, fewest = found[OURS[0]].norms, min(right.values())
        best = min(fewest, fewest if ours is None else ours)
        named = _names([name for name, n in right.items() if n == fewest])
        shown = (bold(str(ours), ours == best), bold(str(fewest), fewest == best))
        rows.append([network.name, str(network.norms), *shown, named])
    return table(["BatchNormalization left", "before", OURS[0], "best other", ""], rows)


def _left(folded: Folded, fewest: Sequence[int | None]) -> str:
    if folded.crash:
        return "not taken"
    if folded.invalid:
        return "invalid"
    norms = bold(str(folded.norms), folded.norms == fewest[0])
    passes = bold(str(folded.passes), folded.passes == fewest[1])
    return f"{norms} ({passes})" + (" wrong" if folded.wrong else "")


def network_seconds(exported: Sequence[Exported], outcomes: Mapping[str, Mapping[str, Folded]]) -> str:
    """A row a network, a column a folder: seconds, once each."""
    rows = []
    for network in exported:
        seconds = [folded[network.name].seconds for folded in outcomes.values()]
        least = min(s for s in seconds if s is not None)
        rows.append([network.name, *("" if s is None else bold(f"{s:.2f}", s == least) for s in seconds)])
    return table(["seconds", *outcomes], rows)


def speed(times: Mapping[str, Mapping[str, Times]]) -> str:
    """A row a folder: median, fastest and slowest by the clock, and the median of the CPU seconds, of each model."""
    names = [name for name in FOLDERS if any(name in found for found in times.values())]
    rows = [[name, *(_times(found.get(name), _least(found)) for found in times.values())] for name in names]
    beside = [_beside(model, found) for model, found in times.items()]
    return "\n\n".join([table(["", *times], rows), *filter(None, beside)])


def _least(found: Mapping[str, Times]) -> float:
    return min((times.median for name, times in found.items() if times.wall and name != NOTHING), default=0.0)


def _beside(model: str, found: Mapping[str, Times]) -> str:
    """How normdeploy compares with the fastest other on one model, by the CPU, and what of it is validation."""
    others = {name: statistics.median(times.cpu) for name, times in found.items() if name not in OURS and times.cpu}
    proven, unproven = (found.get(name) for name in OURS[:2])
    if not others or proven is None or unproven is None or not (proven.cpu and unproven.cpu):
        return ""
    fastest = min(others, key=lambda name: others[name])
    ours, bare = statistics.median(proven.cpu), statistics.median(unproven.cpu)
    share = max(0.0, 1 - bare / ours)
    return f"{model}: {ours / others[fastest]:.1f} times the CPU seconds of {fastest}, {share:.0%} of them validation."


def latency(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a network: the median of each form in ms, and how many times as fast as the best other ours is."""
    names = (measured.RAW, measured.OPTIMIZED, *measured.FOLDERS)
    rows = []
    for network, each in found.items():
        median = {name: statistics.median(ms) for name, ms in each["ms"].items()}
        least = min(median.values(), default=0.0)
        texts = [bold(f"{median[name]:.2f}", median[name] == least) if name in median else "" for name in names]
        told = measured.ratio(each)
        rows.append([network, *texts, "" if told is None else f"{told[1]:.2f} ({told[2]:.2f} to {told[3]:.2f})"])
    return table(["ms", *names, "best other / normdeploy"], rows)


def _times(times: Times | None, least: float) -> str:
    if times is None:
        return ""
    if not times.wall:
        return "failed"
    low, high = times.spread
    cpu = statistics.median(times.cpu)
    return f"{bold(f'{times.median:.2f}', times.median == least)} ({low:.2f} to {high:.2f}; {cpu:.2f})"
