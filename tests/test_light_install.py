"""What the runtime install lacks is not missed where a bundle is served, and is asked for by name where one is made."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXPORT = [text.partition(">")[0].replace("-", "_") for text in PROJECT["optional-dependencies"]["export"]]

WITHOUT = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {EXPORT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from normdeploy.cli import main
"""
"""A Python in which none of the packages is installed that only making bundles takes."""


def run(*arguments: str, code: str = "sys.exit(main(sys.argv[1:]))") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_runtime_asks_for_none_of_them() -> None:
    assert {"torch", "matplotlib", "onnx_ir", "onnxscript", "safetensors"} <= set(EXPORT)
    assert not {text.partition(">")[0].replace("-", "_") for text in PROJECT["dependencies"]} & set(EXPORT)


@pytest.mark.parametrize("command", ["inspect", "report", "explain", "judge", "package", "bench"])
def test_a_bundle_is_used_without_them(digits_bundle: Path, tmp_path: Path, command: str) -> None:
    options = {"package": ["-o", str(tmp_path / "repo")], "bench": ["--seconds", "0.1"]}.get(command, [])
    done = run(command, str(digits_bundle), *options)
    assert done.returncode == 0, done.stderr


def test_a_bundle_runs_without_them(digits_bundle: Path) -> None:
    code = "import normdeploy; b = normdeploy.load_bundle(sys.argv[1]); print(*b(b.golden.inputs))"
    done = run(str(digits_bundle), code=code)
    assert (done.stdout, done.returncode) == ("output\n", 0), done.stderr


@pytest.mark.parametrize("verb", ["export", "verify"])
def test_what_makes_bundles_says_what_to_install(digits_bundle: Path, tmp_path: Path, verb: str) -> None:
    rest = ["-o", str(tmp_path / "b"), "--input", "x:1x2"] if verb == "export" else [str(digits_bundle)]
    done = run(verb, "--model", "models.digits:resnet", *rest)
    assert done.returncode == 3, done.stderr
    assert "is not installed" in done.stderr
    assert "pip install 'normdeploy[export]'" in done.stderr
    told = run(code=f"import normdeploy\nnormdeploy.{verb}").stderr
    assert "UnavailableError" in told
    assert "pip install 'normdeploy[export]'" in told
