"""NVIDIA's ``perf_analyzer``, where it is installed: the client that Triton's own documentation measures with."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normdeploy import child
from normdeploy.disk import scratch
from normdeploy.errors import UnavailableError
from normdeploy.serving.ask import Address

NAME = "perf_analyzer"
_TRIALS = 3
_ANY = "100000"
"""Percent that its three windows may differ by: a machine with other work is measured too, and its percentiles tell."""
_TAIL = 3


class Timing(NamedTuple):
    """What perf_analyzer measured: percentiles in milliseconds, answers a second, rows that an execution had."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    rows: float | None


def find() -> Path | None:
    """Return perf_analyzer on the ``PATH``; None where there is none."""
    found = shutil.which(NAME)
    return None if found is None else Path(found).absolute()


def timed(
    program: Path,
    where: Address,
    model: str,
    inputs: Mapping[str, np.ndarray],
    *,
    largest_batch: int,
    clients: int,
    seconds: float,
) -> Timing:
    """Let ``program`` send ``inputs`` from ``clients`` at once, for about ``seconds`` and up to three times as long.

    ``largest_batch`` is the server's; 0 where it knows no batches. Raises UnavailableError where it cannot measure.
    """
    with scratch() as folder:
        (folder / "inputs.json").write_text(json.dumps({"data": _items(inputs, largest_batch > 0)}), encoding="utf-8")
        rows = len(next(iter(inputs.values()))) if largest_batch > 0 else 1
        command = [
            str(program), "-m", model, "-u", where.host, "-i", where.protocol, "-b", str(rows),
            "--input-data", "inputs.json", "--concurrency-range", str(clients), "-f", "latency.csv",
            "--measurement-interval", str(max(1, round(1e3 * seconds))), "--max-trials", str(_TRIALS),
            "--stability-percentage", _ANY,
        ]  # fmt: skip
        said = _output(command, folder)
        if not (folder / "latency.csv").exists():
            what = " | ".join([line for line in said.splitlines() if line.strip()][-_TAIL:])
            raise UnavailableError(f"{NAME} cannot measure: {what}", where=str(program), fix="take it off the PATH")
        with (folder / "latency.csv").open(encoding="utf-8", newline="") as file:
            return read(next(csv.DictReader(file)), said, rows)


def read(row: Mapping[str, str], said: str, rows: int) -> Timing:
    """Return what a ``row`` of its table says, whose times are in microseconds, and what it ``said`` of the server."""
    counts = [re.findall(rf"{kind} count: (\d+)", said) for kind in ("Inference", "Execution")]
    inferences, executions = (int(each[0]) if each else 0 for each in counts)
    p50, p90, p99 = (float(row[f"p{percentile} latency"]) / 1e3 for percentile in (50, 90, 99))
    per_second = float(row["Inferences/Second"]) / rows
    return Timing(p50, p90, p99, per_second, inferences / executions if executions else None)


def _items(inputs: Mapping[str, np.ndarray], batched: bool) -> list[dict[str, Any]]:
    """Return one entry for each row of a batch, or one for all where there are no batches."""
    if not batched:
        return [{name: _tensor(array) for name, array in inputs.items()}]
    return [
        {name: _tensor(row) for name, row in zip(inputs, rows, strict=True)}
        for rows in zip(*inputs.values(), strict=True)
    ]


def _tensor(array: np.ndarray) -> dict[str, Any]:
    """Return the bytes of ``array`` and its shape, which for Triton has an axis at least."""
    shape: Sequence[int] = array.shape or (1,)
    return {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(), "shape": list(shape)}


def _output(command: Sequence[str], folder: Path) -> str:
    with (
        (folder / "output.txt").open("w") as output,
        child.running(lambda: child.program(command, folder=folder, output=output)) as process,
    ):
        process.wait()
    return (folder / "output.txt").read_text(errors="replace")
