"""Paths are told before torch is imported, outputs that cannot be written before the work; a note is said once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import RESNET, ROOT, SPEC

EXPORT = ["export", "--model", RESNET, "--input", SPEC, "--out"]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from normdeploy.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*EXPORT, "out", "--weights", "nowhere.pt"], "no such file\n  where: nowhere.pt"),
        ([*EXPORT, "out", "--weights", "plain/nowhere.pt"], "no such file\n  where: plain/nowhere.pt"),
        ([*EXPORT, "out", "--data", "nowhere.npz"], "no such file\n  where: nowhere.npz"),
        ([*EXPORT, "out", "--app-dir", "nowhere"], "no such file\n  where: nowhere"),
        ([*EXPORT, "/proc/out"], "the output cannot be written here: No such file or directory\n  where: /proc"),
        ([*EXPORT, "plain/out"], "a file is in the way of the output"),
        ([*EXPORT, "out", "--to-torch", "/proc/w"], "the output cannot be written here"),
        (["verify", "nowhere", "--model", RESNET], "no such file\n  where: nowhere"),
        (["bench", "nowhere"], "no such file\n  where: nowhere"),
        (["doctor", "--model", RESNET, "--weights", "nowhere.pt"], "no such file\n  where: nowhere.pt"),
        (["calibrate", "--model", RESNET, "--data", "nowhere.npz"], "no such file\n  where: nowhere.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_path_is_told_before_torch_is_imported(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_function_that_yields_data_is_no_path(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *EXPORT, "out", "--data", "pkg:batches"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert "no such file" not in done.stderr
    assert "torch" in done.stderr


def test_a_note_is_said_once(tmp_path: Path) -> None:
    factory = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(3, 2)).eval()\n"
    (tmp_path / "factory_of_mine.py").write_text(factory)
    command = [sys.executable, "-m", "normdeploy", "export", "--model", "factory_of_mine:net", "--input", "input:2x3"]
    done = subprocess.run([*command, "--out", "out", "--no-bench"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("--app-dir . is taken") == 1
    assert "--app-dir . is taken" in (tmp_path / "out" / "report.json").read_text()
