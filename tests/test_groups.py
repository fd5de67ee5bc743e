"""What tests of one group share is made once: the runner keeps a group in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GROUPED = """
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_grouped(number):
    pathlib.Path("workers", os.environ["PYTEST_XDIST_WORKER"]).touch()
"""


def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "test_grouped.py").write_text(GROUPED)
    (tmp_path / "workers").mkdir()
    command = ["-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "test_grouped.py"]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
    assert len([*(tmp_path / "workers").iterdir()]) == 1
