"""What functions are said to do begins with what they do: "Return", "Refuse", never "What", "Whether", "Where"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "normdeploy"
NO_VERBS = {
    "A", "All", "An", "Any", "As", "At", "Below", "Both", "Each", "Every", "Everything", "From", "How", "If", "In",
    "It", "Its", "Names", "No", "None", "Notes", "One", "Only", "Some", "The", "These", "This", "Those", "True", "What",
    "Whatever", "Where", "Whether", "Which", "While", "Whose", "Why", "With", "Without",
}  # fmt: skip
"""Words that such a sentence may not begin with."""


def documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The public functions of a module or a public class, and of each what is said of it."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from documented(node.body)


def is_told_by_a_verb(text: str) -> bool:
    """Return True if ``text`` begins with a capitalized word that can be a verb."""
    word = text.split()[0].rstrip(".,:;") if text else ""
    return word.isalpha() and word[0].isupper() and not word.isupper() and word not in NO_VERBS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_public_function_is_told_by_a_verb(path: Path) -> None:
    told = dict(documented(ast.parse(path.read_text()).body))
    assert {name: text.partition("\n")[0] for name, text in told.items() if text and not is_told_by_a_verb(text)} == {}


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("Return the axes.", True), ("Whether it is so.", False), ("The axes.", False), ("``value`` as it is.", False)],
)
def test_the_check_sees_a_noun(text: str, is_right: bool) -> None:
    assert is_told_by_a_verb(text) is is_right
