"""The page in a real headless Chromium: nothing is cut off, the search works, no console error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser, executable
from report_samples import comparison, entries, error, in_parts, make, measurement, verdict

from normdeploy.parity.verdict import Part
from normdeploy.pipeline import report_of
from normdeploy.report.html import render
from normdeploy.report.schema import Report

pytestmark = pytest.mark.skipif(
    executable() is None, reason="there is no Chromium: make test-report fetches one, or name it in $CHROMIUM"
)

CUT = """[...document.querySelectorAll("main *")].filter(each => {
    const box = each.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 1 || each.scrollWidth > each.clientWidth + 1
        && getComputedStyle(each).overflowX !== "visible");
}).map(each => each.outerHTML.slice(0, 200))"""
SHOWN = (
    """[...document.querySelectorAll("table.ledger tr")].filter(row => row.querySelector("td") && !row.hidden).length"""
)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    program = executable()
    assert program is not None
    with browser(program, tmp_path / "profile") as opened:
        yield opened


def opened(page: Page, report: Report, folder: Path, width: int = 1200) -> None:
    (folder / "report.html").write_text(render(report), encoding="utf-8")
    page.open(folder / "report.html", width)


def long_names() -> Report:
    many = [measurement(f"encoder.layers.{i}.hidden_states", error(1e-7, 2e-7), error(1e-7, 3e-7)) for i in range(60)]
    return make(entries(300), verdict(*many), comparison())


NO_KERNEL = "onnxruntime lacks a kernel: Could not find an implementation for MatMul(13) node with name 'node_MatMul_1'"
MADE = {
    "long names": long_names,
    "a wrong graph": lambda: make(entries(5), in_parts("graph")),
    "a wrong runtime": lambda: make(entries(5), in_parts("runtime")),
    "not run": lambda: make(entries(5), in_parts(None, not_run=NO_KERNEL)),
}


@pytest.mark.parametrize("made", [*MADE, ""])
def test_nothing_is_cut_off_and_nothing_complains(page: Page, tmp_path: Path, report: Report, made: str) -> None:
    opened(page, MADE[made]() if made else report, tmp_path)
    page.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.value(CUT) == []
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_the_demo_is_as_wide_as_the_window(page: Page, tmp_path: Path, digits_bundle: Path) -> None:
    opened(page, report_of(digits_bundle), tmp_path)
    assert page.value(CUT) == []
    assert page.complaints == []


def test_the_search_leaves_what_fits(page: Page, tmp_path: Path) -> None:
    opened(page, long_names(), tmp_path)
    everything = page.value(SHOWN)
    page.value("search.value = 'layers.17.'; search.dispatchEvent(new Event('input'))")
    assert page.value(SHOWN) == 1
    assert page.value("document.querySelector('details:has(table.ledger)').open")
    page.value("search.value = ''; search.dispatchEvent(new Event('input'))")
    assert page.value(SHOWN) == everything > 300
    assert page.complaints == []


def test_print_shows_what_was_folded_away(page: Page, tmp_path: Path) -> None:
    opened(page, long_names(), tmp_path)
    assert page.value("[...document.querySelectorAll('details')].some(each => !each.open)")
    pdf = page.call("Page.printToPDF")["data"]
    assert len(pdf) > 20_000
    assert page.value("[...document.querySelectorAll('details')].every(each => each.open)")


def test_a_complaint_would_be_heard(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>console.error('no'); undefined.x</script>")
    page.open(tmp_path / "bad.html", 800)
    page.value("1")
    assert len(page.complaints) == 2


def test_the_five_lines_run(digits_bundle: Path) -> None:
    from normdeploy.report import view

    lines = view.example(report_of(digits_bundle))
    assert len(lines.splitlines()) == 5
    done = subprocess.run([sys.executable, "-c", lines], cwd=digits_bundle, capture_output=True, text=True, check=True)
    assert "'output': (1, 10)" in done.stdout


IN_VIEW = """[...document.querySelectorAll("tr.bad")].filter(each => each.checkVisibility()).length"""


@pytest.mark.parametrize(("failing", "shown"), [("graph", 9), ("runtime", 9), (None, 0)])
def test_a_part_that_failed_is_open_and_one_that_passed_is_not(
    page: Page, tmp_path: Path, failing: Part | None, shown: int
) -> None:
    opened(page, make(entries(5), in_parts(failing)), tmp_path)
    assert page.value(IN_VIEW) == shown
    assert page.value("document.querySelectorAll('details[open] table').length") == (failing == "graph")
