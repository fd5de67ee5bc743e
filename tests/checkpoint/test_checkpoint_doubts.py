"""The one reading that fits is refused, with its options, where it may be another network's or another set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import names_of, net, prefixed, same, state
from torch import nn

from normdeploy.checkpoint.fit import fit
from normdeploy.errors import InputError

FILE = Path("w.pt")


def asked(contents: Any, module: nn.Module) -> str:
    """The options that the refusal gives, tried."""
    with pytest.raises(InputError) as caught:
        fit(module, contents, file=FILE, names=names_of(""))
    assert caught.value.where == "w.pt"
    flags = caught.value.fix.rpartition(", --")[2]
    fit(module, contents, file=FILE, names=names_of(f"--{flags}"))
    return caught.value.what


# Another set nearly fits


def broken(kind: str) -> dict[str, Any]:
    contents = {name: value + 1 for name, value in state().items()}
    match kind:
        case "a list":
            contents["0.bias"] = contents["0.bias"].tolist()
        case "all lists but one":
            contents.update({name: value.tolist() for name, value in contents.items() if name != "0.bias"})
        case "a shape":
            contents["0.bias"] = torch.ones(5)
        case "missing":
            del contents["1.running_var"]
    return contents


KINDS = ["a list", "all lists but one", "a shape", "missing"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("likely", "spare"), [("model", "ema"), ("student", "teacher"), ("state_dict", "old"), ("a", "b")]
)
def test_a_likelier_set_that_nearly_fits_is_not_passed_over(kind: str, likely: str, spare: str) -> None:
    what = asked({likely: broken(kind), spare: state()}, net())
    assert repr(spare) in what
    assert repr(likely) in what
    contents = {**prefixed(f"{likely}.", broken(kind)), **prefixed(f"{spare}.", state())}
    assert f"'{spare}.*' fits the module, and '{likely}.*' does but for" in asked(contents, net())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spare", ["ema", "model_ema", "teacher", "pretrained", "swa.module"])
def test_a_spare_set_that_nearly_fits_is_none(kind: str, spare: str) -> None:
    module = net()
    (note,) = fit(module, {spare: broken(kind), "model": state()}, file=FILE, names=names_of(""))
    assert "--weights-key model" in note
    assert same(module.state_dict(), state())


def test_another_network_beside_it_is_none() -> None:
    larger = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Linear(9, 9))
    contents = {"generator": state(), "discriminator": larger.state_dict()}
    (note,) = fit(net(), contents, file=FILE, names=names_of(""))
    assert "--weights-key generator" in note


def test_a_set_that_hooks_of_the_module_know_is_one() -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))

    older = {"0.bias": torch.zeros(2), "0.weight_g": torch.ones(2, 1), "0.weight_v": torch.ones(2, 3)}
    with pytest.raises(InputError, match="2 sets of weights"):
        fit(made(), {"ema": made().state_dict(), "model": older}, file=FILE, names=names_of(""))


# By chance


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)


LAYER = {"weight": torch.randn(8, 8), "bias": torch.randn(8)}
REST = {"encoder.norm.weight": torch.ones(8), "head.weight": torch.randn(3, 8)}


@pytest.mark.parametrize("module", [Projection, lambda: nn.Linear(8, 8)])
@pytest.mark.parametrize(
    "contents",
    [
        {**prefixed("encoder.layer.0.q.", LAYER), **REST},
        {"model": {**prefixed("q.", LAYER), **REST}},
        {"encoder": {"q": LAYER, "norm": {"weight": torch.ones(8)}}, "head": {"weight": torch.ones(3, 8)}},
    ],
)
def test_a_layer_of_another_network_is_not_taken(module: Any, contents: Any) -> None:
    assert "by chance: 2 of its tensors are left over" in asked(contents, module())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = net()


def test_two_guessed_prefixes_need_most_of_the_file() -> None:
    module = Wrapped()
    fit(module, {**prefixed("net.", state()), "loss.weight": torch.ones(1)}, file=FILE, names=names_of(""))
    assert same(module.backbone.state_dict(), state())
    contents = {**prefixed("net.", state()), **{f"text.{n}.weight": torch.ones(2, 2) for n in range(9)}}
    assert "by chance: 9 of its tensors" in asked(contents, Wrapped())


def test_a_layer_alone_is_taken() -> None:
    for contents in ({"model": LAYER, "optimizer": {"x": LAYER}, "lr": 1.0}, prefixed("module.", LAYER)):
        module = nn.Linear(8, 8)
        fit(module, contents, file=FILE, names=names_of(""))
        assert same(module.state_dict(), LAYER)
    fit(Projection(), prefixed("module.", LAYER), file=FILE, names=names_of(""))


# Names of buffers


def test_a_learned_weight_with_the_name_of_a_buffer_is_missing() -> None:
    module = net()
    module.register_parameter("position_ids", nn.Parameter(torch.randn(3)))
    with pytest.raises(InputError, match=r"1 missing .*: position_ids"):
        fit(module, state(), file=FILE, names=names_of(""))
    module = net()
    module.register_buffer("position_ids", torch.arange(3))
    (note,) = fit(module, state(), file=FILE, names=names_of(""))
    assert note == "not in the file, so as the factory made them: position_ids"
