from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import comparison, entries, error, in_parts, make, measurement, verdict

from normdeploy.bench.stats import compare, latency
from normdeploy.fold.ledger import Entry
from normdeploy.parity.metrics import EXACT
from normdeploy.parity.verdict import Measurement, Part, Verdict, judge
from normdeploy.report import plots
from normdeploy.report.html import MOST_NORMS, render
from normdeploy.report.schema import Report

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """The text, ids, tags and open elements of a page; a tag that closes another element fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.said = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.said += " "
        values = dict(attrs)
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(values[name]) for name in ("href", "xlink:href", "src") if name in values]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_needs_no_network(report: Report) -> None:
    text = render(report)
    page = Page(text)
    assert not page.tags & {"link", "img", "iframe", "object"}
    assert text.count("<script>") == text.count("<script") == 1
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|document.write", text.partition("<script>")[2])
    assert "://" not in text
    assert "@import" not in text
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"\son\w+=", text)


def test_ids_are_unique_and_what_is_linked_is_there(report: Report) -> None:
    text = render(report)
    page = Page(text)
    linked = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]*)\)", text))
    # matplotlib repeats a marker's definition inside one plot, word for word
    repeated = {name for name in page.ids if page.ids.count(name) > 1}
    assert not repeated
    assert linked
    assert linked <= set(page.ids)


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert render(report) == render(report)


def test_it_says_what_the_report_says(report: Report) -> None:
    said = " ".join(Page(render(report)).said.split())
    for words in (
        "models.digits:resnet",
        "digits_resnet.safetensors",
        "6 → 1",
        "passed",
        "folded into head.fc through Flatten, Reshape",
        "left: its input is a graph output [NF002] do not return it",
        "4 folded",
        "1 reduced",
        "1 left",
        "1 constant multiplication or addition besides",
        "e_deployed <= k * e_eager + floor",
        "x:N=1..1..64x1x8x8@f32",
        "ab" * 32,
        "torch 2.13.0",
        "one weight was flushed to zero [NF410]",
        "top-k ties may fall otherwise",
        "dropped: x.bn: 2 ulp [NF401]",
        "By the size of the batch",
        "64 160 80 40 2× (2 to 2) 4× (4 to 4) 1,600",
    ):
        assert words in said, words


def test_the_time_of_a_gpu_is_a_column_where_there_is_one(report: Report) -> None:
    assert "GPU p50" not in render(report)
    assert report.latency is not None
    deployed = dataclasses.replace(report.latency.deployed, device_p50_ms=0.125)
    said = " ".join(Page(render(make(latency=dataclasses.replace(report.latency, deployed=deployed)))).said.split())
    assert "p50 ms GPU p50 ms p90 ms" in said
    assert "0.125" in said


def test_a_failure_names_the_module_and_the_outputs() -> None:
    bad = verdict(measurement("boxes", error(1e-7, 2e-7), error(3e-4, 9e-4)))
    text = render(make(parity=dataclasses.replace(bad, first_divergent="layers.3.conv")))
    said = " ".join(Page(text).said.split())
    assert "FAILED" in said
    assert "First module outside the bound: layers.3.conv" in said
    assert len(re.findall(r'<tr class="bad">', text)) == 1
    assert "max error, outside the bound" in said


def test_every_name_is_escaped() -> None:
    hostile = '<script>alert("x")</script>&amp;\x1b'
    entry = Entry(hostile, hostile, hostile, True, "left", (hostile,), (hostile,), reason=hostile, fix=hostile)
    fold = dataclasses.replace(entry, outcome="folded")
    parity = verdict(Measurement(hostile, hostile, (), "float32", EXACT, EXACT))
    parity = dataclasses.replace(parity, first_divergent=hostile, notes=(hostile,), formula=hostile)
    measured = dataclasses.replace(comparison(), feed=hostile, note=hostile, noisy=True)
    for count in (1, 100):
        report = make([entry, fold, dataclasses.replace(entry, norm=False)] * count, parity, measured).model_copy(
            update={
                "factory": hostile, "weights": hostile, "inputs": [hostile], "outputs": [hostile], "notes": [hostile],
                "packages": {hostile: hostile}, "seconds": {hostile: 1.0}, "norms_before": {hostile: 1},
                "normdeploy_version": hostile, "precision": hostile, "weights_sha256": hostile,
            }
        )  # fmt: skip
        text = render(report)
        page = Page(text)
        assert text.count("<script") == 1
        assert "\x1b" not in text
        assert page.said.count('<script>alert("x")</script>&amp;') > 20


def test_a_long_model_stays_small_and_says_what_it_leaves_out() -> None:
    bad = [measurement(f"hidden_states.{i}", error(1e-7, 2e-7), error(1e-7, 3e-7)) for i in range(300)]
    text = render(make(entries(2000), verdict(*bad), comparison(n=5000)))
    said = " ".join(Page(text).said.split())
    assert len(text.encode()) < 1_000_000
    assert f"the first {MOST_NORMS} of 2003 entries; report.json has them all" in said
    assert "the first 40 of 304 judgements; report.json has them all" in said
    assert "2001 BatchNormalization folded" in said


def test_what_was_not_measured_is_said() -> None:
    said = " ".join(Page(render(make())).said.split())
    assert "not judged" in said
    assert "not measured" in said
    assert "Where it comes from" in said


def points(svg: str, marker: str) -> list[tuple[float, float]]:
    """Coordinates of the markers in the colour of CSS variable ``marker``, without those of the legend."""
    uses = re.findall(r'<use xlink:href="#[^"]*" x="([^"]*)" y="([^"]*)" style="([^"]*)"', svg.split("legend_1")[0])
    return [(float(x), float(y)) for x, y, style in uses if f"var(--{marker})" in style and "stroke:" in style]


def test_parity_is_plotted_in_logarithms_and_zero_and_infinity_have_a_place() -> None:
    plotted = judge(
        [
            measurement("a", error(1e-7, 1e-7), error(1e-7, 1e-7)),
            measurement("b", error(1e-6, 1e-6), error(1e-6, 1e-6)),
            measurement("c", EXACT, EXACT),
            measurement("d", error(1e-7, 1e-7), error(math.inf, math.nan)),
        ]
    )
    svg = plots.parity(plotted)
    inside, outside = sorted(set(points(svg, "deployed"))), sorted(set(points(svg, "bad")))
    zero, seventh, sixth = inside
    # one decade apart in both directions, zero one decade below the smallest, what is not finite at the upper edge
    assert sixth[0] - seventh[0] == pytest.approx(seventh[0] - zero[0], abs=0.02)
    assert seventh[1] - sixth[1] == pytest.approx(zero[1] - seventh[1], abs=0.02)
    assert {x for x, _ in outside} == {seventh[0]}
    assert min(y for _, y in outside) < sixth[1]


def test_each_dtype_has_its_bound() -> None:
    half = Measurement("random", "h", (1,), "float16", error(1e-4, 1e-4), error(1e-4, 1e-4))
    ids = Measurement("random", "ids", (1,), "int64", EXACT, EXACT)
    svg = plots.parity(judge([half, ids, measurement("a", EXACT, EXACT)]))
    assert re.findall(r"bound: 4 · eager \+ ([\d.e-]+)", svg) == ["0.00781", "9.54e-07"]


@pytest.mark.parametrize(
    "parity",
    [
        judge([measurement("a", EXACT, EXACT)]),
        judge([Measurement("random", "ids", (1,), "int64", EXACT, EXACT)]),
        judge([measurement("a", EXACT, error(1e-7, 1e-6))], reference="eager"),
        judge([measurement("a", error(math.inf, math.inf), error(math.inf, math.inf))]),
        judge([measurement("a", error(5e-324, 1e-300), error(1e300, 1.7e308))]),
    ],
    ids=["exact", "integers", "eager reference", "nothing finite", "the whole range"],
)
def test_odd_errors_can_be_plotted(parity: Verdict) -> None:
    assert points(plots.parity(parity), "deployed") + points(plots.parity(parity), "bad")


@pytest.mark.parametrize(
    "samples",
    [([1.0], [1.0]), ([1.0] * 50, [1e-4] * 50), (np.geomspace(1, 1e6, 100).tolist(), [2.0] * 100)],
    ids=["one", "constant", "wide"],
)
def test_odd_latencies_can_be_plotted(samples: tuple[list[float], list[float]]) -> None:
    eager, deployed = (latency(name, times) for name, times in zip(("eager", "ort"), samples, strict=True))
    svg = plots.latency(compare(eager, deployed, threads=1, feed="data"))
    assert "var(--eager)" in svg
    assert "var(--deployed)" in svg


def test_plots_leave_the_settings_of_matplotlib_alone(report: Report) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(report)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("failing", "not_run", "tone"), [("runtime", "", "bad"), (None, "no kernel", "soft"), (None, "", "good")]
)
def test_the_sentence_has_the_tone_of_the_verdict(failing: Part | None, not_run: str, tone: str) -> None:
    text = render(make(entries(1), in_parts(failing, not_run=not_run)))
    assert f'<p class="{tone}">The graph is right' in text
    assert "all within it</summary>" in text
    assert "<details open>" not in text


def test_a_wrong_graph_is_shown_and_a_runtime_that_nobody_ran_is_named() -> None:
    assert "<details open>" in render(make(entries(1), in_parts("graph")))
    text = render(make(entries(1), in_parts(None, not_run="no kernel for it")))
    assert "It was not judged: no kernel for it." in text
