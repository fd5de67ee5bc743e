"""normdeploy.toml, the command that writes it, help texts and completion."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

import normdeploy
from normdeploy.bench.stats import Comparison
from normdeploy.cli import app, main


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the command asks the pipeline for, which is not run; the current folder is a new one."""
    asked: dict[str, Any] = {}

    def export(model: str, inputs: Any, out: Path, **options: Any) -> None:
        asked.update(options, model=model, inputs=inputs, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr("normdeploy.pipeline.export", export)
    monkeypatch.chdir(tmp_path)
    return asked


FILE = """
[export]
model = "m:f"
app-dir = "."
model_arg = ["a=1", "b=x"]
input = ["x:1x3", "y:2"]
out = "there"
strip-prefix = "net."
k = 2
no-bench = true
layernorm = "off"
"""


def test_the_file_gives_options_and_says_so(exported: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("normdeploy.toml").write_text(FILE)
    assert main(["export"]) == 130
    assert (exported["model"], exported["out"], exported["inputs"]) == ("m:f", Path("there"), ("x:1x3", "y:2"))
    assert (exported["app_dir"], exported["model_args"]) == (Path(), {"a": "1", "b": "x"})
    assert (exported["criteria"].k, exported["bench"], exported["layernorm"]) == (2, False, "off")
    assert exported["strip_prefix"] == "net."
    said = capsys.readouterr().err
    assert "note: from normdeploy.toml: --model, --app-dir, --model-arg, --input, --out" in said


def test_what_is_typed_wins(exported: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("normdeploy.toml").write_text(FILE)
    assert main(["export", "--model", "n:g", "-o", "here", "--input", "z:1", "--model-arg", "a=2"]) == 130
    assert (exported["model"], exported["out"], exported["inputs"]) == ("n:g", Path("here"), ("z:1",))
    assert exported["model_args"] == {"a": "2"}
    assert "--model," not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[export]\ntrust = ["w.pt"]', "trust is only taken from the command line"),
        ('[export]\nmodle = "m:f"', "modle"),
        ('[verify]\nmodel = "m:f"', "no table but [export]"),
        ("[export", "cannot be read"),
        ("export = 3", "export is no table"),
        ('[export]\nlayernorm = "all"', "layernorm"),
    ],
)
def test_a_file_that_cannot_be_used(
    text: str, words: str, exported: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("normdeploy.toml").write_text(text)
    assert main(["export", "--model", "m:f", "-o", "there", "--input", "x:1"]) == 2
    said = capsys.readouterr()
    assert words in " ".join((said.err + said.out).split())
    assert "Traceback" not in said.err
    assert exported == {}


def test_other_commands_do_not_read_the_file(exported: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("normdeploy.toml").write_text('[verify]\napp-dir = "."\n')
    assert main(["verify", "nowhere", "--model", "m:f"]) == 2
    assert "normdeploy.toml" not in capsys.readouterr().err


NETS = """
import torch
from torch import nn

class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    def forward(self, image):
        return self.fc(self.conv(image).mean((2, 3)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
    def forward(self, ids, mask, scale=1.0):
        return (self.embed(ids) * mask[..., None]).sum(1)

class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(12), nn.Conv1d(4, 12, 5)
    def forward(self, x):
        return self.norm(self.conv(x))

class PreActivated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(self.norm(x))

class Entries(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.LayerNorm(5), nn.Linear(5, 2)
    def forward(self, batch):
        return self.conv(batch["image"]).mean((1, 2, 3)) + self.fc(self.norm(batch["meta"])).sum(1)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(7, 4)
    def forward(self, image, facts):
        return self.conv(image).mean((2, 3)) + self.fc(facts)

class Odd(nn.Linear):
    def forward(self, x):
        raise ValueError

class OddEntries(nn.Linear):
    def forward(self, batch):
        raise ValueError(batch["facts"])
"""


@pytest.mark.parametrize(
    ("factory", "inputs"),
    [
        ("Picture", ["image:N=1..1..8x3x224x224@f32"]),
        ("Signal", ["x:N=1..1..8x4x14336@f32"]),
        ("PreActivated", ["x:N=1..1..8x3x224x224@f32"]),
        ("Entries", ["batch.image:N=1..1..8x3x224x224@f32", "batch.meta:N=1..1..8x5@f32"]),
        ("Pair", ["image:N=1..1..8x3x224x224@f32", "facts:N=1..1..8x7@f32"]),
        ("Words", ["ids:N=1..1..8xT=2..16..64@i64[0..49]", "mask:N=1..1..8xT=2..16..64@i64[0..1]"]),
    ],
)
def test_init_writes_what_export_reads(factory: str, inputs: list[str], exported: dict[str, Any]) -> None:
    Path("nets_of_init.py").write_text(NETS)
    assert main(["init", "--model", f"nets_of_init:{factory}", "--app-dir", "."]) == 0
    written = tomllib.loads(Path("normdeploy.toml").read_text())["export"]
    assert written == {
        "model": f"nets_of_init:{factory}", "app-dir": ".", "input": inputs, "out": f"out/{factory}"
    }  # fmt: skip
    assert main(["export"]) == 130
    assert list(exported["inputs"]) == inputs
    assert main(["init", "--model", f"nets_of_init:{factory}", "--app-dir", "."]) == 2, "it is not replaced"
    assert main(["init", "--model", f"nets_of_init:{factory}", "--app-dir", ".", "--force"]) == 0


@pytest.mark.parametrize(
    ("factory", "parameter", "likely"),
    [("Odd", "x", ["x:N=1..1..8x3@f32"]), ("OddEntries", "batch", ["batch.facts:N=1..1..8x3@f32"])],
)
def test_init_leaves_inputs_that_it_cannot_tell_to_the_user(
    factory: str, parameter: str, likely: list[str], exported: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nets_of_init.py").write_text(NETS)
    arguments = ["--model-arg", "in_features=3", "--model-arg", "out_features=2"]
    assert main(["init", "--model", f"nets_of_init:{factory}", "--app-dir", ".", *arguments]) == 0
    assert "correct the line marked FILL IN in normdeploy.toml" in " ".join(capsys.readouterr().err.split())
    text = Path("normdeploy.toml").read_text()
    assert f"# forward({parameter})" in text
    assert "# FILL IN: " in text
    assert "input" not in tomllib.loads(text)["export"]
    Path("normdeploy.toml").write_text(text.replace("# input", "input"))
    assert main(["export"]) == 130
    assert list(exported["inputs"]) == likely


def test_help_shows_defaults_and_nothing_where_nothing_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "[default: 0]" in said
    assert "[default: affine]" in said
    assert "default: ()" not in said
    assert "default: False" not in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("export", "verify", "--weights-key"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in app if not name.startswith("-") and f"`{name}`" not in text] == []


def test_latency_is_measured_where_the_command_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory lies in the current folder, no --app-dir is given, and it reads a file of its own."""
    code = "from torch import nn\ndef net(): return nn.Linear(int(open('width.txt').read()), 2)\n"
    (tmp_path / "measured_here.py").write_text(code)
    (tmp_path / "width.txt").write_text("3")
    monkeypatch.chdir(tmp_path)
    report = normdeploy.export("measured_here:net", ["input:N=1..1..2x3"], "out", seconds=0.05, processes=1)
    assert isinstance(report.latency, Comparison)
