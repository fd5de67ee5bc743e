from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture
def app(tmp_path: Path) -> Callable[[str], str]:
    """Writes a Python module into ``tmp_path`` under a name of its own."""

    def write(source: str) -> str:
        name = f"app_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n\n" + source)
        return name

    return write
