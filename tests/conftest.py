"""How hypothesis draws, how wide a page is, and one bundle of the digits network for all tests of the whole length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported once through the command line; tests read it and leave it as it is."""
    from normdeploy.cli import main

    out = tmp_path_factory.mktemp("digits") / "bundle"
    assert main(["export", *EAGER, "--input", SPEC, "--out", str(out), "--no-bench"]) == 0
    return out
