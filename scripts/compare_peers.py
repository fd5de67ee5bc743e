"""What other folders of ONNX graphs make of the same graphs: coverage, wrong answers, invalid models, seconds.

    .venv/bin/python scripts/compare_peers.py

makes .venv-peers with the peers, lets each of them and normdeploy fold the table of graphs, the architectures of
tests/real and large models, in processes of their own, measures how fast what they write runs, and writes
scripts/results/compare_peers.{json,md}. Needs .venv-real (make test-real). With --aimet, AIMET takes part, from
.venv-aimet, which holds a PyTorch of its own.
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
from peers import coverage, latency, modules, networks, pages, report, speed
from peers.crew import OURS, Worker, install
from peers.graph import Graph
from peers.table import graphs
from peers.worker import CENTRE, FOLDERS, NOTHING

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
PARTS = ("table", "networks", "speed", "latency", "modules")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure anew; all of it")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the large models, and of the latencies")
    parser.add_argument("--only", nargs="*", default=[], help="the models of the speed and the latencies; all of them")
    parser.add_argument("--aimet", action="store_true", help="let AIMET take part")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    names = [name for name in FOLDERS if name != NOTHING and (name != "aimet" or given.aimet)]
    for name in names if {*given.parts} - {"modules"} else ():
        install(name)
    torch.set_num_threads(1)
    path = RESULTS / "compare_peers.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory(prefix="normdeploy-peers-") as folder:
        for part in given.parts:
            if part == "modules":
                results["modules"] = modules.measure(note)
            elif part == "latency":
                measure_latency(results, Path(folder), given.rounds, given.only)
            elif part == "speed":
                measure_speed(results, names, Path(folder), given.rounds, given.only)
            else:
                MEASURE[part](results, names, Path(folder))
            write(results, path)
    write(results, path)
    print(pages.page(results))


def write(results: dict[str, Any], path: Path) -> None:
    """The measurements, and all that shows them."""
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(pages.page(results), encoding="utf-8")
    README.write_text(pages.with_section(README.read_text(encoding="utf-8"), results), encoding="utf-8")


def measure_table(results: dict[str, Any], names: Sequence[str], folder: Path) -> None:
    listed = graphs()
    asked = coverage.ask(listed)
    listed = [graph for graph in listed if graph.name in asked]
    found = {}
    for name in names:
        note(f"the table: {name}")
        found[name] = coverage.run(name, listed, asked, folder)
    not_done = {name: _not_done(listed, outcomes) for name, outcomes in found.items()}
    ours, theirs = not_done[OURS[0]], [missing for name, missing in not_done.items() if name not in OURS]
    results["table"] = {
        "coverage": report.coverage(listed, found),
        "by group": report.by_group(listed, found),
        "by group, short": report.by_group_short(listed, found),
        "faults": report.faults(found),
        "graphs": len(listed),
        "not done": not_done,
        "done by a peer alone": [graph for graph in ours if any(graph not in other for other in theirs)],
    }


def _not_done(listed: Sequence[Graph], outcomes: dict[str, Any]) -> list[str]:
    return [graph.name for graph in listed if graph.is_fold and not outcomes[graph.name].did(graph)]


def measure_networks(results: dict[str, Any], names: Sequence[str], folder: Path) -> None:
    exported = networks.export_all(folder)
    found = {}
    for name in (name for name in names if name not in OURS[1:]):
        note(f"the networks: {name}")
        worker = Worker(name, folder / f"{name}.log")
        found[name] = {network.name: networks.fold(worker, network, folder) for network in exported}
        worker.stop()
    results["networks"] = {
        "left": report.networks(exported, found),
        "left, short": report.networks_short(exported, found),
        "seconds": report.network_seconds(exported, found),
        "raw": {name: {key: value.as_json() for key, value in each.items()} for name, each in found.items()},
    }


def measure_speed(
    results: dict[str, Any], names: Sequence[str], folder: Path, rounds: int, only: Sequence[str]
) -> None:
    """Measure the models in turn; those that are not asked for keep what was measured before."""
    raw = dict(results.get("speed", {}).get("raw", {}))
    for model, source in speed.export(folder, only).items():
        folders = [*(name for name in names if name != CENTRE), NOTHING]
        raw[model] = {name: asdict(each) for name, each in speed.measure(folders, source, folder, rounds, note).items()}
        source.unlink()
    times = {
        model: {name: speed.Times(**each) for name, each in raw[model].items()}
        for model in speed.MODELS
        if model in raw
    }
    results["speed"] = {"times": report.speed(times), "raw": raw}


def measure_latency(results: dict[str, Any], folder: Path, rounds: int, only: Sequence[str]) -> None:
    """Measure the networks in turn; those that are not asked for keep what was measured before."""
    found = dict(results.get("latency", {}).get("raw", {}))
    for network in latency.networks(only):
        found[network.name] = latency.measure(network, folder, rounds, note)
    failed = [f"- {name}, {form}: {why}" for name, each in found.items() for form, why in each["errors"].items()]
    results["latency"] = {"times": report.latency(found), "failed": "\n".join(failed) or "none failed", "raw": found}


MEASURE = {"table": measure_table, "networks": measure_networks}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
