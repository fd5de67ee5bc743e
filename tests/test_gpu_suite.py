"""``make test-gpu`` is never green by skipping: where something is missing, it ends with exit code 3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from support import ROOT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")


@pytest.mark.parametrize(("required", "code"), [("1", 3), ("", 0)])
def test_what_skips_is_not_green(required: str, code: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_onnxruntime_cuda.py"]
    environment = {**os.environ, "NORMDEPLOY_GPU": required}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert "needs an NVIDIA GPU" in done.stdout


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver here")
def test_the_target_says_what_is_missing_before_it_installs() -> None:
    done = subprocess.run(["make", "test-gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # make's own; the recipe ends with 3
    assert "no NVIDIA GPU: run this on a machine with one" in done.stderr
    assert "Error 3" in done.stderr
