"""A small bundle to attack: the one of the tests of bundles."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bundle"))

import bundle_samples as samples

from normdeploy.bundle import write


@pytest.fixture(scope="session")
def _good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "bundle"
    return write(folder, model=samples.model(), report=samples.report(), golden=samples.golden())


@pytest.fixture
def bundle(_good: Path, tmp_path: Path) -> Path:
    """A good bundle that the test may break, alone in its parent folder."""
    return Path(shutil.copytree(_good, tmp_path / "parent" / "bundle"))
