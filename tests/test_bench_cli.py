"""``bench`` at several sizes and beside torch.compile: which rows there are, never how fast they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import EAGER

from normdeploy.cli import main

QUICK = ["--seconds", "0.05", "--processes", "1", "--json"]


def test_each_size_is_measured(digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(digits_bundle), "--batch", "1,3", *QUICK]) == 0
    told = json.loads(capfd.readouterr().out)
    assert list(told) == ["1", "3"]
    assert all(each["p50_ms"] > 0 for each in told.values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is none")
def test_torch_compile_is_a_row(digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(digits_bundle), *EAGER, "--compare", "torch.compile", *QUICK]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["compiled"]["runner"] == "torch.compile"
    assert told["compiled"]["n"] == told["eager"]["n"] == told["deployed"]["n"]


def test_what_cannot_be_compiled_is_no_row_but_an_error(
    digits_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert main(["bench", str(digits_bundle), *EAGER, "--compare", "torch.compile", *QUICK]) == 3
    assert "torch.compile cannot run the module" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--batch", "1,none"], "write e.g. --batch 1,8,64"),
        (["--batch", "0"], "write e.g. --batch 1,8,64"),
        (["--batch", "65"], "it cannot run a batch of 65: the range is 1..64"),
        (["--compare", "torch.compile"], "torch.compile needs the module"),
        (["--batch", "1,2", "--against", "nowhere"], "an older report has one size"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    given: list[str], said: str, digits_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(digits_bundle), *given]) == 2
    assert said in capfd.readouterr().err
