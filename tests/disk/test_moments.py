"""At every moment, whatever stops it: the old is there or the new, whole; the next one that writes there tidies up."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from moments import DONE, each_moment, rooms_in
from support import tree

from normdeploy import disk
from normdeploy.engine.sidecar import Sidecar, read_plan, write_plan
from normdeploy.errors import NormdeployError
from normdeploy.pipeline import files as pipeline_files

Tree = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One thing that is written.

    Attributes:
        old: lays out what is there before; the folder also has a file of somebody else.
        write: writes the new.
        state: what a reader finds: "old", "new", or anything else, which is a fault.
    """

    old: Callable[[Path], object]
    write: Callable[[Path], object]
    state: Callable[[Path], str]


# --- a file ---


def file_state(folder: Path) -> str:
    path = folder / "out"
    return path.read_text() if path.exists() else "nothing"


FILE = Case(
    lambda folder: (folder / "out").write_text("old"),
    lambda folder: disk.write_file(folder / "out", b"new", replace=True),
    file_state,
)
NEW_FILE = Case(lambda folder: None, lambda folder: disk.write_file(folder / "out", b"new", replace=False), file_state)


# --- a folder ---


def content(word: str) -> Tree:
    return {"a.txt": word.encode(), "sub/b.txt": word.encode() * 2}


def lay_out(folder: Path, word: str) -> None:
    for name, data in content(word).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def known(word: str) -> set[tuple[str, str]]:
    return {(name, hashlib.sha256(data).hexdigest()) for name, data in content(word).items()}


def write_folder(folder: Path) -> None:
    target = folder / "out"
    with disk.room(target) as place:
        lay_out(place.new, "new")
        if target.exists():
            place.replace(target, known("old") | known("new"))
        else:
            place.settle(target)


def folder_state(folder: Path) -> str:
    found = tree(folder / "out")
    return next((word for word in ("old", "new") if found == content(word)), f"{sorted(found)}" if found else "nothing")


FOLDER = Case(lambda folder: lay_out(folder / "out", "old"), write_folder, folder_state)
NEW_FOLDER = Case(lambda folder: None, write_folder, folder_state)


# --- a plan with its sidecar ---


def sidecar(plan: bytes) -> Sidecar:
    return Sidecar(
        backend="tensorrt_rtx", backend_version="1", gpu=None, compute_capabilities=("SM89",), inputs=("x",),
        outputs=("y",), profiles=(), precision="fp32", sha256=hashlib.sha256(plan).hexdigest(), size=len(plan),
        timing_cache_key=None, options={}, layers=(),
    )  # fmt: skip


def write_pair(folder: Path, plan: bytes) -> None:
    write_plan(folder / "out.plan", plan, sidecar(plan), force=True)


def pair_state(folder: Path) -> str:
    if not (folder / "out.plan").exists():
        return "nothing"
    plan, beside = read_plan(folder / "out.plan")
    assert beside == sidecar(plan)
    return plan.decode()


PAIR = Case(lambda folder: write_pair(folder, b"old"), lambda folder: write_pair(folder, b"new"), pair_state)
NEW_PAIR = Case(lambda folder: None, lambda folder: write_pair(folder, b"new"), pair_state)


# --- a graph with its weights ---

WEIGHTS = {word: np.full((40, 40), number, np.float32) for number, word in enumerate(("old", "new"))}


def graph(word: str) -> ir.Model:
    weight = ir.Value(name="w", const_value=ir.tensor(WEIGHTS[word], name="w"))
    x = ir.Value(name="x", shape=ir.Shape([40, 40]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Add", [x, weight])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    inner = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 18}, name=word)
    return ir.Model(inner, ir_version=10)


def write_graph(folder: Path, word: str) -> None:
    source = folder / "somebody else's"
    pipeline_files._install(graph(word), folder / "out.onnx", source, 0, True)


def graph_state(folder: Path) -> str:
    if not (folder / "out.onnx").exists():
        return "nothing"
    model = ir.load(folder / "out.onnx")
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), WEIGHTS[str(model.graph.name)])
    return str(model.graph.name)


GRAPH = Case(lambda folder: write_graph(folder, "old"), lambda folder: write_graph(folder, "new"), graph_state)
NEW_GRAPH = Case(lambda folder: None, lambda folder: write_graph(folder, "new"), graph_state)

CASES = {
    "file": FILE, "new file": NEW_FILE, "folder": FOLDER, "new folder": NEW_FOLDER, "pair": PAIR, "new pair": NEW_PAIR,
    "graph": GRAPH, "new graph": NEW_GRAPH,
}  # fmt: skip


def ready(case: Case, folder: Path) -> Callable[[], object]:
    """The work of ``case`` in a fresh ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "somebody else's").write_text("mine")
    case.old(folder)
    return lambda: case.write(folder)


RUNS = [(name, "kill", True) for name in CASES] + [(name, "full", True) for name in ("pair", "new graph")]
RUNS += [(name, blow, True) for name in ("folder", "graph") for blow in ("full", "interrupt", "errors")]
RUNS += [("folder", blow, False) for blow in ("kill", "errors")]


@pytest.mark.parametrize(("name", "blow", "exchange"), RUNS)
def test_old_or_new_whole_and_tidy_after_the_next(name: str, blow: str, exchange: bool, tmp_path: Path) -> None:
    case, folder = CASES[name], tmp_path / "folder"
    ready(case, folder)
    before, codes = case.state(folder), set()
    # where names cannot be exchanged, a folder steps aside for a moment, and the next one brings it back
    allowed = {before, "new"} if exchange or blow == "interrupt" else {before, "new", "nothing"}
    for code in each_moment(lambda: ready(case, folder), blow, exchange=exchange):
        codes.add(code)
        assert case.state(folder) in allowed
        assert code != DONE or blow == "errors" or case.state(folder) == "new"
        assert blow == "kill" or blow == "errors" or not rooms_in(folder)
        with suppress(NormdeployError, FileExistsError):  # a new one that is there already
            case.write(folder)
        assert case.state(folder) == "new"
        assert not rooms_in(folder)
        assert (folder / "somebody else's").read_text() == "mine"
    assert len(codes) > 1, "no moment was struck"
