"""The benchmark's forms are the norms that they are called, and it prints what it measured. No timing is judged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_layernorm_cpu as script

FORMS = [form for group in script.GROUPS for form in group]
NAMES = [form.name for form in FORMS]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_each_form_is_the_norm_that_it_is_called(form: script.Form) -> None:
    assert script.error(form, *script.drawn(7, 24)) < script.TOLERANCE / 10
    for claim in ("mean", "adds", "bias"):
        other = replace(form, **{claim: not getattr(form, claim)})
        assert script.error(other, *script.drawn(7, 24)) > 1000 * script.TOLERANCE


def test_a_chain_is_as_long_as_it_says() -> None:
    feed, weights = script.drawn(3, 8)
    form = FORMS[0]
    thrice = feed.arrays
    for _ in range(3):
        thrice = {**thrice, "x": script.chain(form, weights, 1, 1)(thrice)["y"]}
    assert (script.chain(form, weights, 3, 1)(feed.arrays)["y"] == thrice["x"]).all()


def test_the_readme_shows_what_was_measured() -> None:
    readme = (Path(script.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- scripts/bench_layernorm_cpu.py -->")[2].partition("<!-- end -->")[0].strip()
    assert shown.startswith("Times as fast")
    assert shown in script.RESULTS.with_suffix(".md").read_text(encoding="utf-8")


def test_a_wrong_form_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(FORMS[0], name="wrong", bias=False)
    monkeypatch.setattr(script, "GROUPS", ((FORMS[0], wrong),))
    with pytest.raises(SystemExit, match="wrong is off by"):
        list(script.measured([(3, 8)], threads=1, seconds=0.01))


def test_the_page_has_every_form_at_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: Any, **__: Any) -> tuple[Sequence[float], Sequence[float]]:
        return [0.032] * 40, [0.016] * 40  # ms a chain of 16: 2 µs a norm beside 1 µs

    monkeypatch.setattr(script, "take_turns", planted)
    page = script.page(list(script.measured([(3, 8), (5, 8)], threads=1, seconds=0.01)), 1)
    others = [form.name for group in script.GROUPS for form in group[1:]]
    assert page.count("2.00 (2.00 to 2.00) | 2.00 (2.00 to 2.00) |") == len(others)
    for name in others:
        for shape in ("3 x 8", "5 x 8"):
            assert f"| {shape} | {name} | 1 (1 to 1) |" in page
    assert page.count("| 2 (2 to 2) | 40 |") == 2 * len(others)
