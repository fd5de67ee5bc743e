from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Writes a Python module into ``tmp_path`` under a name of its own; import path and modules are put back after."""
    path, modules = list(sys.path), set(sys.modules)

    def write(source: str) -> str:
        name = f"app_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n\n" + source)
        return name

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) is None or str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
