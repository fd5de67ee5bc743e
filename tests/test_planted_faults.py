"""Faults planted in whole networks are seen and named; `scripts/planted_faults.py` has them all."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted_faults", ROOT / "scripts" / "planted_faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("net", "precision", "fault"),
    [("dense", "fp32", "mean and variance"), ("mobile", "bf16", "one channel, 0.1 %"), ("recurrent", "fp16", "gamma")],
)
def test_a_fault_is_seen_and_its_module_named(planted: ModuleType, net: str, precision: str, fault: str) -> None:
    subject = planted.Subject(next(each for each in planted.nets() if each.name == net), precision)
    assert subject.judged(*subject.graphs(subject.module)).passed
    outcome = subject.outcome(fault)
    assert outcome.right, outcome


def test_an_overflow_names_the_module(planted: ModuleType) -> None:
    subject = planted.Subject(next(each for each in planted.nets() if each.name == "recurrent"), "fp16")
    outcome = subject.overflow()
    assert outcome.right, outcome
