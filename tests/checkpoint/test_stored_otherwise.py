"""Weights that a file holds in parts or as codes are told as such, and what is advised works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from normdeploy.checkpoint import load
from normdeploy.errors import InputError

APP = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.fc(x).relu())

def plain():
    return Net()

def advised():
    module = Net()
    ADVICE
    return module
"""


class Net(nn.Module):
    """The network of APP."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.fc(x).relu())
        return out


def refusal(path: Path, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load("kept_nets:plain", app_dir=folder, weights=path)
    return caught.value


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kept_nets.py").write_text(APP.replace("ADVICE", "pass"))
    return tmp_path


PARTS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "the older weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
    "the older spectral_norm": lambda layer: nn.utils.spectral_norm(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),  # type: ignore[no-untyped-call] # torch's own
}


@pytest.mark.parametrize("name", PARTS)
def test_weights_in_parts_are_loaded_by_a_factory_that_does_as_advised(name: str, app: Path) -> None:
    torch.manual_seed(1)
    module, x = Net(), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older ones are deprecated, and their files about
        PARTS[name](module.fc)
        with torch.no_grad():
            module(x)
            torch.save(module.state_dict(), app / "w.pt")
            expected = module.eval()(x)
        error = refusal(app / "w.pt", app)
        assert "weights in parts" in error.what
        advice = error.fix.partition(": ")[2]
        assert "module.fc" in advice
        (app / "advised_nets.py").write_text(APP.replace("ADVICE", advice))
        loaded = load("advised_nets:advised", app_dir=app, weights=app / "w.pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), expected)


CODES = {
    "bitsandbytes, 8 bits": {"fc.SCB": torch.ones(6), "fc.weight_format": torch.tensor(0)},
    "bitsandbytes, 4 bits": {
        "fc.weight.absmax": torch.ones(6),
        "fc.weight.quant_state.bitsandbytes__nf4": torch.ones(1),
    },
    "GPTQ": {"fc.qweight": torch.ones(1, 6), "fc.qzeros": torch.ones(1), "fc.scales": torch.ones(1)},
    "compressed-tensors": {"fc.weight_scale": torch.ones(6, 1)},
    "scaled floats of 8 bits": {"fc.scale_weight": torch.ones(()), "scaled_fp8": torch.ones(2)},
}


@pytest.mark.parametrize("name", CODES)
def test_scales_of_codes_are_never_advised_to_be_left_out(name: str, app: Path) -> None:
    state = Net().state_dict()
    torch.save({**state, **CODES[name]}, app / "w.pt")
    error = refusal(app / "w.pt", app)
    assert "a quantized network, whose weights are codes" in error.what
    assert "--ignore-unexpected" not in error.fix


def test_adapters_beside_the_weights_they_change_are_to_be_merged(app: Path) -> None:
    state = Net().state_dict()
    state["fc.lora_A.default.weight"] = torch.ones(2, 4)
    torch.save(state, app / "w.pt")
    assert "merge_and_unload()" in refusal(app / "w.pt", app).fix


def test_a_module_that_has_such_names_itself_misses_what_it_misses(app: Path) -> None:
    state = {f"module.{name}": value for name, value in Net().state_dict().items()}
    del state["module.out.bias"]
    torch.save(state, app / "w.pt")
    error = refusal(app / "w.pt", app)
    assert "out.bias" in error.what
    assert "weights in parts" not in error.what


@pytest.mark.parametrize("contents", [[torch.ones(2)], (torch.ones(2), 3), [("w", torch.ones(2))], 3, "text", None])
def test_what_is_no_mapping_is_one_message(contents: object, app: Path) -> None:
    torch.save(contents, app / "w.pt")
    assert "not a state dict" in refusal(app / "w.pt", app).what


@pytest.mark.parametrize("step", ["global_step10", "elsewhere"])
def test_names_without_numbers_are_told_as_a_part_of_deepspeeds(step: str, app: Path) -> None:
    """As ZeRO's third stage leaves them in the model states: the numbers are in the files beside."""
    file = app / "run" / step / "mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True)
    torch.save({"module": {name: torch.empty(0) for name in Net().state_dict()}, "ds_version": "0.14.0"}, file)
    error = refusal(file, app)
    assert "DeepSpeed's ZeRO, stage 3" in error.what
    assert f"zero_to_fp32 {app / 'run' if step == 'global_step10' else file.parent} " in error.fix
    torch.save({"module": Net().state_dict()}, file)
    assert load("kept_nets:plain", app_dir=app, weights=file).notes
