"""What other folders of ONNX graphs make of the same graphs: coverage, wrong answers, invalid models, seconds.

    .venv/bin/python scripts/compare_peers.py

makes .venv-peers with the peers, lets each of them and normdeploy fold the table of graphs, the architectures of
tests/real and two large models, in processes of their own, and writes scripts/results/compare_peers.{json,md}. Needs
.venv-real (make test-real). With --aimet, AIMET takes part, from .venv-aimet, which holds a PyTorch of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers import coverage, networks, report, speed
from peers.crew import OURS, Worker, install
from peers.table import Graph, graphs
from peers.worker import FOLDERS, NOTHING

RESULTS = Path(__file__).parent / "results"
PARTS = ("table", "networks", "speed")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all of it")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the two large models")
    parser.add_argument("--aimet", action="store_true", help="let AIMET take part")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    names = [name for name in FOLDERS if name != NOTHING and (name != "aimet" or given.aimet)]
    for name in names:
        install(name)
    torch.set_num_threads(1)
    path = RESULTS / "compare_peers.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory(prefix="normdeploy-peers-") as folder:
        for part in given.parts:
            MEASURE[part](results, names, Path(folder), given.rounds)
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            (RESULTS / "compare_peers.md").write_text(page(results))
    print(page(results))


def measure_table(results: dict[str, Any], names: Sequence[str], folder: Path, rounds: int) -> None:
    del rounds
    listed = graphs()
    asked = coverage.ask(listed)
    listed = [graph for graph in listed if graph.name in asked]
    found = {}
    for name in names:
        note(f"the table: {name}")
        found[name] = coverage.run(name, listed, asked, folder)
    not_done = {name: _not_done(listed, outcomes) for name, outcomes in found.items()}
    ours, *theirs = not_done.values()
    results["table"] = {
        "coverage": report.coverage(listed, found),
        "by group": report.by_group(listed, found),
        "faults": report.faults(found),
        "graphs": len(listed),
        "not done": not_done,
        "done by a peer alone": [graph for graph in ours if any(graph not in other for other in theirs)],
    }


def _not_done(listed: Sequence[Graph], outcomes: dict[str, Any]) -> list[str]:
    return [graph.name for graph in listed if graph.is_fold and not outcomes[graph.name].did(graph)]


def measure_networks(results: dict[str, Any], names: Sequence[str], folder: Path, rounds: int) -> None:
    del rounds
    exported = networks.export_all(folder)
    found = {}
    for name in (name for name in names if name != OURS[1]):
        note(f"the networks: {name}")
        worker = Worker(name, folder / f"{name}.log")
        found[name] = {network.name: networks.fold(worker, network, folder) for network in exported}
        worker.stop()
    results["networks"] = {
        "left": report.networks(exported, found),
        "seconds": report.network_seconds(exported, found),
        "raw": {name: {key: value.as_json() for key, value in each.items()} for name, each in found.items()},
    }


def measure_speed(results: dict[str, Any], names: Sequence[str], folder: Path, rounds: int) -> None:
    times = {}
    for model, source in speed.export(folder).items():
        times[model] = speed.measure([*names, NOTHING], source, folder, rounds, note)
        source.unlink()
    results["speed"] = {
        "times": report.speed(times),
        "raw": {model: {name: asdict(each) for name, each in found.items()} for model, found in times.items()},
    }


MEASURE = {"table": measure_table, "networks": measure_networks, "speed": measure_speed}


def page(results: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    parts = ["# normdeploy beside other folders", f"Measured by `scripts/compare_peers.py` ({results['machine']})."]
    if table := results.get("table"):
        parts += [TABLE.format(graphs=table["graphs"]), table["coverage"], table["by group"]]
        parts += [f"A peer folds and normdeploy does not: {'; '.join(table['done by a peer alone']) or 'nothing'}."]
        parts += ["### Each fault", table["faults"]]
    if measured := results.get("networks"):
        parts += [NETWORKS, measured["left"], measured["seconds"]]
    if measured := results.get("speed"):
        parts += [SPEED, measured["times"]]
    return "\n\n".join(parts) + "\n"


TABLE = """## {graphs} small graphs

A fold is done when no more passes over activations are left than must be, in a valid model that answers right. A right
answer is within 1e-4 of float64 (2e-2 in float16), per channel, on zeros and random inputs. The rest of the graphs are
those where a fold would be wrong. OpenVINO writes a format that only its own runtime answers, so mistakes of its
importer and its kernels are among its faults. Counted is the graph that a folder writes: what a runtime fuses later,
when it loads the graph, is not."""

NETWORKS = """## Whole architectures

Small and untrained, with drawn statistics, as in `tests/real`. Passes are all elementwise operators with or without a
constant, so they also count what is no map: ONNX Runtime's extended level hides activations and attention in operators
of its own. Two of what RT-DETR has left here are no norms, but a Mul and a Sub that became one."""

SPEED = """## Two large models

Load, fold and save, in a fresh process a round, imports and a small graph before the clock starts; median of the
rounds, in turn. The last row folds nothing: it is what loading and saving cost in Python."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
