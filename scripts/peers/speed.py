"""Seconds for large models, load and save included: every folder in turn, several rounds.

ResNet-50 and BERT-base as normdeploy exports them, cleaned, and with Swin-T as torch writes them with optimize=False.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from normdeploy import specs
from normdeploy.export import to_graph
from peers.borrowed import Architecture, bn, model, network, norm, randomized
from peers.crew import Worker
from peers.latency import drawn, write_exported

LIMIT = 600.0
"""Seconds for one model."""


# transformers' defaults are ResNet-50, BERT-base and Swin-T
LARGE = [
    Architecture("ResNet-50", network("ResNet", "ForImageClassification"), "pixel_values:N=1..1..8x3x224x224@f32",
                 53, 0, (53, 53)),
    Architecture("BERT-base", network("Bert", "Model"), "input_ids:B=1..1..8xT=8..128..512@i64[0..30521]",
                 0, 0, (0, 0)),
    Architecture("Swin-T", network("Swin", "ForImageClassification"), "pixel_values:N=1..1..8x3x224x224@f32",
                 0, 0, (0, 0)),
]  # fmt: skip
CLEANED = ("ResNet-50", "BERT-base")
"""Those that are folded as normdeploy exports them, too."""
MODELS = (*CLEANED, *(f"{architecture.name} raw" for architecture in LARGE))
"""The files, in the order of the table."""


@dataclass(frozen=True)
class Times:
    """The seconds of one folder on one model, a round each: by the clock, and those that its threads computed."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    error: str = ""

    @property
    def median(self) -> float:
        """The median by the clock."""
        return statistics.median(self.wall)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest round by the clock."""
        return min(self.wall), max(self.wall)


def export(folder: Path, only: Sequence[str] = ()) -> dict[str, Path]:
    """Write the models, or ``only`` those of these names, into ``folder``."""
    paths = {}
    for architecture in LARGE:
        name, raw = architecture.name, f"{architecture.name} raw"
        asked = [each for each in (name, raw) if (not only or each in only) and (each == raw or name in CLEANED)]
        if not asked:
            continue
        print(f"exporting {name}", file=sys.stderr)
        module, parsed = randomized(architecture), specs.parse([architecture.spec])
        if name in asked:
            paths[name] = folder / f"{name}.onnx"
            with torch.no_grad():
                ir.save(to_graph(module, parsed).model, paths[name])
        if raw in asked:
            paths[raw] = folder / f"{raw}.onnx"
            write_exported(module, drawn(parsed), paths[raw])
    return paths


def measure(
    names: Sequence[str], source: Path, folder: Path, rounds: int, note: Callable[[str], None]
) -> dict[str, Times]:
    """Let every folder fold ``source`` once a round, beginning with another one each round."""
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, str] = {}
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            if name in errors:
                continue
            answer = _once(name, source, folder)
            if "error" in answer:
                errors[name] = str(answer["error"])
                continue
            wall[name].append(float(answer["seconds"]))
            cpu[name].append(float(answer["cpu"]))
            note(f"{source.stem}, round {turn + 1}: {name} {answer['seconds']:.2f} s")
    return {name: Times(tuple(wall[name]), tuple(cpu[name]), errors.get(name, "")) for name in names}


def _once(name: str, source: Path, folder: Path) -> dict[str, Any]:
    """One fold in a fresh process, so that nobody's memory weighs on another; its imports are over by then."""
    worker, suffix = Worker(name, folder / f"{name}.log"), "xml" if name == "openvino" else "onnx"
    small, target = folder / "small.onnx", folder / f"out.{suffix}"
    onnx.save(model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y")), small)
    try:
        worker({"source": str(small), "target": str(target)}, LIMIT)
        return worker({"source": str(source), "target": str(target)}, LIMIT)
    finally:
        worker.stop()
        for leftover in folder.glob("out.*"):
            leftover.unlink()
