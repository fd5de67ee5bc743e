"""Numbers of any length, on the command line and in files, are one short error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normdeploy.cli import main
from normdeploy.specs import whole_number

LONG, LARGE = "1" * 5000, "9" * 25
"""More digits than Python reads, and more than 64 bits hold."""
EXPORT = ["export", "--model", "nowhere:net", "--out", "out", "--input"]
BENCH, BISECT = ["bench", "BUNDLE"], ["bisect", "BUNDLE", "--model", "nowhere:net"]
PACKAGE = ["package", "BUNDLE", "-o", "repository"]
OPTIONS = [
    *([*BENCH, option, LONG] for option in ("--batch", "--threads", "--processes")),
    *([*BENCH, "--fail-above", number] for number in (f"{LONG}%", f"1.{LONG}e9%")),
    ["bench", "http://localhost:1", "--bundle", "BUNDLE", "--clients", LONG],
    *([*BISECT, "--max-memory", f"{LONG}{unit}"] for unit in ("", "GB")),
    *([*EXPORT, spec] for spec in (f"x:{LONG}x3", f"x:N=1..2..{LONG}", f"x:3@i64[0..{LONG}]", f"x.{LONG}:3")),
    *([*EXPORT, "x:3", option, LONG] for option in ("--batch", "--opset", "--seed", "--k")),
    *([*PACKAGE, option, number] for option in ("--gpus", "--instances", "--queue-delay") for number in (LONG, LARGE)),
    *([*PACKAGE, "--kserve", "pvc://a", option, LARGE] for option in ("--max-replicas", "--scale-target", "--canary")),
    ["judge", "BUNDLE", "--k", LONG],
    ["build", "BUNDLE", "-o", "p.plan", "--workspace", LONG],
]


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda value: " ".join(word[:24] for word in value))
def test_a_number_without_end_is_one_error(
    arguments: list[str],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle) if word == "BUNDLE" else word for word in arguments]) in (2, 3)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "bug in normdeploy" not in err
    assert len(err) < 3000


@pytest.mark.parametrize("value", [f"seed = 0x{LONG}", f"seed = {LONG}", f"opset = {LARGE}", f"batch = '{LONG}'"])
def test_a_number_without_end_in_a_file_of_options_is_one_error(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "normdeploy.toml").write_text(f"[export]\n{value}\n")
    assert main([*EXPORT, "x:3"]) == 2
    err = capfd.readouterr().err
    assert "error: " in err
    assert "bug in normdeploy" not in err
    assert len(err) < 3000


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "io.json"])
@pytest.mark.parametrize("number", [LONG, LARGE], ids=["long", "large"])
def test_a_number_without_end_in_a_bundle_is_one_error(
    name: str, number: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed, count = re.subn(r'(?<="schema_version": )\d+', number, (bundle / name).read_text(), count=1)
    assert count == 1
    (bundle / name).write_text(changed)
    assert main(["inspect", str(bundle)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert "bug in normdeploy" not in err
    assert len(err) < 3000


def test_numbers_that_can_be_are_read() -> None:
    assert [whole_number(text) for text in ("0", "1", "007", str(2**31 - 1))] == [0, 1, 7, 2**31 - 1]
    assert [whole_number(text) for text in ("", "-1", "1.0", " 1", str(2**31), LONG)] == [None] * 6
