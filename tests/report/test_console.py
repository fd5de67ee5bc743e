from __future__ import annotations

import dataclasses
import io
import re
import shlex
from pathlib import Path

import onnx
import pytest
from report_samples import comparison, entries, error, make, measurement, verdict
from rich.console import Console

from normdeploy.cli import main, output
from normdeploy.cli.options import Talk
from normdeploy.fold.ledger import METADATA_KEY, Entry, Ledger
from normdeploy.parity.verdict import judge
from normdeploy.report.console import MOST_ROWS, show, show_norms
from normdeploy.report.schema import Report


def shown(report: Report, *, width: int = 120, terminal: bool = False, path: Path | None = None) -> str:
    file = io.StringIO()
    show(report, Console(file=file, width=width, force_terminal=terminal), path=path)
    return file.getvalue()


def test_everything_is_said_once(report: Report) -> None:
    text = shown(report, path=Path("out/digits_resnet"))
    for said in (
        "BatchNormalization 5 → 1, LayerNormalization 1 → 0",
        "folded into head.fc through Flatten, Reshape",
        "reduced into head.fc",
        "left: its input is a graph output",
        "parity passed",
        "e_deployed <= k * e_eager + floor",
        "p50 ms",
        "p99 ms",
        "times as fast as eager (95 % confidence",
        "beside unfolded",
        "note: the module was in training mode",
        "note: one weight was flushed to zero",
        "note: top-k ties may fall otherwise",
        "dropped: x.bn: 2 ulp",
        "out/digits_resnet",
    ):
        assert text.count(said) == 1, said


def test_norms_that_are_no_operator_are_counted_as_spelled_out() -> None:
    norms = [
        Entry(n, "", "RMSNormalization", True, "left", codes=("NF315",), reason="the opset has none") for n in "abc"
    ]
    spelled = make(norms).model_copy(update={"norms_before": {}, "norms_after": {}})
    assert "normalizations  3 RMSNormalization spelled out" in shown(spelled)


def test_no_colour_where_there_is_no_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in shown(report)
    assert "\x1b[" in shown(report, terminal=True)


def test_the_worst_output_stands_with_its_bound() -> None:
    bad = verdict(measurement("boxes", error(1e-7, 2e-7), error(3e-4, 9e-4)))
    text = shown(make(parity=dataclasses.replace(bad, first_divergent="layers.3.conv")))
    assert "parity FAILED" in text
    assert "first module outside the bound: layers.3.conv" in text
    row = next(line.split() for line in text.splitlines() if "max" in line and "boxes" in line)
    assert row[-3:] == ["2e-07", "0.0009", "1.75e-06"]
    assert "smallest k that passes the runtime: 4,495" in text  # (9e-4 − 8 ε) / 2e-7


def test_where_the_floor_lets_all_pass_it_is_said_that_k_decides_nothing(tmp_path: Path) -> None:
    """Eager's error is 1e-7 and the deployed one's 3e-7, within 8 ε = 9.5e-7: any k passes, but for another floor."""
    said = "smallest k that passes the runtime: 0 (all errors lie within the floor, so k decides nothing; --floor-eps"
    report = make(parity=judge([measurement("boxes", error(1e-7, 1e-7), error(3e-7, 3e-7))]))
    assert said in shown(report)
    (tmp_path / "report.json").write_text(report.to_json())
    assert main(["judge", str(tmp_path), "--k", "0.01"]) == 0
    assert main(["judge", str(tmp_path), "--k", "0.01", "--floor-eps", "0"]) == 1, "the advice works"
    assert main(["judge", str(tmp_path), "--k", "3.1", "--floor-eps", "0"]) == 0
    needed = measurement("boxes", error(1e-6, 1e-6), error(3e-6, 3e-6))
    assert "k decides nothing" not in shown(make(parity=judge([needed])))


def test_each_size_of_a_batch_has_its_row(report: Report) -> None:
    """Of 64 items in 40 ms, and four times the time in eager."""
    rows = [line.split() for line in shown(report).splitlines()]
    told = next(row for row in rows if row[:1] == ["64"])
    assert told == ["64", "160", "80", "40", "2×", "(2", "to", "2)", "4×", "(4", "to", "4)", "1,600"]


def test_the_time_of_a_gpu_stands_beside_that_of_the_wall_clock(report: Report) -> None:
    assert "GPU p50 ms" not in shown(report)
    assert report.latency is not None
    deployed = dataclasses.replace(report.latency.deployed, device_p50_ms=0.125)
    text = shown(make(latency=dataclasses.replace(report.latency, deployed=deployed)))
    assert next(line.split()[2] for line in text.splitlines() if line.startswith("onnxruntime")) == "0.125"
    assert next(line.split()[2] for line in text.splitlines() if line.startswith("eager")) == "–"


def test_a_noisy_machine_is_warned_of() -> None:
    assert "warning" not in shown(make(latency=comparison()))
    assert "warning: the machine is too noisy to tell" in shown(make(latency=comparison(noise=1.5)))


def test_a_long_model_is_shown_by_outcome_with_counts() -> None:
    text = shown(make(entries(200)))
    assert len(text.splitlines()) < 12
    assert [line.split()[0] for line in text.splitlines() if "BatchNormalization  " in line] == ["201", "1"]
    assert "layers.0.bn, layers.1.bn, layers.2.bn, …" in text
    assert "203 norms in all; the report lists each" in text


def test_the_longest_model_that_is_listed_is_listed_whole() -> None:
    text = shown(make(entries(MOST_ROWS - 3)))
    assert f"layers.{MOST_ROWS - 4}.bn" in text
    assert "in all" not in text


def test_long_names_are_folded_and_not_cut_off() -> None:
    name = ".".join(f"a_rather_long_module_name_{i}" for i in range(6))
    text = shown(make([Entry(name, "n", "LayerNormalization", True, "left", reason="x" * 150)]), width=60)
    first = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "".join(piece for piece in first if piece in name and "_" in piece) == name
    assert text.count("x") >= 150
    assert "…" not in text


def test_a_long_path_stays_on_one_line(report: Report) -> None:
    path = Path("/".join(["folder"] * 30))
    assert shown(report, width=40, path=path).splitlines()[-1] == str(path)


def test_names_act_neither_as_markup_nor_as_control_codes() -> None:
    hostile = Entry("[red]bn[/red]\x1b[2J\n", "n", "BatchNormalization", True, "left", reason="[link=x]why[/link]")
    text = shown(make([hostile]))
    assert "[red]bn[/red]\\x1b[2J\\n" in text
    assert "[link=x]why[/link]" in text
    assert "\x1b" not in text


def test_a_model_without_norms_has_no_table() -> None:
    empty = make([]).model_copy(update={"norms_before": {}, "norms_after": {}})
    assert "normalizations  none" in shown(empty)
    assert "what became of" not in shown(empty)


def test_of_a_norm_with_many_readers_a_few_are_named() -> None:
    readers = tuple(f"very_long_name_of_a_branch_{number}" for number in range(500))
    entry = Entry("bn", "bn", "BatchNormalization", True, "folded", into=readers, through=readers)
    assert str(entry).endswith("very_long_name_of_a_branch_11 and 488 more")
    assert len(str(entry)) < 1000
    assert all(name in Ledger((entry,)).to_json() for name in readers)


def test_a_name_does_not_fill_the_terminal() -> None:
    console = Console(record=True, width=10_000, file=io.StringIO())
    show_norms([Entry("b" * 100_000, "n", "BatchNormalization", True, "left", reason="r" * 100_000)], console)
    assert len(console.export_text()) < 30_000


def test_a_fold_says_where_each_norm_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = tuple(Entry(f"bn{n}", f"bn{n}", "BatchNormalization", True, "folded") for n in range(20))
    path = tmp_path / "o f.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) {y = Relu(x)}'
    )
    onnx.helper.set_model_props(model, {METADATA_KEY: Ledger(entries).to_json()})
    onnx.save(model, path)
    output.ledger(Ledger(entries), Talk(), path)
    said = " ".join(capsys.readouterr().out.split())
    command = re.search(r"20 norms in all; (normdeploy explain .*) tells of each", said)
    assert command is not None
    assert main(shlex.split(command[1])[1:]) == 0
    told = capsys.readouterr().out
    assert all(f"bn{number}  BatchNormalization" in told for number in range(20))
