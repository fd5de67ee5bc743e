"""The table of latency by the size of the batch, in the words that the console and the page share."""

from __future__ import annotations

from collections.abc import Mapping

from normdeploy.bench.stats import Comparison
from normdeploy.report.view import rows_of, sig


def columns(measured: Mapping[int, Comparison]) -> tuple[str, ...]:
    """Return the headings: the batch, each runner's median, what folding and the runtime brought, items a second."""
    first = next(iter(measured.values()))
    ratios = ("beside unfolded", "beside eager") if first.fold_ratio is not None else ("beside eager",)
    return ("batch", *(f"{run.runner} ms" for run in rows_of(first)), *ratios, "items per second")


def rows(measured: Mapping[int, Comparison]) -> list[tuple[str, ...]]:
    """Return a row for each size, one text for each of :func:`columns`."""
    return [_row(batch, each) for batch, each in measured.items()]


def _row(batch: int, measured: Comparison) -> tuple[str, ...]:
    ratios = [(measured.ratio, measured.ratio_low, measured.ratio_high)]
    if measured.fold_ratio is not None and measured.fold_low is not None and measured.fold_high is not None:
        ratios.insert(0, (measured.fold_ratio, measured.fold_low, measured.fold_high))
    told = (f"{sig(ratio)}× ({sig(low)} to {sig(high)})" for ratio, low, high in ratios)
    medians = (sig(run.p50_ms) for run in rows_of(measured))
    return (str(batch), *medians, *told, sig(batch * measured.deployed.throughput_per_s))
