from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from normdeploy.checkpoint import Names, Rename, load
from normdeploy.errors import InputError

App = Callable[[str], str]

NET = """
def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
"""


def trained() -> nn.Sequential:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module(torch.randn(50, 3) * 2 + 1)
    return module.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(trained().state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_the_loaded_module_computes_what_the_trained_one_did(app: App, tmp_path: Path, weights: Path) -> None:
    name = app(NET)
    loaded = load(f"{name}:net", app_dir=tmp_path, weights=weights)
    x = torch.randn(5, 3)
    assert torch.equal(loaded.module(x), trained()(x))
    assert not any(part.training for part in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert (loaded.factory, loaded.weights) == (f"{name}:net", weights)
    assert loaded.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert loaded.notes == ("the factory's module was in training mode as a whole: put into eval mode",)


@pytest.mark.parametrize("stream", [False, True])
def test_a_checkpoint_of_torch_save_with_key_and_prefix(app: App, tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "net.ckpt"
    contents = {"epoch": 3, "model": {f"module.{name}": value for name, value in trained().state_dict().items()}}
    torch.save(contents, path, _use_new_zipfile_serialization=not stream)
    factory = f"{app(NET)}:net"
    x = torch.randn(5, 3)
    for names in (Names(), Names(key="model", strip="module.")):
        assert torch.equal(load(factory, app_dir=tmp_path, weights=path, names=names).module(x), trained()(x))


def test_model_args_change_what_fits(app: App, tmp_path: Path, weights: Path) -> None:
    factory = f"{app(NET)}:net"
    load(factory, app_dir=tmp_path, model_args={"width": "4"}, weights=weights)
    with pytest.raises(InputError, match="another shape"):
        load(factory, app_dir=tmp_path, model_args={"width": "5"}, weights=weights)


def test_without_weights_the_factorys_own_are_kept_and_that_is_said(app: App, tmp_path: Path) -> None:
    name = app(
        "def net():\n    module = nn.Linear(2, 2)\n    nn.init.constant_(module.weight, 7)\n    return module.eval()"
    )
    loaded = load(f"{name}:net", app_dir=tmp_path)
    assert torch.equal(loaded.module.weight, torch.full((2, 2), 7.0))
    assert (loaded.weights, loaded.weights_sha256) == (None, None)
    assert loaded.notes == ("no weights file: the weights are those that the factory made",)


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (Names(key="model"), "--weights-key"),
        (Names(key=""), "--weights-key"),
        (Names(strip="module."), "--strip-prefix"),
        (Names(rename=[Rename("a", "b")]), "--rename"),
        (Names(add="model."), "--add-prefix"),
        (Names(ignore=["a"]), "--ignore-unexpected"),
        (Names(allow=["a"]), "--allow-missing"),
    ],
)
def test_options_of_a_weights_file_that_is_not_given(names: Names, option: str) -> None:
    with pytest.raises(InputError, match="none is given") as caught:
        load("torch.nn:Identity", names=names)
    assert caught.value.what.startswith(f"{option} ")


def test_an_unreadable_file_is_refused_before_the_factory_runs(app: App, tmp_path: Path) -> None:
    name = app("def net():\n    raise SystemExit('ran')")
    with pytest.raises(InputError, match="no such file"):
        load(f"{name}:net", app_dir=tmp_path, weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize("given", [True, False])
def test_tensors_on_the_meta_device(app: App, tmp_path: Path, weights: Path, given: bool) -> None:
    name = app("def net():\n    with torch.device('meta'):\n        return nn.Linear(3, 4)")
    with pytest.raises(InputError, match="meta device") as caught:
        load(f"{name}:net", app_dir=tmp_path, weights=weights if given else None)
    assert caught.value.where == f"{name}:net: weight, bias"


def test_a_lazy_layer_takes_its_shape_from_the_weights_or_is_refused(app: App, tmp_path: Path, weights: Path) -> None:
    name = app("def net():\n    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout())")
    x = torch.randn(5, 3)
    assert torch.equal(load(f"{name}:net", app_dir=tmp_path, weights=weights).module(x), trained()(x))
    with pytest.raises(InputError, match="have no shape yet") as caught:
        load(f"{name}:net", app_dir=tmp_path)
    assert "0.weight" in caught.value.where


@pytest.mark.parametrize("weights_given", [True, False])
def test_a_norm_left_in_training_mode(app: App, tmp_path: Path, weights: Path, weights_given: bool) -> None:
    name = app(f"{NET}\ndef mixed():\n    module = net().eval()\n    module[1].train()\n    return module")
    given = weights if weights_given else None
    with pytest.raises(InputError, match="in training mode") as caught:
        load(f"{name}:mixed", app_dir=tmp_path, weights=given)
    assert caught.value.where == "1"
    forced = load(f"{name}:mixed", app_dir=tmp_path, weights=given, force_eval=True)
    assert "forced into eval mode: 1" in forced.notes
    assert not forced.module[1].training


def test_weights_are_there_before_eval_merges_them(app: App, tmp_path: Path) -> None:
    name = app(
        "class Merging(nn.Linear):\n"
        "    def train(self, mode=True):\n"
        "        if not mode and self.training:\n"
        "            self.merged = self.weight.detach().clone()\n"
        "        return super().train(mode)\n"
    )
    values = {"weight": torch.full((2, 2), 5.0), "bias": torch.zeros(2)}
    save_file(values, tmp_path / "w.safetensors")
    arguments = {"in_features": "2", "out_features": "2"}
    loaded = load(f"{name}:Merging", app_dir=tmp_path, model_args=arguments, weights=tmp_path / "w.safetensors")
    assert torch.equal(loaded.module.merged, values["weight"])


@pytest.mark.parametrize(
    ("entry", "value", "where"),
    [
        ("1.running_var", -1.0, "1.running_var: negative in 4 of 4 channels"),
        ("1.running_mean", float("nan"), "1.running_mean: NaN or infinite in 4 of 4 channels"),
    ],
)
def test_impossible_statistics_are_refused(app: App, tmp_path: Path, entry: str, value: float, where: str) -> None:
    contents = dict(trained().state_dict())
    contents[entry] = torch.full((4,), value)
    save_file(contents, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load(f"{app(NET)}:net", app_dir=tmp_path, weights=tmp_path / "w.safetensors")
    assert caught.value.where == where


def test_other_values_that_are_not_finite_are_noted(app: App, tmp_path: Path) -> None:
    name = app(
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(2, 2)\n"
        "        self.register_buffer('mask', torch.tensor([[0, -torch.inf], [0, 0]]))\n"
        "        self.register_buffer('scale', torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn))\n"
        "        self.register_buffer('index', torch.tensor([1, 2]))\n"
    )
    notes = load(f"{name}:Net", app_dir=tmp_path).notes
    assert "mask holds 1 NaN or infinite values of 4" in notes
    assert "scale holds 1 NaN or infinite values of 2" in notes
    assert not any("weight holds" in note or "index holds" in note for note in notes)


def test_half_weights_in_a_float32_module(app: App, tmp_path: Path) -> None:
    half = trained().half().state_dict()
    save_file(half, tmp_path / "w.safetensors")
    loaded = load(f"{app(NET)}:net", app_dir=tmp_path, weights=tmp_path / "w.safetensors")
    assert loaded.module[0].weight.dtype == torch.float32
    assert torch.equal(loaded.module[0].weight, half["0.weight"].float())
    assert any("float16 in the file and float32 in the module, converted exactly" in note for note in loaded.notes)


def test_loading_twice_gives_two_modules(app: App, tmp_path: Path, weights: Path) -> None:
    factory = f"{app(NET)}:net"
    one, two = (load(factory, app_dir=tmp_path, weights=weights).module for _ in range(2))
    one[0].weight.zero_()
    assert not torch.equal(one[0].weight, two[0].weight)


def test_changing_the_module_does_not_change_the_file(app: App, tmp_path: Path, weights: Path) -> None:
    copy = shutil.copy(weights, tmp_path / "copy")
    load(f"{app(NET)}:net", app_dir=tmp_path, weights=weights).module[0].weight.zero_()
    assert weights.read_bytes() == Path(copy).read_bytes()
