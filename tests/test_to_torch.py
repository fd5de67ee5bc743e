"""``export --to-torch`` and ``load_folded``: the weights of a folded module, and the module that takes them."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import EAGER, SPEC, WEIGHTS
from torch import nn

import models.digits
import normdeploy
from normdeploy.checkpoint import load
from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.foldmodule.recipe import Recipe


@pytest.fixture(scope="module")
def folded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    file = folder / "folded.safetensors"
    command = ["export", *EAGER, "--input", SPEC, "--out", str(folder / "bundle"), "--no-bench"]
    said = io.StringIO()
    with redirect_stderr(said):
        code = main([*command, "--to-torch", str(file)])
    assert code == 0, said.getvalue()
    assert f"note: {file} holds the folded module: 9 of 9 norms went into its weights" in said.getvalue()
    return file


def test_the_file_makes_the_architecture_the_folded_network(folded_file: Path) -> None:
    folded = normdeploy.load_folded(models.digits.resnet(), folded_file)
    trained = load("models.digits:resnet", weights=WEIGHTS, app_dir=Path()).module
    (scans, _) = models.digits.held_out()
    with torch.no_grad():
        torch.testing.assert_close(folded.double()(scans.double()), trained.double()(scans.double()), rtol=0, atol=2e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())


def test_the_file_holds_what_it_is(folded_file: Path) -> None:
    with safe_open(str(folded_file), framework="pt") as file:
        names = set(file.keys())
        text = file.metadata()["normdeploy.fold_module"]
    assert "conv.bias" in names
    assert not any("running" in name for name in names)
    recipe = Recipe.from_json(text, dict.fromkeys(names, torch.zeros(1)))
    assert "norm" in recipe.identities


def test_it_is_never_written_over(folded_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folded_file.read_bytes()
    command = ["export", *EAGER, "--input", SPEC, "--out", str(tmp_path / "bundle"), "--no-bench"]
    assert main([*command, "--to-torch", str(folded_file)]) == 2
    assert "choose another --to-torch, or give --force" in capsys.readouterr().err
    assert folded_file.read_bytes() == before
    assert not (tmp_path / "bundle").exists()


def test_another_architecture_is_refused(folded_file: Path) -> None:
    with pytest.raises(InputError, match="of another architecture"):
        normdeploy.load_folded(models.digits.conv1d(), folded_file)


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for path in (tmp_path / "plain.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match="holds no folded module"):
            normdeploy.load_folded(models.digits.resnet(), path)
