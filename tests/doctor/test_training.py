from __future__ import annotations

import pytest
import torch
from torch import nn

from normdeploy.doctor.training import require_eval
from normdeploy.errors import InputError


class Stubborn(nn.BatchNorm1d):
    """Keeps normalizing over its batch, whatever mode is asked for."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(True)
        return self


class Immovable(nn.BatchNorm1d):
    """Its training mode is a constant of its class: nothing can be assigned to it."""

    training = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]


class Frozen(nn.Sequential):
    """A wrapper that ignores train() and eval(), as some frozen encoders do."""

    def train(self, mode: bool = True) -> Frozen:
        return self


def net(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), norm or nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_a_fresh_module_is_put_into_eval_and_that_is_said() -> None:
    module = net()
    (note,) = require_eval(module, force=False)
    assert "put into eval mode" in note
    assert not any(part.training for part in module.modules())


def test_a_module_in_eval_gets_no_note() -> None:
    assert require_eval(net().eval(), force=False) == ()


def test_a_norm_left_in_training_inside_eval_is_refused_by_name() -> None:
    module = nn.ModuleDict({"a": net(), "b": net()}).eval()
    module["b"][1].train()
    with pytest.raises(InputError, match="1 norm is in training mode") as caught:
        require_eval(module, force=False)
    assert caught.value.where == "b.1"
    assert "--force-eval" in caught.value.fix
    assert module["b"][1].training, "a refusal leaves the module as it was"


def test_force_puts_that_norm_into_eval_and_says_so() -> None:
    torch.manual_seed(0)
    module = net().eval()
    module[1].train()
    (note,) = require_eval(module, force=True)
    assert note == "forced into eval mode: 1"
    x = torch.randn(4, 3)
    assert torch.equal(module(x)[:1], module(x[:1]))


@pytest.mark.parametrize("start_in_eval", [True, False])
def test_a_norm_that_overrides_train(start_in_eval: bool) -> None:
    module = net(Stubborn(3)).train(not start_in_eval)
    with pytest.raises(InputError) as caught:
        require_eval(module, force=False)
    assert caught.value.where == "1"
    assert "forced into eval mode: 1" in require_eval(module, force=True)
    assert not any(part.training for part in module.modules())


def test_a_norm_inside_a_wrapper_that_ignores_eval() -> None:
    module = nn.Sequential(Frozen(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(InputError) as caught:
        require_eval(module, force=False)
    assert caught.value.where == "0.1"
    notes = require_eval(module, force=True)
    assert "forced into eval mode: 0.1" in notes
    assert any("still in training mode after eval(): 0, 0.0" in note for note in notes)


def test_a_norm_that_cannot_be_forced_is_refused_even_with_force() -> None:
    with pytest.raises(InputError, match="cannot be put into eval mode") as caught:
        require_eval(net(Immovable(3)), force=True)
    assert caught.value.where == "1"


def test_dropout_left_in_training_is_put_into_eval_and_said() -> None:
    module = net().eval()
    module[2].train()
    (note,) = require_eval(module, force=False)
    assert note.endswith("now in eval too: 2")
    assert not module[2].training


def test_a_bare_norm_is_called_the_module_itself() -> None:
    with pytest.raises(InputError) as caught:
        require_eval(Stubborn(3), force=False)
    assert caught.value.where == "(the module itself)"


def test_many_names_are_cut_with_their_number() -> None:
    module = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(13))).eval()
    for part in module:
        part.train()
    with pytest.raises(InputError, match="13 norms are") as caught:
        require_eval(module, force=False)
    assert caught.value.where.endswith("9 and 3 more")
