"""Calibration over Ray Data by two workers is calibration: what they counted merges to what one process counts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support import ROOT

from normdeploy.pipeline.calibrate import calibrate

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray lies in .venv-ray, which make test-ray makes"),
]


def test_two_workers_count_what_one_process_does(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (100, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=images[:60])
    np.savez(tmp_path / "b.npz", x=images[60:])
    weights, spec = ROOT / "models" / "digits_resnet.safetensors", "x:N=1..64..64x1x8x8"
    command = [PYTHON, ROOT / "scripts" / "calibrate_ray.py", "--model", "models.digits:resnet", "--weights", weights]
    command += ["--app-dir", ROOT, "--input", spec, "--data", tmp_path / "a.npz", tmp_path / "b.npz", "--batch", "20"]
    command += ["--workers", "2", "--partial", tmp_path / "part"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    source = {"app_dir": ROOT, "weights": weights}
    calibrate("models.digits:resnet", [spec], tmp_path / "ray", merge=[tmp_path / "part"], pooled=True, **source)
    data = [tmp_path / "a.npz", tmp_path / "b.npz"]
    calibrate("models.digits:resnet", [spec], tmp_path / "one", data=data, batch=20, pooled=True, **source)
    found, wanted = load_file(tmp_path / "ray"), load_file(tmp_path / "one")
    first = [name for name in wanted if name.startswith("norm.running")]  # what is behind it depends on the batches
    assert first
    for name in first:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7)
