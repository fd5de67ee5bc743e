"""Codes: what ``normdeploy explain CODE`` prints, for every code of every family, without loading what is heavy."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
from test_lean_import import HEAVY, loaded

from normdeploy import cli, codes
from normdeploy.codes import FAMILIES, Page
from normdeploy.errors import InputError

PAGES: list[Page] = [page for module in FAMILIES.values() for page in import_module(module).PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.code)
def test_a_page_says_everything_in_sentences(page: Page) -> None:
    assert codes.is_code(page.code)
    assert FAMILIES[page.code[:2]]
    assert page.title == page.title.strip().rstrip(".")
    for text in (page.what, page.why, page.fix):
        assert text.endswith("."), text
    assert all("  " not in text and text == text.strip() for text in asdict(page).values())


def test_no_code_is_given_twice() -> None:
    assert len({page.code for page in PAGES}) == len({page.title for page in PAGES}) == len(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.code)
def test_explain_prints_the_page(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", page.code]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f"{page.code}  {page.title}"
    for heading in ("what", "why", "example", "fix"):
        assert f"{heading}: {getattr(page, heading)}" in re.sub(r"\s+", " ", said)


def test_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "NF201", "--json"]) == 0
    assert Page(**json.loads(capsys.readouterr().out)) == codes.page("NF201")


@pytest.mark.parametrize(("code", "fix"), [("NF999", "NF001"), ("XX001", "codes begin with ND or NF or NT")])
def test_a_code_that_does_not_exist_is_refused(
    code: str, fix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", code]) == InputError.exit_code
    said = capsys.readouterr().err
    assert f"there is no code '{code}'" in said
    assert fix in said


def test_a_file_of_that_name_is_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NF001").write_bytes(b"no model")
    assert cli.main(["explain", "NF001"]) == InputError.exit_code
    assert "NF001" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_it_needs_nothing_heavy(family: str) -> None:
    code = next(page.code for page in PAGES if page.code.startswith(family))
    statement = f"from normdeploy import cli\nassert cli.main(['explain', '{code}']) == 0\nprint()"
    assert loaded(statement) & HEAVY == set()
