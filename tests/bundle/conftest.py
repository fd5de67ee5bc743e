from __future__ import annotations

import shutil
from pathlib import Path

import bundle_samples as samples
import pytest

from normdeploy.bundle import write


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "bundle"
    return write(folder, model=samples.model(), report=samples.report(), golden=samples.golden())


@pytest.fixture
def folder(_written: Path, tmp_path: Path) -> Path:
    """A good bundle that the test may break, alone in its parent folder."""
    return Path(shutil.copytree(_written, tmp_path / "parent" / "bundle"))
