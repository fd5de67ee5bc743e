"""Every folder over every graph of the table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from peers import counting
from peers.crew import Worker
from peers.graph import Graph
from peers.judge import Arrays, Outcome, Question, difference, outcome, questions, wrong_as_it_stands

LIMIT = 60.0
"""Seconds for one small graph."""


def run(name: str, graphs: Iterable[Graph], asked: dict[str, list[Question]], folder: Path) -> dict[str, Outcome]:
    """What the folder ``name`` makes of each graph, by the graph's name."""
    worker = Worker(name, folder / f"{name}.log")
    try:
        return {graph.name: one(worker, graph, asked[graph.name], folder) for graph in graphs if graph.name in asked}
    finally:
        worker.stop()


def ask(graphs: Iterable[Graph]) -> dict[str, list[Question]]:
    """The questions to every graph and the right answers, by its name; without those that have none or several."""
    asked = {}
    for graph in graphs:
        if any(node.op_type == "Dropout" and len(node.input) > 2 for node in graph.model.graph.node):
            continue  # what is dropped is drawn anew each time: there is no right answer
        try:
            found = questions(graph.model)
        except Exception as error:  # random inputs do not fit it, or nothing has its kernels
            print(f"left out, since it cannot be run: {graph.name} ({type(error).__name__})", file=sys.stderr)
            continue
        if said := wrong_as_it_stands(graph.model, found):
            print(f"left out, since ONNX Runtime reads it otherwise: {graph.name} ({said})", file=sys.stderr)
            continue
        asked[graph.name] = found
    return asked


def one(worker: Worker, graph: Graph, asked: list[Question], folder: Path) -> Outcome:
    """What the folder makes of one graph."""
    source, target = folder / "graph.onnx", folder / ("out.xml" if worker.name == "openvino" else "out.onnx")
    onnx.save(graph.model, source)
    target.unlink(missing_ok=True)
    answer = worker({"source": str(source), "target": str(target)}, LIMIT)
    if "error" in answer or not target.exists():
        return Outcome(crash=answer.get("error", "it wrote nothing"))
    if worker.name == "openvino":
        return _of_openvino(worker, graph, asked, target, answer["seconds"])
    return outcome(graph, asked, target, answer["seconds"])


def _of_openvino(worker: Worker, graph: Graph, asked: list[Question], target: Path, seconds: float) -> Outcome:
    """Only OpenVINO can run its own format, so mistakes of its importer and of its kernels count with the others."""
    try:
        answers, nodes = openvino_answers(worker, target, [question.feed for question in asked], LIMIT)
    except RuntimeError as error:
        return Outcome(crash=str(error), seconds=seconds)
    wrong = difference(graph.model, asked, answers, exact=False)
    return Outcome(wrong=wrong, left=counting.left_in_openvino(nodes, graph.counted), seconds=seconds)


def openvino_answers(
    worker: Worker, model: Path, feeds: list[Arrays], limit: float
) -> tuple[list[Arrays], list[dict[str, Any]]]:
    """What OpenVINO answers to each feed, and the operators of the model; RuntimeError where it does not."""
    pairs = [(f"{model}.{i}.in.npz", f"{model}.{i}.out.npz") for i in range(len(feeds))]
    for (path, _), feed in zip(pairs, feeds, strict=True):
        np.savez(path, **feed)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    answer = worker({"read": str(model), "feeds": pairs}, limit)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    answers = []
    for _, path in pairs:
        with np.load(path) as arrays:
            answers.append({key: arrays[key] for key in arrays.files})
    return answers, answer["nodes"]
