"""``bench`` and ``export`` at several sizes, beside torch.compile: which rows there are, never how fast they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import EAGER

from normdeploy.bench.stats import Comparison, compare, latency
from normdeploy.cli import main
from normdeploy.parity.feeds import Feed, batch_feed
from normdeploy.pipeline.latency import Job
from normdeploy.specs import parse

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


def measured_by_export(folder: Path, *options: str) -> int:
    name = f"measured_in_{folder.name}"  # a name is imported once a process
    (folder / f"{name}.py").write_text("from torch import nn\ndef net(): return nn.Linear(3, 2).eval()\n")
    command = ["export", "--app-dir", str(folder), "--model", f"{name}:net", "--input", "input:N=1..1..4x3"]
    return main([*command, "--out", str(folder / "out"), *options])


def test_an_export_has_the_sizes_in_its_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert measured_by_export(tmp_path, "--batch", "1,4", "--threads", "1", *QUICK) == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(told["latency_by_batch"]) == ["1", "4"]
    for each in (told["latency"], *told["latency_by_batch"].values()):
        assert each["threads"] == 1
        assert each["eager"]["n"] == each["unfolded"]["n"] == each["deployed"]["n"] > 0
    assert told["latency_by_batch"]["4"]["feed"] == "random N=4"
    assert "By the size of the batch" in (tmp_path / "out" / "report.html").read_text()


def test_an_export_measures_torch_compile_at_each_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that would measure are taken away: the compiler takes ten seconds in each."""
    asked: list[tuple[bool, int]] = []

    def measured(job: Job, feed: Feed, processes: int) -> Comparison:
        asked.append((job.compiled, len(feed.arrays["input"])))
        runner = latency("onnxruntime", [1.0] * 30)
        return compare(runner, runner, threads=job.threads, feed=feed.name)

    monkeypatch.setattr("normdeploy.pipeline.deploy.measured", measured)
    monkeypatch.setattr("normdeploy.pipeline.deploy.require_compiled", lambda job, feed: None)
    assert measured_by_export(tmp_path, "--batch", "2,4", "--compare", "torch.compile") == 0
    assert asked == [(True, 1), (True, 2), (True, 4)]


def test_an_export_that_cannot_compile_ends_before_it_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert measured_by_export(tmp_path, "--compare", "torch.compile") == 3
    said = capfd.readouterr().err
    assert "torch.compile cannot run the module" in said
    assert "  export " not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--batch", "5"], "it cannot run a batch of 5: the range is 1..4"),
        (["--batch", "2", "--no-bench"], "leave one of them out"),
        (["--compare", "torch.compile", "--no-bench"], "leave one of them out"),
        (["--seconds", "0"], "--seconds 0"),
        (["--threads", "0"], "--threads 0"),
        (["--processes", "0"], "1 to 10 processes"),
    ],
)
def test_what_an_export_cannot_measure_is_refused(
    given: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measured_by_export(tmp_path, *given) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_integers_without_a_range_have_no_other_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids_alone.py").write_text("from torch import nn\ndef net(): return nn.Embedding(9, 2).eval()\n")
    np.savez(tmp_path / "ids.npz", input=np.zeros((1, 3), np.int64))
    command = ["export", "--app-dir", str(tmp_path), "--model", "ids_alone:net", "--out", str(tmp_path / "out")]
    given = ["--data", str(tmp_path / "ids.npz"), "--batch", "2"]
    assert main([*command, *given, "--input", "input:N=1..1..4x3@i64"]) == 2
    assert "or leave --batch out" in capfd.readouterr().err
    assert batch_feed(parse(["input:N=1..1..4x3@i64[0..8]"]), 2).arrays["input"].shape == (2, 3)
