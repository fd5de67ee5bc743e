"""What the console and the page say in the same words: numbers, groups of norms, the worst judgement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from normdeploy import errors
from normdeploy.bench.stats import Comparison, Latency
from normdeploy.engine.layers import EngineLayer
from normdeploy.engine.sidecar import Sidecar
from normdeploy.fold.ledger import Entry, Outcome
from normdeploy.parity.verdict import Judgement, Part, Verdict
from normdeploy.report.schema import Report

_EXAMPLES = 3


class ErrorRow(NamedTuple):
    """One of the two errors of a judgement: ``values`` are eager's, the deployed one's and the bound."""

    name: str
    values: tuple[float, float, float]


def sig(value: float) -> str:
    """Return three significant digits, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 thread``, ``2 threads``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shown(number: int, most: int, noun: str, plural: str = "") -> str:
    """Return ``12 entries``, or how many of them a table with ``most`` rows shows."""
    everything = count(number, noun, plural)
    return everything if number <= most else f"the first {most} of {everything}; report.json has them all"


def plain(text: str) -> str:
    """Return ``text`` as :func:`normdeploy.errors.plain` spells it."""
    return errors.plain(text)


def before_after(report: Report) -> str:
    """Return ``BatchNormalization 20 → 0, LayerNormalization 2 → 2``, or ``none``.

    Kinds that are no operator before or after, and that the ledger has, are told as ``3 RMSNormalization spelled out``.
    """
    kinds = sorted({*report.norms_before, *report.norms_after})
    counts = [f"{kind} {report.norms_before.get(kind, 0)} → {report.norms_after.get(kind, 0)}" for kind in kinds]
    spelled = Counter(entry.kind for entry in report.ledger if entry.norm and entry.kind not in kinds)
    return ", ".join([*counts, *(f"{number} {kind} spelled out" for kind, number in spelled.items())]) or "none"


def notes(report: Report) -> list[str]:
    """Return the notes of the export and of its fold, and the plans that the fold's validation dropped."""
    ledger = report.ledger
    return [*report.notes, *map(str, ledger.notes), *(f"dropped: {dropped}" for dropped in ledger.dropped)]


def outcome(entry: Entry) -> str:
    """Return what became of ``entry`` without the names that differ from norm to norm."""
    return str(entry) if entry.outcome == "left" else entry.outcome


def groups(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the entries with the same kind and outcome (and reason) together, in order of first appearance."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.kind, outcome(entry)), []).append(entry)
    return list(found.values())


def examples(group: Sequence[Entry]) -> str:
    """Return the names of the first few norms of ``group``."""
    names = [entry.module or entry.node for entry in group]
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")


def outcome_counts(entries: Iterable[Entry]) -> list[tuple[Outcome, int]]:
    """Return how many entries had each outcome, those that occur."""
    counts = Counter(entry.outcome for entry in entries)
    return [(outcome, counts[outcome]) for outcome in get_args(Outcome) if counts[outcome]]


def two_errors(judgement: Judgement) -> tuple[ErrorRow, ErrorRow]:
    """Return the RMS and the maximum error of a judgement, each with its bound."""
    eager, deployed = judgement.measurement.eager, judgement.measurement.deployed
    return (
        ErrorRow("RMS", (eager.rms, deployed.rms, judgement.bound_rms)),
        ErrorRow("max", (eager.max, deployed.max, judgement.bound_max)),
    )


def by_severity(verdict: Verdict, part: Part | None = None) -> list[Judgement]:
    """Return the judgements, of ``part`` alone where one is given, the one farthest past its bound first."""
    chosen = verdict.judgements if part is None else verdict.of(part)
    return sorted(chosen, key=_share_of_bound, reverse=True)


def worst(verdict: Verdict, part: Part | None = None) -> Judgement | None:
    """Return the judgement that decides the verdict, or a part of it; None where nothing was judged."""
    return next(iter(by_severity(verdict, part)), None)


def smallest_k(verdict: Verdict) -> float:
    """Return the smallest k with which every judgement of the runtime passes beside eager's own error."""
    return max((_nan_last(judgement.smallest_k) for judgement in verdict.of("runtime")), default=0.0)


def least_k(verdict: Verdict) -> str:
    """Return the smallest k in words: where the floor alone lets all pass, that k decides nothing."""
    by_floor = not smallest_k(verdict) and part_passed(verdict, "runtime")
    why = " (all errors lie within the floor, so k decides nothing; --floor-eps sets the floor)" if by_floor else ""
    return f"smallest k that passes the runtime: {sig(smallest_k(verdict))}{why}"


def part_passed(verdict: Verdict, part: Part) -> bool | None:
    """Return True if everything of ``part`` passed, None where nothing of it was judged."""
    judged = verdict.of(part)
    if part == "rounding" and verdict.misrounded:
        return False
    return all(judgement.passed for judgement in judged) if judged else None


def word(verdict: Verdict) -> str:
    """Return ``passed``, ``FAILED``, or that the graph did the one and nothing ran it."""
    if verdict.unjudged:
        return "of the graph passed, of the runtime not judged"
    return "passed" if verdict.passed else "FAILED"


def sentence(verdict: Verdict) -> str:
    """Return what a colleague should know of the verdict."""
    if verdict.blind:
        return f"Parity cannot be judged: {nothing_compared(verdict)}."
    noise = f"{said}." if (said := only_noise(verdict)) else ""
    return " ".join(each for each in (_of_graph(verdict), _of_rounding(verdict), _of_runtime(verdict), noise) if each)


def nothing_compared(verdict: Verdict) -> str:
    """Return of which outputs nothing could be compared, in words."""
    return f"eager PyTorch gives NaN or infinity alone on every feed, for {', '.join(map(repr, verdict.blind))}"


def only_noise(verdict: Verdict) -> str:
    """Return which outputs failed that are only what rounding leaves, and how that is known; empty if none did."""
    names = ", ".join(map(repr, verdict.noise))
    return (
        f"{names}: only what rounding leaves, as eager differs from float64 by as much as its own size" if names else ""
    )


def plugins(verdict: Verdict) -> str:
    """Return the outcome of a graph of plugins in one line."""
    word = "passed" if verdict.passed else "FAILED"
    said = " ".join(each for each in (_of_graph(verdict), _of_rounding(verdict)) if each)
    return f"the graph of plugins {word}, in float64 against the module: {said}"


def _of_graph(verdict: Verdict) -> str:
    judged = worst(verdict, "graph")
    if judged is None:
        return "The graph was not judged apart from its runtime."
    rms = judged.measurement.deployed.rms
    at = f"{judged.measurement.output!r} on {judged.measurement.feed!r}"
    if judged.passed:
        return f"The graph is right: in float64 it is off from the module by {sig(rms)} at most, in {at}."
    where = f", beginning at module {verdict.first_divergent}" if verdict.first_divergent else ""
    if not judged.measurement.deployed.finite:
        what = "another shape than the module's, or NaN or infinity elsewhere"
        return f"The graph is wrong: in float64 {at} has {what}{where}."
    allowed = sig(judged.bound_rms)
    return f"The graph is wrong: in float64 it is off from the module by {sig(rms)} in {at}, {allowed} allowed{where}."


def _of_rounding(verdict: Verdict) -> str:
    judged = worst(verdict, "rounding")
    if verdict.misrounded:
        return f"It is not rounded to 16 bits as it should be: {'; '.join(verdict.misrounded)}."
    if judged is None:
        return ""
    at = f"{judged.measurement.output!r} on {judged.measurement.feed!r}"
    rms, dtype = sig(judged.measurement.deployed.rms), judged.measurement.computes or judged.measurement.dtype
    if judged.passed:
        return f"Rounding it to {dtype} moves {at} by {rms}, each constant by half a unit in the last place at most."
    return f"Rounding it to {dtype} costs too much: {at} is off by {rms}, {sig(judged.bound_rms)} allowed."


def _of_runtime(verdict: Verdict) -> str:
    judged = worst(verdict, "runtime")
    if judged is None:
        return f"The runtime was not judged: {verdict.not_run}." if verdict.not_run else ""
    rms, at = judged.measurement.deployed.rms, f"{judged.measurement.output!r} on {judged.measurement.feed!r}"
    blamed = f", most of it by {verdict.first_node}" if verdict.first_node else ""
    if not judged.passed:
        allowed = sig(judged.bound_rms)
        return f"The runtime does not compute that graph: it is off by {sig(rms)} in {at}, {allowed} allowed{blamed}."
    if any(each.excused for each in verdict.of("runtime")):
        return (
            f"The runtime is off from the graph by {sig(rms)} in {at}{blamed}, and as far from the unfolded graph: "
            "its kernels, not the deployment."
        )
    return f"The runtime is off from the graph by {sig(rms)} at most, in {at}."


def rows_of(latency: Comparison) -> list[Latency]:
    """Return the latencies that were measured: eager, torch.compile, the unfolded graph, the deployed one."""
    runs = (latency.eager, latency.compiled, latency.unfolded, latency.deployed)
    return [run for run in runs if run is not None]


def device_time(run: Latency) -> str:
    """Return the median by a GPU's events, in milliseconds; a dash where it was not taken."""
    return "–" if run.device_p50_ms is None else sig(run.device_p50_ms)


def fold_ratio(latency: Comparison) -> str:
    """Return what folding brought in one sentence; empty where the unfolded graph was not measured."""
    ratio, low, high = latency.fold_ratio, latency.fold_low, latency.fold_high
    if ratio is None or low is None or high is None:
        return ""
    equal = "no difference is shown: " if low <= 1 <= high else ""
    interval = f"95 % confidence {sig(low)} to {sig(high)}, over {count(latency.processes, 'process', 'processes')}"
    return f"{equal}{sig(ratio)} times as fast as the unfolded graph in the same runtime ({interval})"


def ratio(latency: Comparison) -> str:
    """Return the speed-up in one sentence, with its confidence interval, and whether that shows any difference."""
    equal = "no difference is shown: " if latency.ratio_low <= 1 <= latency.ratio_high else ""
    interval = f"95 % confidence {sig(latency.ratio_low)} to {sig(latency.ratio_high)}"
    return f"{equal}{sig(latency.ratio)} times as fast as eager ({interval})"


def example(report: Report) -> str:
    """Return five lines of Python that run the model of a bundle, in its own folder, on its golden inputs."""
    names = [text.partition(":")[0] for text in report.inputs if ":" in text]
    return "\n".join(
        [
            "import numpy, normdeploy",
            'model = normdeploy.load_bundle(".")  # checks every sha256, and the golden outputs',
            f'inputs = dict(numpy.load("golden/inputs.npz"))  # {", ".join(names)}',
            "outputs = model(inputs)",
            "print({name: array.shape for name, array in outputs.items()})",
        ]
    )


def engine(sidecar: Sidecar) -> str:
    """Return what built it, and which GPUs it is for."""
    capabilities = sorted(sidecar.compute_capabilities, key=lambda name: (len(name), name))
    target = ", ".join(capabilities) or sidecar.gpu or "no GPU that it names"
    return f"{sidecar.backend} {sidecar.backend_version}, in {sidecar.precision}, for {target}"


def engine_layers(sidecar: Sidecar) -> str:
    """Return ``25 layers: fp32 23, without floating-point data 2``."""
    counts = Counter(layer.precision or "without floating-point data" for layer in sidecar.layers)
    precisions = ", ".join(f"{precision} {number}" for precision, number in counts.most_common())
    return f"{count(len(sidecar.layers), 'layer')}: {precisions or 'none told'}"


def layer_precision(layer: EngineLayer) -> str:
    """Return what a layer computes in, and what it averages in where that is another type."""
    mixed = layer.statistics not in ("", layer.precision)
    return f"{layer.precision}, averages in {layer.statistics}" if mixed else layer.precision


_BEYOND = 1 << 80
"""Bytes that no file has; a report from elsewhere may say more than a float64 takes."""


def size(count: int) -> str:
    """Return a number of bytes in words, ``1.5 MB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{min(count // unit, _BEYOND) if count > _BEYOND else count / unit:.3g} {name}"
    return f"{count} bytes"


def _share_of_bound(judgement: Judgement) -> float:
    share = max(_share(deployed, bound) for _, (_, deployed, bound) in two_errors(judgement))
    return min(share, 1.0) if judgement.passed else max(share, 1.0) + 1.0


def _share(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    try:
        return _nan_last(error / bound) if bound > 0 else math.inf
    except OverflowError:  # a report from elsewhere may say numbers beyond float64
        return math.inf


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
