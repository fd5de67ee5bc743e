"""How hypothesis draws, how wide a page is, and one bundle of the digits network for all tests of the whole length."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from support import EAGER, SPEC

# The same examples in every run, however slow the machine: a change is judged by what it does, not by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def as_wide_as_a_page() -> Iterator[None]:
    """The terminal in which the tests run has no say in how tables are broken, in this process and in others."""
    given = os.environ.pop("COLUMNS", None)
    yield
    if given is not None:
        os.environ["COLUMNS"] = given


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """A command sets variables for the libraries that its process will load: the next test is another process to it."""
    given = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(given)


@pytest.fixture(autouse=True)
def the_same_draws() -> None:
    """What a test draws is the same whichever tests its process ran before: it holds in every run, or in none."""
    if "torch" in sys.modules:  # most tests of the package's core never load it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def imports_as_they_were(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's modules, where they lie, and the current folder are those of one test: the next may use their names."""
    folder, path, modules = os.getcwd(), list(sys.path), dict(sys.modules)
    yield
    os.chdir(folder)
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if module is not modules.get(name) and _lies_in(module, tmp_path_factory.getbasetemp()):
            del sys.modules[name]
            sys.modules.update({name: modules[name]} if name in modules else {})


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Asked of its dictionary: a test's module may answer anything itself."""
    said = module.__dict__ if isinstance(module, ModuleType) else {}
    files = [said.get("__file__"), *(said.get("__path__") or ())]
    return any(Path(file).is_relative_to(folder) for file in files if isinstance(file, str))


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported once through the command line; tests read it and leave it as it is."""
    from normdeploy.cli import main

    out = tmp_path_factory.mktemp("digits") / "bundle"
    assert main(["export", *EAGER, "--input", SPEC, "--out", str(out), "--no-bench"]) == 0
    return out
