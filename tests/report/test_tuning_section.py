"""The choice by measurement in the report: the same table on the console and on the page."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from pydantic import ValidationError
from report_samples import make, verdict
from rich.console import Console

from normdeploy.bench.choice import Candidate, Race, Spread, Tuning, choose
from normdeploy.report.console import show
from normdeploy.report.html import render
from normdeploy.report.schema import Report

EVIL = "<script>alert(1)</script>\x1b[31m[bold]"
OPTIONS = {"disabled_optimizers": "SkipLayerNormFusion"}


def race(ratio: float) -> Race:
    own = Spread(1.9 / ratio, 2.0 / ratio, 2.125 / ratio)
    return Race(321, Spread(1.9, 2.0, 2.125), own, ratio, ratio - 0.01, ratio + 0.01)


CANDIDATES = (
    Candidate("affine", "affine", "onnx", {}),
    Candidate("affine without SkipLayerNormFusion", "affine", "onnx", OPTIONS, race(1.25)),
    Candidate("centre for onnxruntime", "centre", "onnxruntime", {}, race(1.5)),
    Candidate("recognise", "recognise", "onnx", {}, race(0.8)),
    Candidate("recognise without it", "recognise", "onnx", OPTIONS, reason="nothing else would run"),
)


def tuned(*candidates: Candidate) -> Report:
    rows = choose(candidates or CANDIDATES, lambda row: "off" if row.layernorm == "centre" else "", lambda _: race(1.2))
    return make(parity=verdict()).model_copy(update={"tuning": Tuning(rows, 2, "random N=1")})


def console(report: Report) -> str:
    text = io.StringIO()
    show(report, Console(file=text, width=200))
    return text.getvalue()


def test_console_and_page_tell_of_every_candidate() -> None:
    told, page = console(tuned()), render(tuned())
    for text in (
        "affine without SkipLayerNormFusion is kept, with disabled_optimizers=SkipLayerNormFusion",
        "3 other forms measured",
        "1.6 (1.52 to 1.7)",
        "1.250 (1.240 to 1.260)",
        "1.200 (1.190 to 1.210)",
        "0.800 (0.790 to 0.810)",
        "kept: faster, twice",
        "faster, but wrong: off",
        "FAILED",
        "slower",
        "not measured: recognise without it: nothing else would run",
        "2 threads, random N=1",
        "faster beyond 1.02",
    ):
        assert text in told, text
        assert text in page, text
    rows = [line.split("  ")[0] for line in told.splitlines() if " to " in line and "(" in line]
    assert rows[:2] == ["affine without SkipLayerNormFusion", ""]  # measured again, and that stands below it


def test_a_report_without_a_choice_has_no_such_section() -> None:
    for text in (console(make(parity=verdict())), render(make(parity=verdict()))):
        assert "tuning" not in text.lower()
        assert "measured" not in text.replace("not measured", "")


def test_the_default_is_named_where_it_stays() -> None:
    assert "affine is kept; 0 other forms measured" in console(tuned(CANDIDATES[0]))


def test_names_act_nowhere() -> None:
    report = tuned(
        replace(CANDIDATES[0], name=EVIL), replace(CANDIDATES[3], name=EVIL), Candidate(EVIL, "off", "onnx", {})
    )
    assert render(report).count("<script") == 1  # our own
    for text in (render(report), console(report)):
        assert "\x1b" not in text


def test_the_report_is_read_back_with_its_choice() -> None:
    report = tuned()
    assert Report.model_validate_json(report.to_json()) == report
    raw = json.loads(report.to_json())
    raw["tuning"]["candidates"][0]["layernorm"] = "centred"
    with pytest.raises(ValidationError, match=r"1 validation error(.|\n)*tuning\.candidates\.0\.layernorm"):
        Report.model_validate(raw)
