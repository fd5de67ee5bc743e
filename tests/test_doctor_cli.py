"""``normdeploy doctor``: its exit code, what it prints, and the findings in an export's report."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import EAGER, SPEC
from torch import Tensor, nn

import normdeploy
from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.pipeline import report_of

NETS = """
import torch
from torch import nn


def good():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def zero():
    net = good()
    net[1].running_var[0] = 0
    return net


def bad():
    net = good()
    net[1].train()
    return net


def large():
    net = good()
    net[1].running_var[0] = 1e5
    return net


def large_and_kept():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), large()[1], nn.ReLU()).eval()


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = good()[1]

    def forward(self, x):
        return self.norm(x) if x.sum() > 0 else x


def branches():
    return Branches().eval()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose one module every test loads: Python imports it once."""
    made = tmp_path_factory.mktemp("doctor")
    (made / "doctored_nets.py").write_text(NETS)
    return made


@pytest.fixture
def nets(folder: Path) -> list[str]:
    return ["doctor", "--app-dir", str(folder), "--input", "input:2x3x9x11", "--model"]


def test_a_healthy_network_is_0_and_every_norm_has_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *EAGER, "--input", SPEC]) == 0
    said = capsys.readouterr().out
    assert (
        "blocks.0.norm1       BatchNorm2d  blocks.0.conv1 (Conv)       blocks.0 (Relu)  folded into blocks.0.conv1"
        in said
    )
    assert said.rstrip().endswith("nothing found")


def test_an_error_is_1_and_can_be_ignored(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*nets, "doctored_nets:bad"]) == 1
    said = capsys.readouterr().out
    assert "ND001 error 1: it is in training mode inside a module in eval mode" in said
    assert "1 error; normdeploy explain CODE tells more" in said
    assert main([*nets, "doctored_nets:bad", "--ignore", "ND001"]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_a_warning_is_0_and_json_has_it(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*nets, "doctored_nets:zero", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [(each["code"], each["severity"], each["module"]) for each in told["findings"]] == [
        ("ND006", "warning", "1")
    ]
    (norm,) = told["norms"]
    assert (norm["behind"], norm["before"], norm["fate"]) == (["0 (Conv)"], ["2 (Relu)"], "folded into 0")


def test_what_does_not_export_is_an_error(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*nets, "doctored_nets:branches"]) == 1
    assert "ND019 error (the module itself): the network cannot be exported" in capsys.readouterr().out


def test_data_of_another_kind_are_found(nets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "pixels.npz", input=generator.uniform(0, 255, (2, 3, 9, 11)).astype(np.float32))
    assert main([*nets, "doctored_nets:good", "--data", str(tmp_path / "pixels.npz")]) == 0
    assert "ND018 warning 1: its statistics do not fit these data" in capsys.readouterr().out


def test_inputs_are_guessed_and_said(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    del nets[nets.index("--input") : nets.index("--input") + 2]
    assert main([*nets, "doctored_nets:good"]) == 0
    assert "inputs were guessed: input:" in capsys.readouterr().out


def test_nan_in_the_data_is_called_nan(nets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.ones((2, 3, 9, 11), np.float32)
    images[1, 2, 3, 4] = np.nan
    np.savez(tmp_path / "hole.npz", input=images)
    assert main([*nets, "doctored_nets:good", "--data", str(tmp_path / "hole.npz")]) == 0
    assert "note: hole.npz: input holds 1 values that are NaN or infinite" in capsys.readouterr().out


def test_inputs_of_another_type_are_said_with_what_helps(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    nets[nets.index("--input") + 1] = "input:2x3x9x11@f16"
    assert main([*nets, "doctored_nets:good"]) == 1
    said = capsys.readouterr().out
    assert "the network was not run: forward raises RuntimeError" in said
    assert "the weights are float32, the inputs float16: give the inputs as @f32" in said


@pytest.mark.parametrize(
    ("name", "severity"), [("doctored_nets:large", "note"), ("doctored_nets:large_and_kept", "warning")]
)
def test_squares_of_a_norm_that_goes_are_a_note(
    nets: list[str], capsys: pytest.CaptureFixture[str], name: str, severity: str
) -> None:
    assert main([*nets, name, "--select", "nd015", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["severity"], "the norm itself is folded away" in found["message"]) == (severity, severity == "note")


def test_an_unknown_code_is_usage(nets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*nets, "doctored_nets:good", "--select", "ND9"]) == 2
    assert "no check has the code 'ND9'" in capsys.readouterr().err


def test_a_module_of_python_is_not_changed() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x)
            return out

    module = Branch()
    diagnosis = normdeploy.doctor(module, ["x:2x3"])
    assert module.training
    assert torch.equal(module.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]  # it has one
    assert [each.code for each in diagnosis.findings] == ["ND002"]
    assert diagnosis.errors == ()


def test_a_module_that_cannot_be_copied_is_one_error() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    module.lock = threading.Lock()  # type: ignore[assignment]  # it is no module
    for each, words in ((module, "cannot be copied"), (nn.Sequential(nn.LazyBatchNorm1d()), "have no shape yet")):
        with pytest.raises(InputError, match=words):
            normdeploy.doctor(each, ["input:2x3"])


def test_the_report_of_an_export_has_the_findings(
    nets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(["export", *nets[1:], "doctored_nets:zero", "--out", str(out), "--no-bench"]) == 0
    assert "ND006 warning 1: running_var is 0 in 1 of 4 channels" in capsys.readouterr().out
    assert [each.code for each in report_of(out).findings] == ["ND006"]
    assert "What the doctor found" in (out / "report.html").read_text(encoding="utf-8")
