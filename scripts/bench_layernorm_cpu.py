"""How fast ONNX Runtime runs each form of a norm on this machine, beside its LayerNormalization.

    .venv/bin/python scripts/bench_layernorm_cpu.py

Each form is a chain of the same norm, as it is (graph optimizations are off), checked against float64 first, and then
timed in turns with the first form of its group, with equal threads. With --write, scripts/results gets the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from normdeploy.bench.choice import Race, Spread, race
from normdeploy.bench.stats import FEWEST
from normdeploy.bench.timers import take_turns
from normdeploy.parity.feeds import Feed
from normdeploy.pipeline.stages import usual_threads
from normdeploy.report.view import sig
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

RESULTS = Path(__file__).parent / "results" / "bench_layernorm_cpu"
SHAPES = ((16, 48), (128, 384), (197, 768), (512, 1024), (4096, 1024))
"""Tokens and features: of models/digits_vit, MiniLM, ViT-B/16, BERT-large, and of eight texts at once."""
LENGTH = 16
"""Norms in a chain, so that what a call costs besides them weighs little."""
EPSILON = 1e-5
TOLERANCE = 1e-5
"""Largest error of one norm, relative to the largest value; float32 leaves a hundredth of it."""


Arrays = Mapping[str, np.ndarray]
Body = Callable[[str, str], str]
"""ONNX text of the nodes that make the value of the second name of that of the first one."""


@dataclass(frozen=True)
class Form:
    """One spelling of one norm: of ``x``, or of ``x + r``.

    Attributes:
        name: what the table calls it.
        body: its nodes; they also read r, the scale g, the bias b, epsilon as e, and the exponent n.
        mean: whether the mean is taken off.
        adds: whether r is added first.
        bias: whether b is added last.
        opset: of the default domain.
    """

    name: str
    body: Body
    mean: bool = True
    adds: bool = False
    bias: bool = False
    opset: int = 17


def one(operator: str, *more: str) -> Body:
    """The norm as one operator, which also reads ``more``."""
    axis = "" if operator.startswith("com.") else "axis = -1, "
    return lambda x, y: f"{y} = {operator} <{axis}epsilon = {EPSILON}> ({', '.join((x, *more))})"


def added(norm: Body) -> Body:
    """A sum before ``norm``."""
    return lambda x, y: f"{y}r = Add ({x}, r)  {norm(f'{y}r', y)}"


def rms_spelled(x: str, y: str) -> str:
    """An RMSNorm in 6 operators."""
    return (
        f"{y}q = Pow ({x}, n)  {y}a = ReduceMean <axes = [-1]> ({y}q)  {y}v = Add ({y}a, e)  {y}s = Sqrt ({y}v)  "
        f"{y}d = Div ({x}, {y}s)  {y} = Mul ({y}d, g)"
    )


def layer_spelled(x: str, y: str) -> str:
    """A LayerNorm in 9 operators."""
    centred = f"{y}m = ReduceMean <axes = [-1]> ({x})  {y}c = Sub ({x}, {y}m)"
    return f"{centred}  {rms_spelled(f'{y}c', f'{y}k')}  {y} = Add ({y}k, b)"


SKIP, SKIP_RMS = "com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"
GROUPS: tuple[tuple[Form, ...], ...] = (
    (
        Form("LayerNormalization", one("LayerNormalization", "g", "b"), bias=True),
        Form("LayerNormalization without bias", one("LayerNormalization", "g")),
        Form("SimplifiedLayerNormalization", one("SimplifiedLayerNormalization", "g"), mean=False),
        Form("RMSNormalization", one("RMSNormalization", "g"), mean=False, opset=23),
        Form("LayerNorm in 9 operators", layer_spelled, bias=True),
        Form("RMSNorm in 6 operators", rms_spelled, mean=False),
    ),
    (
        Form("Add, LayerNormalization", added(one("LayerNormalization", "g")), adds=True),
        Form("SkipLayerNormalization", one(SKIP, "r", "g"), adds=True),
        Form("Add, SimplifiedLayerNormalization", added(one("SimplifiedLayerNormalization", "g")), False, True),
        Form("SkipSimplifiedLayerNormalization", one(SKIP_RMS, "r", "g"), False, True),
    ),
)
"""The first form of each group is what the others are measured beside."""


@dataclass(frozen=True)
class Row:
    """One form at one shape, beside the first one of its group; the race is of whole chains."""

    tokens: int
    features: int
    form: str
    beside: str
    race: Race


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=usual_threads(), help="of each session; all cores but one")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair, after its warm-up")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}.json and .md into scripts/results")
    given = parser.parse_args()
    rows = list(measured(SHAPES, threads=given.threads, seconds=given.seconds))
    text = page(rows, given.threads)
    print(text, end="")
    if given.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.with_suffix(".md").write_text(text)
        RESULTS.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def measured(shapes: Sequence[tuple[int, int]], *, threads: int, seconds: float) -> Iterator[Row]:
    """Every form at every shape, checked, and in turns with the first one of its group."""
    for tokens, features in shapes:
        feed, weights = drawn(tokens, features)
        for group in GROUPS:
            for form in group:
                if (off := error(form, feed, weights)) > TOLERANCE:
                    raise SystemExit(f"{form.name} is off by {off:.2g} at {tokens} x {features}")
            beside, *others = (chain(form, weights, LENGTH, threads) for form in group)
            for form, runner in zip(group[1:], others, strict=True):
                times = take_turns(
                    beside, runner, feed, threads=threads, seconds=seconds, warmup_seconds=seconds / 2, fewest=FEWEST
                )
                yield Row(tokens, features, form.name, group[0].name, race(*times))


def drawn(tokens: int, features: int) -> tuple[Feed, Arrays]:
    """The data x with the other branch r of a sum, and the scale g with the bias b; all float32."""
    generator = np.random.default_rng(0)
    shapes = {"x": (1, tokens, features), "r": (1, tokens, features), "g": (features,), "b": (features,)}
    arrays = {name: generator.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    return Feed("drawn", {name: arrays[name] for name in "xr"}), {name: arrays[name] for name in "gb"}


def chain(form: Form, weights: Arrays, length: int, threads: int) -> OnnxRuntimeRunner:
    """``length`` norms of that form, one after another, in a session that runs them as they are written."""
    nodes = "\n".join(form.body(f"v{i}" if i else "x", f"v{i + 1}" if i + 1 < length else "y") for i in range(length))
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {form.opset}, "com.microsoft": 1]>
        chain (float[B, T, F] x, float[B, T, F] r) => (float[B, T, F] y)
        <float e = {{{EPSILON}}}, float n = {{2.0}}> {{ {nodes} }}"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    options = {"graph_optimization_level": "disable"}
    return OnnxRuntimeRunner(model.SerializeToString(), threads=threads, options=options)


def truth(form: Form, arrays: Arrays) -> np.ndarray:
    """One norm of that form in float64."""
    x, r, g, b = (arrays[name].astype(np.float64) for name in "xrgb")
    x = x + r * form.adds
    x = x - x.mean(-1, keepdims=True) * form.mean
    y: np.ndarray = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * g + b * form.bias
    return y


def error(form: Form, feed: Feed, weights: Arrays) -> float:
    """How far one norm of that form is off in ONNX Runtime, relative to the largest value."""
    exact, actual = truth(form, {**feed.arrays, **weights}), chain(form, weights, 1, 1)(feed.arrays)["y"]
    return float(np.abs(actual - exact).max() / np.abs(exact).max())


# -- what is printed -------------------------------------------------------------------------------


def page(rows: Sequence[Row], threads: int) -> str:
    """The ratios, form by shape, and then every measurement, as Markdown."""
    shapes = list(dict.fromkeys((row.tokens, row.features) for row in rows))
    columns = [f"{tokens} x {features}" for tokens, features in shapes]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {version('onnxruntime')}"
    ratios = [[form, beside, *_cells(rows, form, shapes)] for form, beside in _forms(rows)]
    return "\n".join(
        [
            "# Forms of a norm in ONNX Runtime",
            "",
            f"Measured by `scripts/bench_layernorm_cpu.py` ({machine}, {threads} thread{'s' * (threads > 1)}).",
            "",
            "Times as fast as the form beside it, by tokens x features; in brackets the 95 % interval.",
            "",
            *table(["form", "beside", *columns], ratios),
            "",
            f"Microseconds a norm, medians of chains of {LENGTH}, and the middle half of the rounds.",
            "",
            *table(["tokens x features", "form", "µs", "beside", "µs", "rounds"], [_spread(row) for row in rows]),
            "",
        ]
    )


def _forms(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.form, row.beside) for row in rows))


def _cells(rows: Sequence[Row], form: str, shapes: Sequence[tuple[int, int]]) -> Iterator[str]:
    races = {(row.tokens, row.features): row.race for row in rows if row.form == form}
    for shape in shapes:
        found = races[shape]
        yield f"{found.ratio:.2f} ({found.ratio_low:.2f} to {found.ratio_high:.2f})"


def _spread(row: Row) -> list[str]:
    def told(spread: Spread) -> str:
        low, middle, high = (1000 * value / LENGTH for value in (spread.low_ms, spread.median_ms, spread.high_ms))
        return f"{sig(middle)} ({sig(low)} to {sig(high)})"

    shape = f"{row.tokens} x {row.features}"
    return [shape, row.form, told(row.race.candidate), row.beside, told(row.race.default), str(row.race.n)]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


if __name__ == "__main__":
    main()
