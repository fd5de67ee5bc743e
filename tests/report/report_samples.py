"""Reports to render: one with everything in it that a report can have, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from normdeploy.bench.stats import Comparison, compare, latency, over_processes
from normdeploy.fold.ledger import Entry, Ledger, Note
from normdeploy.parity.metrics import EXACT, Errors
from normdeploy.parity.verdict import Measurement, Part, Verdict, judge
from normdeploy.report.schema import Report


def error(rms: float, largest: float) -> Errors:
    return Errors(rms, largest, 3 * largest, 7.5, 40.0, 1.0, -20 * np.log10(rms) if rms else np.inf, np.isfinite(rms))


def measurement(output: str, eager: Errors, deployed: Errors, feed: str = "random N=1") -> Measurement:
    return Measurement(feed, output, (1, 10), "float32", eager, deployed)


def verdict(*extra: Measurement) -> Verdict:
    usual = [
        measurement("logits", error(1.6e-7, 3e-7), error(1.9e-7, 2.5e-7)),
        measurement("logits", error(2.1e-7, 5e-7), error(1.7e-7, 4e-7), "random N=64"),
        measurement("hidden_states.0", EXACT, EXACT),
        measurement("hidden_states.1", EXACT, error(2e-8, 6e-8)),
    ]
    return judge([*usual, *extra], notes=["top-k ties may fall otherwise"])


def in_parts(failing: Part | None, *, not_run: str = "") -> Verdict:
    """A verdict on a graph and its runtime, or on the graph alone; all of the part ``failing`` is off by 1 %."""
    found = [
        Measurement(feed, output, (1, 10), "float32", error(1e-7, 2e-7), error(off, off), part=part)
        for part in ("graph", "runtime")
        if part == "graph" or not not_run
        for off in [1e-2 if part == failing else 1e-8]
        for feed in ("random N=1", "random N=64", "random, in place of floats: mean 10,000")
        for output in ("a_rather_long_name_of_an_output.of_the_encoder.hidden_states", "logits", "gate")
    ]
    return judge(found, notes=["top-k ties may fall otherwise"], not_run=not_run)


def comparison(noise: float = 0.05, n: int = 300) -> Comparison:
    generator = np.random.default_rng(3)
    eager, deployed = (middle * np.exp(noise * generator.gamma(2.0, size=n)) for middle in (1.9, 0.74))
    return compare(latency("eager", eager), latency("onnxruntime", deployed), threads=2, feed="random N=1")


def three_rows(middle: float) -> Comparison:
    """Two processes in which the unfolded graph takes twice, and eager four times the ``middle`` ms of the deployed."""
    names = {"eager": "eager", "unfolded": "onnxruntime, unfolded", "deployed": "onnxruntime"}
    process = {row: [middle * times] * 25 for row, times in (("eager", 4.0), ("unfolded", 2.0), ("deployed", 1.0))}
    return over_processes([process, process], names, threads=1, feed="random")


def entries(count: int) -> list[Entry]:
    """``count`` folded norms and four others, one of each kind of outcome and a constant map."""
    folded = [
        Entry(
            f"layers.{i}.bn",
            f"node_bn_{i}",
            "BatchNormalization",
            True,
            "folded",
            (f"layers.{i}.conv",),
            (),
            1.0,
            3e-16,
        )
        for i in range(count)
    ]
    others = [
        Entry("head.bn", "n1", "BatchNormalization", True, "folded", ("head.fc",), ("Flatten", "Reshape"), 2.0, 1e-15),
        Entry("norm", "n2", "LayerNormalization", True, "reduced", ("head.fc",), (), 1.0, 4e-16),
        Entry(
            "stem.bn", "n3", "BatchNormalization", True, "left",
            reason="its input is a graph output", fix="do not return it", codes=("NF002",),
        ),
        Entry("scale", "n4", "Mul", False, "composed", ("stem.bn",)),
    ]  # fmt: skip
    return folded + others


def make(
    ledger: Sequence[Entry] | None = None,
    parity: Verdict | None = None,
    latency: Comparison | None = None,
    by_batch: Mapping[int, Comparison] | None = None,
) -> Report:
    return Report(
        created=datetime(2025, 3, 1, 12, 30, tzinfo=UTC),
        normdeploy_version="0.1.0",
        packages={"torch": "2.13.0", "onnxruntime": "1.32.0"},
        factory="models.digits:resnet",
        weights="digits_resnet.safetensors",
        weights_sha256="ab" * 32,
        inputs=["x:N=1..1..64x1x8x8@f32"],
        outputs=["logits", "hidden_states.0", "hidden_states.1"],
        opset=20,
        precision="float32",
        norms_before={"BatchNormalization": 5, "LayerNormalization": 1},
        norms_after={"BatchNormalization": 1},
        ledger=Ledger(
            tuple(entries(3) if ledger is None else ledger),
            (Note("NF410", "one weight was flushed to zero"),),
            0.2,
            0.1,
            (Note("NF401", "x.bn: 2 ulp"),),
        ),
        parity=parity,
        latency=latency,
        latency_by_batch=dict(by_batch or {}),
        notes=["the module was in training mode; .eval() was called"],
        seconds={"load": 0.21, "export": 2.4, "fold": 0.2},
    )
