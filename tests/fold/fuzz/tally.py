"""What random graphs were made of, and what the fold made of them: a table of counts.

A property test that draws dull graphs, or graphs in which nothing folds, tests nothing: these numbers show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from messages import nodes
from strategies import Case

from normdeploy.fold import Ledger


class Tally:
    """Counts over many graphs."""

    def __init__(self) -> None:
        self.graphs = 0
        self.traits: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    def add(self, case: Case, ledger: Ledger) -> None:
        """Count one graph and its fold."""
        self.graphs += 1
        self.operators.update({node.op_type for node in nodes(case.proto)})
        self.traits.update(set(_traits(case)))
        outcomes = [entry.outcome for entry in ledger]
        self.outcomes.update(outcomes)
        moved = {name for name in outcomes if name != "left"}
        self.traits.update([f"graphs with a map {name}" for name in moved])
        self.traits.update(["graphs in which something folds"] * bool(moved))
        self.passed.update({name for entry in ledger for name in entry.through})
        self.codes.update({code for entry in ledger if entry.outcome == "left" for code in entry.codes})

    def __str__(self) -> str:
        parts = {
            f"graphs ({self.graphs})": self.traits,
            "graphs by operator": self.operators,
            "maps by what became of them": self.outcomes,
            "graphs in which a map passed": self.passed,
        }
        return "\n".join(line for title, counts in parts.items() for line in (f"{title}:", *_lines(counts)))


def _lines(counts: Counter[str]) -> Iterator[str]:
    for name, count in counts.most_common():
        yield f"  {count:7} {name}"


def _traits(case: Case) -> Iterator[str]:
    graph = case.proto.graph
    yield f"opset {case.proto.opset_import[0].version}"
    yield f"IR {case.proto.ir_version}"
    yield f"input {onnx.TensorProto.DataType.Name(graph.input[0].type.tensor_type.elem_type).lower()}"
    everything = list(nodes(case.proto))
    yield f"{min(len(everything) // 5 * 5, 20)} or more nodes"
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in everything if node.op_type == "Constant"}
    readers = Counter(name for node in everything for name in node.input if name)
    if any(count > 1 for name, count in readers.items() if name in constants):
        yield "a shared constant"
    if any(count > 1 for name, count in readers.items() if name not in constants):
        yield "a value with several readers"
    if any(dim.dim_param for info in graph.input for dim in info.type.tensor_type.shape.dim):
        yield "a dynamic size"
    if len(graph.output) > 1:
        yield "several outputs"
