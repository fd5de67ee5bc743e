"""Everything here needs an NVIDIA GPU, and skips with the reason where there is none. `make test-gpu` runs it.

There, where NORMDEPLOY_GPU is set, a test that skips ends the run with exit code 3: what did not run is not green.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use; this machine has none")


def pytest_sessionfinish(session: pytest.Session) -> None:
    told = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NORMDEPLOY_GPU") and told is not None and told.stats.get("skipped"):
        session.exitstatus = 3
