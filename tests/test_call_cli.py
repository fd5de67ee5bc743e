"""A network with containers and flags for inputs, from the command line to the bundle and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import normdeploy
from normdeploy.cli import main

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, batch, double):
        y = self.norm(self.conv(batch["image"])).relu().mean((2, 3)) + batch["more"][0]
        y = self.head(y)
        return {"logits": y * 2 if double else y, "pooled": y}

def make():
    torch.manual_seed(0)
    return Net()
"""
INPUTS = ["--input", "batch.image:N=1..2..3x3x6x7", "--input", "batch.more.0:Nx4", "--input-value", "double=True"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("call")
    (folder / "called_net.py").write_text(NETWORK)
    return ["--app-dir", str(folder), "--model", "called_net:make"]


def test_a_bundle_keeps_how_forward_is_called(network: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [*INPUTS, "--output-names", "scores,features", "--no-bench", "--out", str(out)]
    assert main(["export", *network, *options]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == ["batch.image:N=1..2..3x3x6x7@f32", "batch.more.0:N=1..2..3x4@f32", "double=True"]
    assert list(manifest["outputs"]) == ["scores", "features"]
    bundle = normdeploy.load_bundle(out)
    outputs = bundle({"batch.image": np.ones((1, 3, 6, 7), np.float32), "batch.more.0": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(outputs["scores"], 2 * outputs["features"])
    assert main(["verify", str(out), *network]) == 0
    assert main(["bench", str(out), *network, "--seconds", "0.05", "--processes", "1"]) == 0


def test_a_file_is_verified_with_the_values_and_names_that_are_given(network: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", *network, *INPUTS, "--no-bench", "--out", str(out)]) == 0
    model = str(out / "model.onnx")
    assert main(["verify", model, *network, *INPUTS]) == 0
    other = [*INPUTS[:4], "--input-value", "double=False"]
    assert main(["verify", model, *network, *other]) == 1  # another function than was exported
    assert main(["verify", model, *network, *INPUTS, "--output-names", "a,b"]) == 1  # the file has no such outputs
    assert main(["verify", str(out), *network, "--output-names", "a,b"]) == 2  # a bundle has its own


def test_a_value_without_a_name_is_a_usage_error(
    network: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", "batch.image:1x3x6x7", "--input-value", "double", "--out", str(tmp_path / "out")]
    assert main(["export", *network, *options]) == 2
    assert "write --input-value NAME=VALUE" in capsys.readouterr().err
