"""The engine in the report: each layer with its modules, on the page and, in two lines, on the console."""

from __future__ import annotations

import io
import json

import pytest
from pydantic import ValidationError
from report_samples import make, verdict
from rich.console import Console

from normdeploy.engine import EngineLayer, Sidecar
from normdeploy.report.console import show
from normdeploy.report.html import MOST_LAYERS, render
from normdeploy.report.schema import Report

EVIL = "<script>alert(1)</script>\x1b[31m[bold]"


def layer(kind: str, module: str, operators: tuple[str, ...], precision: str, statistics: str = "") -> EngineLayer:
    return EngineLayer(f"{kind}_1", kind, (module,), operators, precision, statistics, "kernel_0x1", ("a",), ("b",))


LAYERS = (
    layer("correlation", "stem.conv", ("Conv", "Relu"), "fp16"),
    layer("kgen", "norm", ("Add", "LayerNormalization"), "fp16", "fp32"),
    layer("shape_call", "root", (), ""),
)


def sidecar(layers: tuple[EngineLayer, ...] = LAYERS) -> Sidecar:
    return Sidecar(
        backend="tensorrt_rtx",
        backend_version="1.7.1.116",
        gpu=None,
        compute_capabilities=("SM120", "SM86"),
        inputs=("x",),
        outputs=("logits",),
        profiles=(),
        precision="fp16",
        sha256="ab" * 32,
        size=1000,
        timing_cache_key=None,
        options={},
        layers=layers,
        notes=("the layer table lacks: head",),
    )


def with_engine(layers: tuple[EngineLayer, ...] = LAYERS) -> Report:
    return make(parity=verdict()).model_copy(update={"engine": sidecar(layers)})


def console(report: Report) -> str:
    text = io.StringIO()
    show(report, Console(file=text, width=120))
    return text.getvalue()


def test_the_console_tells_of_the_engine_in_short() -> None:
    told = console(with_engine())
    assert "engine  tensorrt_rtx 1.7.1.116, in fp16, for SM86, SM120" in told
    assert "3 layers: fp16 2, without floating-point data 1" in told
    assert "note: the layer table lacks: head" in told
    assert "kernel_0x1" not in told
    assert "engine" not in console(make(parity=verdict()))


def test_the_page_draws_every_layer_with_its_modules() -> None:
    page = render(with_engine())
    for text in ("TensorRT engine", "stem.conv", "Add, LayerNormalization", "fp16, averages in fp32", "kernel_0x1"):
        assert text in page
    assert "the layer table lacks: head" in page
    assert "TensorRT engine" not in render(make(parity=verdict()))


def test_names_in_an_engine_act_nowhere() -> None:
    report = with_engine((layer(EVIL, EVIL, (EVIL,), EVIL),))
    assert render(report).count("<script") == 1  # our own
    for text in (render(report), console(report)):
        assert "\x1b" not in text


def test_a_large_engine_is_cut_and_says_so() -> None:
    page = render(with_engine(LAYERS * 100))
    assert page.count("kernel_0x1</td>") == MOST_LAYERS
    assert f"the first {MOST_LAYERS} of 300 layers; report.json has them all" in page


def test_the_report_is_read_back_with_its_engine_and_without() -> None:
    for report in (with_engine(), make(parity=verdict())):
        assert Report.model_validate_json(report.to_json()) == report
    raw = json.loads(with_engine().to_json())
    raw["engine"]["unknown"] = 1
    with pytest.raises(ValidationError, match=r"1 validation error(.|\n)*engine\.unknown"):
        Report.model_validate(raw)
