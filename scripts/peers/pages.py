"""What is shown of the measurements: a page with all of it, and a section of the README with the gist."""

from __future__ import annotations

from typing import Any

MARKS = ("<!-- scripts/compare_peers.py -->", "<!-- end -->")
"""Between these the README holds the section."""


def page(results: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    parts = ["# normdeploy beside other folders", f"Measured by `scripts/compare_peers.py` ({results['machine']})."]
    if table := results.get("table"):
        parts += [f"## {table['graphs']} small graphs", GRAPHS, table["coverage"], table["by group"], _alone(table)]
        parts += ["### Each fault", table["faults"]]
    if measured := results.get("networks"):
        parts += ["## Whole architectures", NETWORKS, NETWORKS_MORE, measured["left"], measured["seconds"]]
    if measured := results.get("speed"):
        parts += ["## Large models", SPEED, measured["times"]]
    if measured := results.get("modules"):
        parts += [f"## {measured['modules']} modules", MODULES, measured["table"], "### Each fault", measured["faults"]]
    if measured := results.get("latency"):
        parts += ["## Latency", LATENCY, measured["times"], measured["failed"]]
    return "\n\n".join(parts) + "\n"


def section(results: dict[str, Any]) -> str:
    """What the README shows of it."""
    parts = []
    if table := results.get("table"):
        parts += [GIST.format(graphs=table["graphs"]), table["coverage"], table["by group, short"], _alone(table)]
    if measured := results.get("networks"):
        parts += [NETWORKS, measured["left, short"]]
    if measured := results.get("modules"):
        parts += [MODULES, measured["table"]]
    if measured := results.get("speed"):
        parts += [SPEED, measured["times"]]
    return "\n\n".join(parts)


def with_section(readme: str, results: dict[str, Any]) -> str:
    """``readme`` with the section between its marks."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{section(results)}\n\n{MARKS[1]}{after}"


def _alone(table: dict[str, Any]) -> str:
    names = "; ".join(table["done by a peer alone"]) or "nothing"
    return f"Another folds, and normdeploy at its default does not: {names}."


GIST = """{graphs} small graphs. They are those of normdeploy's own tests, and traps: that it folds most of them says
less than what the others do with them, and who is wrong. A fold is done when no more is left than must be, in a valid
model that answers right, by float64; the seconds are those of all graphs, on a machine with other work."""

GRAPHS = """The graphs are those of normdeploy's own tests, and traps that a folder of good faith can fall into. That it
folds most of them says less than what the others do with them, and who is wrong.

A fold is done when no more is left than must be, in a valid model that answers right. Left are passes over activations;
of norms that are spelled out, also the other operators that they are spelled with; of the scales and biases of norms,
those; of norms of one value, their number; of layer norms to RMS norms, those that take off a mean. A right answer is
within 1e-4 of float64 (2e-2 in float16), per channel, on zeros, rows without deviation and random inputs; as it stands,
each graph answers right in its own precision. The rest of the graphs are those where a fold would be wrong. One
mistake of a folder can show in several graphs.

OpenVINO writes a format that only its own runtime answers, so mistakes of its importer and its kernels are among its
faults. An operator of ONNX Runtime's own counts as a norm like those of ONNX, and is for ONNX Runtime to judge. Counted
is the graph that a folder writes: what a runtime fuses later, when it loads the graph, is not."""

NETWORKS = """Whole architectures, small and untrained, with drawn statistics, as in `tests/real`."""

NETWORKS_MORE = """Passes are all elementwise operators with or without a constant, so they also count what is no map:
ONNX Runtime's extended level hides activations and attention in operators of its own."""

SPEED = """Seconds to load, fold and save large models: as normdeploy exports them, and raw, as torch writes them with
`optimize=False`. Each round is a fresh process, imports and a small graph before the clock starts, and the folders take
turns; the median of the rounds, in brackets the fastest and the slowest, and the median of the CPU seconds. The last
row folds nothing: it is what loading and saving cost in Python. The raw files were measured at another time: a
column compares with itself alone."""

MODULES = """Folders of PyTorch modules, on those of `tests/foldmodule`. Folded is what lost all that normdeploy's own
table says can go, in part what lost less, refused what stayed as it was; wrong is off by more than 1e-4 in float64."""

LATENCY = """One network in ONNX Runtime, one thread, as each folder leaves the file that torch writes with
`optimize=False`, or the file that a package ships. The forms run in turn; the medians of the rounds, and how many times
as fast as the best of the other forms normdeploy's is, with the 95 % interval."""
