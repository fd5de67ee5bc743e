"""The plots of the page, as inline SVG that needs no network, no script and no font of its own.

Colours are CSS variables of the page, so that one picture serves light and dark; ids are the same for the same report.
No text of a user gets into a plot: matplotlib would read a ``$`` in it as mathematics.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from normdeploy.bench.stats import Comparison, Latency
from normdeploy.parity.verdict import Judgement, Verdict
from normdeploy.report import view

_INK, _EAGER, _DEPLOYED, _BAD = "#010101", "#010102", "#010103", "#010104"
_VARIABLES = {_INK: "var(--ink)", _EAGER: "var(--eager)", _DEPLOYED: "var(--deployed)", _BAD: "var(--bad)"}
_RC: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
"""Every setting: matplotlib obeys a matplotlibrc in the current folder, which can be someone else's and run LaTeX."""
_RC |= {
    "svg.hashsalt": "normdeploy",
    "svg.fonttype": "none",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
MOST_JUDGEMENTS = 100
"""Judgements that the plot of parity shows, those nearest to their bound."""
_BINS = 60
_WIDE = 8.0
"""Ratio of the slowest to the fastest call shown, above which the axis of time is logarithmic."""
_SMALLEST, _LARGEST = 1e-300, 1e300  # so that no decade beside them leaves float64
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def parity(verdict: Verdict) -> str:
    """Return SVG of the deployed model's error against eager's, both axes logarithmic, with the bound it has to keep.

    An error of 0 stands on its own tick below the smallest decade, one that is not finite on the upper edge.
    """
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        points = _points(view.by_severity(verdict, "runtime")[:MOST_JUDGEMENTS])
        low, high = _decades(value for _, *values in points for value in values)
        x = np.geomspace(low, high, 129)
        _draw_bounds(axes, x, verdict)
        axes.plot(x, x, color=_INK, linewidth=0.8, linestyle=":", label="as exact as eager")
        for name, marker in (("RMS", "o"), ("max", "D")):
            mine = [values for label, *values in points if label == name]
            _scatter(axes, mine, marker, f"{name} error", low, high)
        _log_axes(axes, low, high)
        axes.set_xlabel(f"eager's error against the {verdict.reference} reference")
        axes.set_ylabel("deployed error")
        axes.legend(loc="lower right", fontsize=8)
        return _svg(figure, "parity")


def latency(comparison: Comparison) -> str:
    """Return SVG of both latency distributions on one axis in milliseconds, p50, p90 and p99 marked."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        runs = ((comparison.eager, _EAGER), (comparison.deployed, _DEPLOYED))
        edges = _edges([run for run, _ in runs])
        for run, colour in runs:
            _draw_distribution(axes, run, edges, colour)
        if edges[-1] > _WIDE * edges[0]:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if edges[-1] < 300 * edges[0] else (1,), numticks=12)
            )
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: view.sig(time)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        axes.set_xlabel("milliseconds a call, up to the larger p99")
        axes.set_ylabel("share of calls")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
        return _svg(figure, "latency")


def _edges(runs: Sequence[Latency]) -> np.ndarray:
    """Edges of the bins, from the fastest call to the larger p99; in equal ratios where that is far away."""
    least = 0.98 * min(min(run.samples_ms) for run in runs)
    most = max(1.02 * max(run.p99_ms for run in runs), 1.01 * least)
    return np.geomspace(least, most, _BINS + 1) if most > _WIDE * least else np.linspace(least, most, _BINS + 1)


def _points(judgements: Sequence[Judgement]) -> list[tuple[str, float, float, float]]:
    """(RMS or max, eager's error, deployed error, bound) of every judgement."""
    return [(row.name, *row.values) for judgement in judgements for row in view.two_errors(judgement)]


def _decades(values: Iterable[float]) -> tuple[float, float]:
    """The decades that hold all positive finite values; one more below, for the tick that stands for 0."""
    found = [max(value, _SMALLEST) for value in values if 0 < value < _LARGEST] or [1e-9, 1e-6]
    return 10.0 ** (math.floor(math.log10(min(found))) - 1), 10.0 ** (math.floor(math.log10(max(found))) + 1)


def _draw_bounds(axes: Axes, x: np.ndarray, verdict: Verdict) -> None:
    """One line a floor: outputs of different dtypes have different ones."""
    for index, floor in enumerate(_floors(verdict)):
        bound = verdict.criteria.k * x + floor
        label = f"bound: {view.sig(verdict.criteria.k)} · eager + {view.sig(floor)}"
        axes.plot(x, bound, color=_BAD, linewidth=1.2, label=label)
        if index == 0:
            axes.fill_between(x, bound, 10 * max(bound[-1], x[-1]), color=_BAD, alpha=0.06, linewidth=0)


def _floors(verdict: Verdict) -> list[float]:
    """The floors of all judgements, the largest first; 0, that of integers, only where there is no other."""
    measured = [judgement.measurement for judgement in verdict.of("runtime")]
    floors = {
        verdict.criteria.bound(each, 0.0, None, "eager" if verdict.reference == "eager" else each.reference)
        for each in measured
    }
    return sorted(floors - {0.0}, reverse=True) or [0.0]


def _scatter(axes: Axes, points: Sequence[Sequence[float]], marker: str, label: str, low: float, high: float) -> None:
    """``points`` are (eager, deployed, bound); those outside the bound are red."""
    place = np.array([[_place(value, low, high) for value in point[:2]] for point in points]).reshape(-1, 2)
    fails = np.array([not deployed <= bound for _, deployed, bound in points], dtype=bool)
    for chosen, colour, text in ((~fails, _DEPLOYED, label), (fails, _BAD, f"{label}, outside the bound")):
        if chosen.any():
            axes.plot(
                *place[chosen].T, marker, color=colour, markersize=4.5, alpha=0.75,
                markerfacecolor="none" if marker == "D" else colour, label=text, clip_on=False,
            )  # fmt: skip


def _place(value: float, low: float, high: float) -> float:
    """Return where an error stands on a logarithmic axis: 0 on the lowest tick, what is not finite on the upper
    edge.
    """
    return min(max(value, low), high) if math.isfinite(value) else high


def _log_axes(axes: Axes, low: float, high: float) -> None:
    for scale, limit, axis in (
        (axes.set_xscale, axes.set_xlim, axes.xaxis),
        (axes.set_yscale, axes.set_ylim, axes.yaxis),
    ):
        scale("log")
        limit(low, high)
        axis.set_major_locator(LogLocator(numticks=9))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value < 3 * low else _power(value)))


def _power(value: float) -> str:
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)


def _draw_distribution(axes: Axes, run: Latency, edges: np.ndarray, colour: str) -> None:
    shares = np.histogram(run.samples_ms, edges)[0] / len(run.samples_ms)
    label = "eager" if colour == _EAGER else "deployed"
    axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(shares, edges, color=colour, linewidth=1.0, label=label)
    for value, style in ((run.p50_ms, "-"), (run.p90_ms, "--"), (run.p99_ms, ":")):
        axes.axvline(value, color=colour, linewidth=0.9, linestyle=style)


def _svg(figure: Figure, name: str) -> str:
    """The ``<svg>`` element alone, colours as CSS variables, ids unique in the page, fonts those of the page."""
    text = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)  # print_svg has no annotations
    canvas.print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg class="plot" role="img" viewBox="\1">', svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
