from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bundle"))  # bundle_samples makes bundles without PyTorch

import bundle_samples as samples

from normdeploy.bundle import write
from normdeploy.errors import UnavailableError
from normdeploy.serving.environment import ready_environment


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a float and an integer input, of which one row is a scalar."""
    folder = tmp_path_factory.mktemp("small") / "small"
    return write(folder, model=samples.model(), report=samples.report(), golden=samples.golden())


@pytest.fixture(scope="session")
def triton() -> Path:
    """Triton's own environment, made where it is not there; a test skips only where it cannot be installed."""
    try:
        return ready_environment()
    except UnavailableError as error:
        pytest.skip(str(error))
