"""Code that the user gives may raise, print and write anywhere: it is named, and the result stays what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normdeploy.cli import main

NETS = """
import os
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


class Eval(Net):
    def eval(self):
        raise RuntimeError("not today")


class Train(Net):
    def train(self, mode=True):
        return self.layer.wieght


class Getattr(Net):
    def __getattr__(self, name):
        if name in ("layer", "_modules", "_parameters", "_buffers"):
            return super().__getattr__(name)
        raise RuntimeError("not today")


class Modules(Net):
    def named_modules(self, *args, **kwargs):
        raise KeyError("not today")


class Parameters(Net):
    def named_parameters(self, *args, **kwargs):
        raise KeyError("not today")


class Training(Net):
    @property
    def training(self):
        raise RuntimeError("not today")

    @training.setter
    def training(self, value):
        pass


class Apply(Net):
    def _apply(self, *args, **kwargs):
        raise ValueError("not today")


class Writes(Net):
    def __init__(self):
        super().__init__()
        os.write(1, b"from the factory, ")
        os.system("echo from a process of its")

    def forward(self, x):
        os.write(1, b"from forward")
        return super().forward(x)
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("given_nets.py").write_text(NETS)
    layer = torch.nn.Linear(4, 4)
    save_file({"layer.weight": layer.weight.data, "layer.bias": layer.bias.data}, "w.safetensors")
    return ["--app-dir", ".", "--weights", "w.safetensors", "--input", "x:N=1..4x4", "--no-bench", "--out", "out"]


@pytest.mark.parametrize("name", ["Eval", "Train", "Getattr", "Modules", "Parameters", "Training", "Apply"])
def test_what_a_module_raises_is_told_by_its_own_line(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", f"given_nets:{name}", *arguments]) == 2
    told = capsys.readouterr().err
    assert "bug in normdeploy" not in told
    assert f"error: {name}." in told
    assert ("not today" in told) or ("wieght" in told)
    assert "given_nets.py:" in told
    assert not Path("out").exists()


def test_what_code_writes_to_the_descriptor_is_not_in_the_document(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "normdeploy", "export", "--model", "given_nets:Writes", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["passed"] is True
    assert "from the factory, from a process of its" in done.stderr
    assert "from forward" in done.stderr
