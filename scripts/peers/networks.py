"""Every folder over the exported architectures of tests/real: BatchNormalization left, wrong answers, seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from normdeploy import specs
from normdeploy.export import to_graph
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.metrics import errors, is_float
from normdeploy.parity.reference import Oracle
from peers import counting
from peers.borrowed import ARCHITECTURES, Architecture, randomized
from peers.coverage import openvino_answers
from peers.crew import Worker
from peers.judge import Arrays, require_valid, run

LIMIT = 600.0
"""Seconds for one model."""

WRONG = 1e-3
"""The RMS error, relative to the output's RMS, from which on an answer is wrong; eager's own is below 1e-5."""


@dataclass(frozen=True)
class Exported:
    """One exported network, with inputs, the float64 answers to them, its BatchNormalizations and its passes."""

    name: str
    path: Path
    feeds: tuple[Arrays, ...]
    answers: tuple[Arrays, ...]
    norms: int
    passes: int


@dataclass(frozen=True)
class Folded:
    """What a folder made of one network: as :class:`judge.Outcome`, with the norms that are left."""

    crash: str = ""
    invalid: str = ""
    wrong: str = ""
    norms: int | None = None
    passes: int | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What is not empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def export(architecture: Architecture, folder: Path) -> Exported:
    """Write the network into ``folder``."""
    module, parsed = randomized(architecture), specs.parse([architecture.spec])
    path = folder / f"{architecture.name}.onnx"
    ir.save(to_graph(module, parsed).model, path)
    oracle, feeds = Oracle(module, parsed, None), tuple(feed.arrays for feed in random_feeds(parsed)[:2])
    answers = []
    for feed in feeds:
        exact = oracle.exact(feed)
        if exact is None:
            raise RuntimeError(f"{architecture.name} does not run in float64")
        answers.append({name: array for name, array in exact.items() if is_float(array.dtype.name)})
    proto = onnx.load(path)
    counts = counting.norms_in_onnx(proto), counting.passes_in_onnx(proto)
    return Exported(architecture.name, path, feeds, tuple(answers), *counts)


def export_all(folder: Path) -> list[Exported]:
    """Every network of the table, as files in ``folder``."""
    exported = []
    for architecture in ARCHITECTURES:
        print(f"exporting {architecture.name}", file=sys.stderr)
        exported.append(export(architecture, folder))
    return exported


def fold(worker: Worker, network: Exported, folder: Path) -> Folded:
    """What the folder makes of one network."""
    target = folder / ("out.xml" if worker.name == "openvino" else "out.onnx")
    target.unlink(missing_ok=True)
    answer = worker({"source": str(network.path), "target": str(target)}, LIMIT)
    if "error" in answer or not target.exists():
        return Folded(crash=answer.get("error", "it wrote nothing"))
    try:
        norms, passes, answers = _read(worker, network, target)
    except Exception as error:
        return Folded(invalid=f"{type(error).__name__}: {error}"[:300], seconds=answer["seconds"])
    return Folded("", "", _wrong(network.answers, answers), norms, passes, answer["seconds"])


def _read(worker: Worker, network: Exported, target: Path) -> tuple[int, int, list[Arrays]]:
    if worker.name == "openvino":
        answers, nodes = openvino_answers(worker, target, list(network.feeds), LIMIT)
        return counting.norms_in_openvino(nodes), counting.left_in_openvino(nodes, "passes"), answers
    proto = onnx.load(target)
    require_valid(proto)
    answers = [run(proto, feed) for feed in network.feeds]
    return counting.norms_in_onnx(proto), counting.passes_in_onnx(proto), answers


def _wrong(wanted: Sequence[Arrays], answers: Sequence[Arrays]) -> str:
    for want, got in zip(wanted, answers, strict=True):
        for name, array in want.items():
            if name not in got:
                return f"without {name}"
            if got[name].shape != array.shape:
                return f"{name} is {list(got[name].shape)}, not {list(array.shape)}"
            found = errors(got[name], array, "float32")
            if not found.finite or found.rms > WRONG:
                return f"{name} is off by {found.rms:.2g}"
    return ""
