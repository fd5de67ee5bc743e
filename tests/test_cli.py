"""The command line: what goes to stdout and what to stderr, exit codes, and one JSON document where asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from support import EAGER, RESNET, ROOT, SPEC, WEIGHTS, tree
from torch import nn

from normdeploy.bench.stats import Comparison, Latency
from normdeploy.cli import app, main
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, fold
from normdeploy.fold.ledger import Ledger
from normdeploy.parity.verdict import Verdict
from normdeploy.pipeline import report_of
from normdeploy.report.schema import Report
from normdeploy.specs import parse

NORMDEPLOY = [sys.executable, "-c", "import sys; from normdeploy.cli import main; sys.exit(main())"]
QUICK = ["--seconds", "0.05", "--processes", "1"]
COMMANDS = (
    "export",
    "export-all",
    "fold",
    "verify",
    "bisect",
    "judge",
    "bench",
    "build",
    "explain",
    "report",
    "inspect",
    "package",
    "serve",
    "check",
    "doctor",
    "calibrate",
    "init",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NORMDEPLOY, *arguments], capture_output=True, text=True, check=False)


# -- export ------------------------------------------------------------------------------------


def test_export_prints_the_result_on_stdout_and_its_progress_on_stderr(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("export", *EAGER, "--input", SPEC, "-o", str(out), "--no-bench")
    assert done.returncode == 0, done.stderr
    for word in ("BatchNormalization 9 → 0", "folded into blocks.2.shortcut.0", "parity passed", str(out)):
        assert word in done.stdout
    stages = [line.split()[0] for line in done.stderr.splitlines() if line.strip()]
    assert stages == ["load", "export", "fold", "parity", "bundle"]
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_one_document_of_the_published_schema(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("export", *EAGER, "--input", SPEC, "-o", str(out), "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert Report.model_validate_json(done.stdout) == report_of(out)


def test_what_the_factory_prints_does_not_reach_stdout(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "import logging, warnings\nfrom models.digits import resnet\n"
        "def noisy():\n    print('hello from the factory')\n    warnings.warn('careful')\n"
        "    logging.getLogger('a.library').warning('watch out')\n    return resnet()\n"
    )
    (tmp_path / "models").symlink_to(ROOT / "models")
    arguments = ["export", "--app-dir", str(tmp_path), "--model", "chatty:noisy", "--input", SPEC, "--no-bench"]
    done = run(*arguments, "-o", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["factory"] == "chatty:noisy"
    assert "hello from the factory" in done.stderr
    assert not any(word in done.stderr for word in ("careful", "watch out", "handlers"))
    verbose = run(*arguments, "-o", str(tmp_path / "again"), "--verbose")
    assert "careful" in verbose.stderr
    assert "a.library: watch out" in verbose.stderr


@pytest.fixture
def fold_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model, **options: Any) -> FoldResult:
        result = fold(model, **options)
        weight = result.model.graph.initializers["head.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name=weight.name)
        return result

    monkeypatch.setattr("normdeploy.pipeline.deploy.fold", wrong)


@pytest.mark.usefixtures("fold_is_wrong")
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_failed_parity_exits_1_with_its_report(
    as_json: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["export", *EAGER, "--input", SPEC, "-o", str(tmp_path / "out"), *(["--json"] if as_json else [])]
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert "parity failed" in err
    assert "module head" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    if as_json:
        report = Report.model_validate_json(out)
        assert report.parity is not None
        assert not report.parity.passed
        assert report.parity.first_divergent == "head"
    else:
        assert "parity FAILED" in out


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [*NORMDEPLOY, "export", *EAGER, "--input", SPEC, "-o", str(tmp_path / "deep" / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "load" in process.stderr.readline()  # the first stage has ended, the second one takes seconds
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


# -- the other commands ------------------------------------------------------------------------


def test_verify_passes_and_fails(digits_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(digits_bundle), *EAGER]) == 0
    assert "parity passed" in capfd.readouterr().out
    weights = load_file(WEIGHTS)
    weights["head.weight"] *= 1.001
    save_file(weights, tmp_path / "other.safetensors")
    other = ["--app-dir", str(ROOT), "--model", RESNET, "--weights", str(tmp_path / "other.safetensors")]
    assert main(["verify", str(digits_bundle), *other, "--json"]) == 1
    verdict = TypeAdapter(Verdict).validate_json(capfd.readouterr().out)
    assert not verdict.passed
    assert verdict.first_divergent == "head"


def test_a_graph_with_other_names_of_inputs_is_verified_as_its_refusal_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchScript's exporter makes up names that no parameter of forward can have."""
    (tmp_path / "other_names.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3).eval()\n"
    )
    torch.manual_seed(0)
    module, sample, path = torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),), tmp_path / "m.onnx"
    torch.onnx.export(module, sample, path, dynamo=False, output_names=["output"])
    command = ["verify", str(path), "--app-dir", str(tmp_path), "--model", "other_names:make", "--input", "input:2x4"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "where: --input gives input\n" in said
    assert "export the graph with input_names=['input']" in said
    torch.onnx.export(module, sample, path, dynamo=False, output_names=["output"], input_names=["input"])
    assert main(command) == 0


def test_the_bound_can_be_set(digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(digits_bundle), *EAGER, "--k", "0", "--floor-eps", "0", "--json"]) == 1
    verdict = TypeAdapter(Verdict).validate_json(capfd.readouterr().out)
    assert (verdict.criteria.k, verdict.criteria.floor_eps) == (0, 0)


def test_bench_measures_alone_and_beside_eager(digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(digits_bundle), *QUICK]
    assert main([*command, "--json"]) == 0
    assert TypeAdapter(Latency).validate_json(capfd.readouterr().out).runner == "onnxruntime"
    assert main([*command, *EAGER, "--json"]) == 0
    assert TypeAdapter(Comparison).validate_json(capfd.readouterr().out).eager.runner == "eager"
    for arguments in (command, [*command, *EAGER]):
        assert main(arguments) == 0
        assert "p50 ms" in capfd.readouterr().out


def test_fold_and_explain(digits_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = digits_bundle / "model.onnx", tmp_path / "out.onnx"
    assert main(["fold", str(source), "--out", str(out), "--json"]) == 0
    TypeAdapter(Ledger).validate_json(capfd.readouterr().out)
    assert main(["fold", str(source), "--out", str(out)]) == 2
    assert main(["fold", str(source), "--out", str(out), "--force"]) == 0
    capfd.readouterr()
    assert main(["explain", str(out), "blocks.1.norm1"]) == 0
    told = capfd.readouterr().out
    assert "folded into blocks.1.conv1" in told
    assert "blocks.1.norm2" not in told
    assert main(["explain", str(digits_bundle), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)) == 9


def test_report_shows_what_export_showed(digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = tree(digits_bundle)
    assert main(["report", str(digits_bundle)]) == 0
    assert "parity passed" in capfd.readouterr().out
    assert main(["report", str(digits_bundle), "--json"]) == 0
    assert Report.model_validate_json(capfd.readouterr().out) == report_of(digits_bundle)
    assert tree(digits_bundle) == before


def test_the_schema_is_published(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--schema"]) == 0
    schema = json.loads(capfd.readouterr().out)
    assert set(schema["properties"]) == set(Report.model_fields)


# -- how it fails ------------------------------------------------------------------------------


def test_a_bug_is_called_one(
    digits_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normdeploy.pipeline.report_of", {}.__getitem__)  # raised in our own code, by none of Python's
    assert main(["report", str(digits_bundle)]) == 2
    err = capfd.readouterr().err
    assert "bug in normdeploy: KeyError" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert main(["report", str(digits_bundle), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_a_reader_that_leaves_is_no_bug() -> None:
    with subprocess.Popen(
        [*NORMDEPLOY, "report", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
    assert "bug" not in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_full_disk_behind_stdout_is_told(digits_bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*NORMDEPLOY, "report", str(digits_bundle)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_terminal_that_knows_ascii_only_is_served(digits_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*NORMDEPLOY, "report", str(digits_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "parity passed" in done.stdout


def test_every_command_says_out_and_json_in_the_same_words() -> None:
    helps = {name: run(name, "--help").stdout for name in COMMANDS}
    scripts = {"completion"}  # it prints a shell's script, and takes the shell's name alone
    assert set(helps) | scripts == {name for name in app if not name.startswith("-")}
    assert all("--json" in text and "--debug" in text for text in helps.values())
    assert all("--out -o" in helps[name] for name in ("export", "export-all", "fold", "build", "init"))


def test_fold_takes_the_level_of_layernorms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    norm = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))
    nn.init.normal_(norm[0].weight)
    specs = parse(["input:N=1..2..4x6@f32"])
    ir.save(to_graph(norm.eval(), specs).model, model)
    left = {}
    for level in ("off", "affine"):
        out = tmp_path / f"{level}.onnx"
        assert main(["fold", str(model), "-o", str(out), "--layernorm", level]) == 0
        scale = ir.load(out).graph.initializers["0.weight"].const_value
        assert scale is not None
        left[level] = scale.numpy()
    assert np.array_equal(left["off"], norm[0].weight.detach().numpy())
    assert np.all(left["affine"] == 1)
    assert main(["fold", str(model), "-o", str(tmp_path / "x.onnx"), "--layernorm", "centred"]) == 2
    assert "centred" in capfd.readouterr().err
