"""Imports run along the flow of data and never back."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "normdeploy"
ORDER = [
    "lazy",
    "errors",
    "arguments",
    "codes",
    "disk",
    "trust",
    "child",
    "limits",
    "specs",
    "graph",
    "onnxtext",
    "onnxfile",
    "doctor",
    "checkpoint",
    "clean",
    "export",
    "precision",
    "fold",
    "kernels",
    "engine",
]
ORDER += [
    "runtime",
    "parity",
    "foldmodule",
    "bench",
    "report",
    "bundle",
    "serving",
    "pipeline",
    "fleet",
    "cli",
    "pytest_plugin",
]
"""Each room may import only itself and what stands left of it."""

NUMPY_ONLY = ("fold/affine.py", "parity/metrics.py", "bench/stats.py")
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """The dotted names that ``source`` imports anywhere in it, relative imports included as they are."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def backward(room: str, source: str) -> list[str]:
    """What the ``source`` of a file in ``room`` imports against the order."""
    names = [name for name in imported(source) if name.split(".")[0] in ("normdeploy", "")]
    return [name for name in names if not _allowed(room, name)]


def _allowed(room: str, name: str) -> bool:
    parts = name.split(".")
    if parts[0] == "":
        return False  # a relative import hides where it leads
    target = parts[1]
    return target in ORDER and ORDER.index(target) <= ORDER.index(room)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_left_to_right(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return  # the public verbs come from anywhere, when first used
    assert room in ORDER, f"{room} is no room of the house"
    assert backward(room, path.read_text()) == []


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_the_arithmetic_knows_numpy_and_nothing_else(name: str) -> None:
    names = {each for each in imported((PACKAGE / name).read_text()) if not each.startswith("normdeploy.errors.")}
    known = {*sys.stdlib_module_names, "numpy"}
    assert {each for each in names if each.split(".")[0] not in known} == set()


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("fold", "from normdeploy.report.schema import Report"),
        ("fold", "def late():\n    import normdeploy.parity.metrics"),
        ("specs", "from normdeploy import cli"),
        ("export", "from . import cli"),
    ],
)
def test_a_backward_import_is_seen(room: str, source: str) -> None:
    assert len(backward(room, source)) == 1


def test_a_forward_import_is_allowed() -> None:
    assert backward("cli", "from normdeploy import pipeline\nfrom normdeploy.cli import main\nimport numpy") == []
