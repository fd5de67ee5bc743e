"""The script for GPU machines: what it says without one, and its rows, with runners of the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from nets import DIGIT_SPECS, ROOT, digits, folded
from rich.console import Console

from normdeploy.errors import UnavailableError
from normdeploy.precision import to_precision
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

SCRIPT = ROOT / "scripts" / "gpu_parity.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_parity"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU says")
def test_without_a_gpu_it_exits_3_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("no NVIDIA GPU that torch can use")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


class Doubled(OnnxRuntimeRunner):
    """A wrong artefact."""

    def __call__(self, feeds: Any) -> dict[str, np.ndarray]:
        return {name: 2 * array for name, array in super().__call__(feeds).items()}


def test_rows_say_what_passed_what_failed_and_what_could_not_be_made(script: ModuleType, tmp_path: Path) -> None:
    module = digits("conv1d")
    subject = script.Subject("digits_conv1d", module, DIGIT_SPECS)
    ir.save(to_precision(folded(module, DIGIT_SPECS), "fp32"), tmp_path / "model.onnx")

    def absent() -> OnnxRuntimeRunner:
        raise UnavailableError("no such backend here")

    def broken() -> OnnxRuntimeRunner:
        raise RuntimeError("a driver's own words")

    made = [
        ("eager", lambda: EagerRunner(module, DIGIT_SPECS)),
        ("onnxruntime", lambda: OnnxRuntimeRunner(tmp_path / "model.onnx")),
        ("doubled", lambda: Doubled(tmp_path / "model.onnx")),
        ("absent", absent),
        ("broken", broken),
    ]
    rows = script.compare(subject, "fp32", made, 0.05)
    assert [(row.artefact, row.passed) for row in rows] == [
        ("eager", True),
        ("onnxruntime", True),
        ("doubled", False),
        ("absent", None),
        ("broken", None),
    ]
    assert rows[1].p50_ms > 0
    assert rows[1].speedup_low <= rows[1].speedup <= rows[1].speedup_high
    assert rows[3].note == "no such backend here"
    assert "driver's own words" in rows[4].note
    document = json.loads(json.dumps(script.document(rows, "a GPU (SM89)")))
    assert document["gpu"] == "a GPU (SM89)"
    assert len(document["rows"]) == 5
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 — closed with the process
    console.print(script.table(rows, "a GPU"))
    text = console.export_text()
    assert "FAILED" in text
    assert "no such backend here" in text
