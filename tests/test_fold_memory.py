"""The script that measures a fold's memory makes, folds and checks a model, and sees a process that holds too much."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import fold_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script reads Linux's account of a process")


def test_a_small_model_is_folded_and_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fold_memory.py", "--gib", "0.005"])
    assert fold_memory.main() == 0
    told = capsys.readouterr().out.splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n(the model .*?)```", readme, re.DOTALL)[0].splitlines()
    assert [line.split("  ")[0] for line in told] == [line.split("  ")[0] for line in shown]


def test_what_is_held_is_seen() -> None:
    hold = "import time; held = bytearray(200 << 20); time.sleep(0.5)"
    assert fold_memory.watched([sys.executable, "-c", hold]).anonymous > 200 << 20


def test_a_wrong_weight_is_seen(tmp_path: Path) -> None:
    fold_memory.make(tmp_path / "model.onnx", 3)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    scales = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer if item.name[0] == "s"}
    data = np.fromfile(tmp_path / fold_memory.DATA, np.float32).reshape(fold_memory.COUNT, -1)
    for index in range(0, fold_memory.COUNT, 2):
        data[index] = (data[index].reshape(-1, 3).astype(np.float64) * scales[f"s{index}"]).astype(np.float32).ravel()
    folded = tmp_path / "folded" / "model.onnx"
    folded.parent.mkdir()
    data.tofile(folded.parent / fold_memory.DATA)
    for node in [node for node in proto.graph.node if node.op_type == "Mul"]:
        proto.graph.node.remove(node)
    onnx.save(proto, folded)
    fold_memory.check(tmp_path / "model.onnx", folded)
    data[4, 0] *= 1 + 2.0**-20
    data.tofile(folded.parent / fold_memory.DATA)
    with pytest.raises(SystemExit, match="weight 4 is wrong"):
        fold_memory.check(tmp_path / "model.onnx", folded)
