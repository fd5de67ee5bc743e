"""Codes: what ``normdeploy explain CODE`` prints, for every code of every family, without loading what is heavy."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import onnx
import onnx.parser
import pytest
from test_lean_import import HEAVY, loaded

from normdeploy import cli, codes
from normdeploy.codes import FAMILIES, Page
from normdeploy.errors import InputError

PAGES: list[Page] = [page for module in FAMILIES.values() for page in import_module(module).PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.code)
def test_a_page_says_everything_in_sentences(page: Page) -> None:
    assert codes.is_code(page.code)
    assert codes.is_code(page.code.lower())
    assert codes.page(page.code.lower()) == page
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


def test_the_codes_of_a_model_lead_to_their_pages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,8] x) => (float[2,3,8,8] y)
        <float[3] k = {1, 2, 3}> { s = Sigmoid (x)  n = BatchNormalization (s, k, k, k, k)  y = Sigmoid (n) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    assert cli.main(["fold", str(tmp_path / "in.onnx"), "--out", str(tmp_path / "out.onnx")]) == 0
    assert "[NF001" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert cli.main(["explain", str(tmp_path / "out.onnx")]) == 0
    advised = re.findall(r"normdeploy explain (NF\d{3}): (.*)", capsys.readouterr().out)
    assert advised
    for code, title in advised:
        assert cli.main(["explain", code]) == 0
        assert capsys.readouterr().out.startswith(f"{code}  {title}\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_needs_nothing_heavy(family: str) -> None:
    code = next(page.code for page in PAGES if page.code.startswith(family))
    statement = f"from normdeploy import cli\nassert cli.main(['explain', '{code}']) == 0\nprint()"
    assert loaded(statement) & HEAVY == set()
