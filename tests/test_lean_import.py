"""Starting is light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"torch", "matplotlib", "onnxscript", "onnxruntime", "sympy"}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "matplotlib", "numpy", "pydantic", "jinja2"}


def loaded(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after ``statement``."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["normdeploy", "normdeploy.errors", "normdeploy.specs", "normdeploy.cli"])
def test_importing_is_light(module: str) -> None:
    assert loaded(f"import {module}") & HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    statement = f"from normdeploy import cli\nassert cli.main({arguments!r}) == 0"
    assert loaded(statement) & HEAVY == set()


def test_the_check_sees_what_is_heavy() -> None:
    assert "numpy" in loaded("import numpy")


def test_a_verb_stays_callable_after_its_namesake_room_is_imported() -> None:
    statement = "import normdeploy, normdeploy.export, normdeploy.fold.ledger, normdeploy.bench.stats\n" + "\n".join(
        f"assert callable(normdeploy.{verb}), {verb!r}"
        for verb in ("export", "fold", "bench", "build", "verify", "load_bundle")
    )
    assert "torch" in loaded(statement)


@pytest.mark.parametrize("how", [["--json"], []])
@pytest.mark.parametrize("command", ["report", "judge", "explain", "inspect"])
def test_what_only_reads_needs_no_torch(command: str, how: list[str], digits_bundle: Path) -> None:
    given = [command, str(digits_bundle), *how]
    statement = f"from normdeploy import cli\nassert cli.main({given!r}) == 0\nprint()"
    assert loaded(statement) & SLOW == set()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["report", "--schema"], 0),
        (["explain", "NF201"], 0),
        (["report", "nowhere"], 2),
        (["judge", "nowhere", "--k", "2"], 2),
        (["explain", "nowhere"], 2),
        (["verify", "nowhere"], 2),
        (["export", "--model"], 2),
        (["export", "--model", "a:b", "--out", "c", "--precision", "fp12"], 2),
        (["bench", "nowhere", "--seconds", "soon"], 2),
        (["bench", "nowhere", "--fail-above", "much"], 2),
        (["bench", "nowhere", "--batch", "none"], 2),
        (["bisect", "nowhere", "--model", "a:b", "--max-memory", "some"], 2),
        (["export", "--model", "a:b", "--out", "c", "--input-value", "training"], 2),
        (["export", "--model", "a:b", "--out", "c", "--model-arg", "1=2"], 2),
        (["export", "--model", "a:b", "--out", "c", "--batch", "none"], 2),
        (["export", "--model", "a:b", "--out", "c", "--input", "x:N=3..1"], 2),
        (["verify", "c", "--model", "a:b", "--input", "x:N=3..1", "--k", "3"], 2),
        (["bench", "c", "--input", "x:?"], 2),
        (["build", "c", "--out", "d", "--input", "x:?"], 2),
        (["doctor", "--model", "a:b", "--input", "x:?"], 2),
        (["calibrate", "--model", "a:b", "--input", "x:?"], 2),
        (["init", "--model", "a:b", "--model-arg", "?"], 2),
    ],
)
def test_an_answer_that_runs_nothing_needs_no_torch(given: list[str], code: int) -> None:
    statement = f"from normdeploy import cli\nassert cli.main({given!r}) == {code}\nprint()"
    assert loaded(statement) & SLOW == set()


@pytest.mark.parametrize("precision", [[], ["--precision", "fp16"]])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_folding_a_file_needs_no_torch(
    force: list[str], precision: list[str], digits_bundle: Path, tmp_path: Path
) -> None:
    given = ["fold", str(digits_bundle / "model.onnx"), "-o", str(tmp_path / "a.onnx"), *precision, *force]
    statement = f"from normdeploy import cli\nassert cli.main({given!r}) == 0\nprint()"
    assert loaded(statement) & {"torch", "matplotlib", "onnxscript", "onnxruntime"} == set()
    refused = f"from normdeploy import cli\nassert cli.main({[*given[:3], given[1], *force]!r}) == 2\nprint()"
    assert "torch" not in loaded(refused)


def test_a_bundle_runs_without_torch(digits_bundle: Path) -> None:
    statement = (
        "import numpy, normdeploy\n"
        f"found = normdeploy.load_bundle({str(digits_bundle)!r})({{'x': numpy.zeros((2, 1, 8, 8), 'float32')}})\n"
        "assert found['output'].shape == (2, 10)"
    )
    # who runs a model builds no graph: onnx_ir brings sympy, which alone takes longer to import than all else here
    assert loaded(statement) & {"torch", "matplotlib", "onnx", "onnx_ir", "onnxscript", "sympy", "jinja2"} == set()


def test_a_process_that_measures_latency_builds_no_graph() -> None:
    found = loaded("import torch, onnxruntime, normdeploy.pipeline.latency")
    assert found & {"onnx", "onnx_ir", "onnxscript", "sympy"} == set()


def test_an_option_that_does_not_exist_needs_nothing() -> None:
    statement = "from normdeploy import cli\nassert cli.main(['export', '--no-such-option']) == 2"
    assert loaded(statement) & HEAVY == set()


def test_the_package_goes_to_other_processes_by_its_name() -> None:
    statement = "import pickle, normdeploy, normdeploy.pipeline\n" + "\n".join(
        f"assert pickle.loads(pickle.dumps({module})) is {module}" for module in ("normdeploy", "normdeploy.pipeline")
    )
    assert "torch" not in loaded(statement)
