"""How the fold is built: what is known of an operator stands in one place, and each thing is done by one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from normdeploy.fold.operators.table import TABLE

FOLD = Path(__file__).parent.parent.parent / "normdeploy" / "fold"
FILES = sorted(FOLD.rglob("*.py"))
NAMES = {schema.name for schema in onnx.defs.get_all_schemas_with_history()} | {name.split("::")[-1] for name in TABLE}
LONGEST = 350
CHANGES = {
    "replace_all_uses_with", "replace_input_with", "resize_inputs", "resize_outputs", "prepend",
    "register_initializer",
}  # fmt: skip
"""What changes a graph of onnx_ir, and stands for nothing else."""
WRITERS = {"rewrite.py", "graph/state.py"}
PREPARES = {"opening.py", "graph/light.py"}
"""Before the search begins a model is opened; a light copy of it is nobody else's."""


def inside(path: Path) -> str:
    """The name of a file in the fold."""
    return path.relative_to(FOLD).as_posix()


def operators_named(source: str) -> Iterator[str]:
    """Operators whose names stand in ``source`` as texts, by themselves or with their domain."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("::")[-1] in NAMES:
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_operators_are_named_where_they_are_known(path: Path) -> None:
    """In their rows, and in the patterns of spelled norms."""
    if inside(path).startswith(("operators/", "layernorm/")):
        return
    assert list(operators_named(path.read_text())) == []


def test_the_check_sees_a_name() -> None:
    assert list(operators_named('kind in ("Conv", "com.microsoft::MultiHeadAttention", "NOTSET")')) == [
        "Conv",
        "com.microsoft::MultiHeadAttention",
    ]


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.heavy and (row.up or row.down)])
def test_a_row_with_weights_states_their_axes(name: str) -> None:
    assert TABLE[name].parameters


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_one_module_changes_the_graph(path: Path) -> None:
    called = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    if inside(path) not in WRITERS | PREPARES:
        assert called & CHANGES == set()


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_one_module_writes_entries(path: Path) -> None:
    """It makes them, and it alone keeps them; the ledger joins those of two folds."""
    tree = ast.parse(path.read_text())
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Entry"]
    kept = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "record.entries"
    ]
    assert not (made or kept) or inside(path) == "record.py"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "layernorm"], ids=inside)
def test_the_reduction_of_norms_does_not_call_back_into_the_folder(path: Path) -> None:
    imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not {"normdeploy.fold", "normdeploy.fold.driver", "normdeploy.fold.opening"} & set(imported)


@pytest.mark.parametrize("path", FILES, ids=inside)
def test_a_file_fits_into_a_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
