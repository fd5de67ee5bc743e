"""A norm that forward looks at, beside calling it, stays; the others go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_cases import Net, randomize
from torch import Tensor, nn

import normdeploy
from normdeploy.errors import InputError, NormdeployError
from normdeploy.foldmodule.halves import refused


def net(first: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Three convolutions with a norm each, of which ``first`` calls the first pair."""
    torch.manual_seed(0)
    module = Net(
        lambda s, x: s.bn3(s.conv3(torch.relu(s.bn2(s.conv2(torch.relu(first(s, x))))))),
        conv1=nn.Conv2d(3, 4, 3), conv2=nn.Conv2d(4, 5, 1), conv3=nn.Conv2d(5, 3, 1),
        bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(5), bn3=nn.BatchNorm2d(3),
    )  # fmt: skip
    for part in module.modules():
        randomize(part)
    return module.eval()


def _by_class(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.conv1(x)
    return s.bn1(y) if isinstance(s.bn1, nn.BatchNorm2d) else -y


def _by_type(s: Any, x: Tensor) -> Tensor:
    norms = {nn.BatchNorm2d: s.bn1}
    y: Tensor = norms[type(s.bn1)](s.conv1(x))
    return y


def _functional(s: Any, x: Tensor) -> Tensor:
    bn = s.bn1
    return F.batch_norm(s.conv1(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def _checked(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.conv1(x)
    if y.shape[1] != s.bn1.num_features:
        raise ValueError("channels")
    return s.bn1(y)


def _without_bias(s: Any, x: Tensor) -> Tensor:
    """The layer in front is called by its weight alone: a bias that appears would not be added."""
    y: Tensor = s.bn1(F.conv2d(x, s.conv1.weight))
    return y


LOOKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "class": _by_class,
    "type": _by_type,
    "weight": lambda s, x: s.bn1(s.conv1(x)) * s.bn1.weight[:, None, None],
    "eps": lambda s, x: s.bn1(s.conv1(x)) + s.bn1.eps,
    "dtype": lambda s, x: s.bn1(s.conv1(x).to(s.bn1.weight.dtype)),
    "functional": _functional,
    "checked": _checked,
}
CORE = ("class", "weight", "functional")
"""One of each kind; ``make test-real`` has them all."""


def exact(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = copy.deepcopy(module).double()(x.double())
    return result


@pytest.mark.parametrize(
    "first", [pytest.param(LOOKS[name], marks=[] if name in CORE else pytest.mark.real, id=name) for name in LOOKS]
)
def test_a_norm_that_forward_looks_at_stays_alone(first: Callable[[Any, Tensor], Tensor]) -> None:
    module, x = net(first), torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    folded, ledger = normdeploy.fold_module(module, x)
    wanted = exact(module, x)
    assert float((exact(folded, x) - wanted).abs().max() / wanted.abs().max()) < 3e-6
    assert isinstance(folded.bn1, nn.BatchNorm2d)
    assert isinstance(folded.bn2, nn.Identity)
    assert isinstance(folded.bn3, nn.Identity)
    (left,) = [entry for entry in ledger.norms() if entry.outcome == "left"]
    assert left.codes == ("NT007",)
    assert "forward looks at the layer itself" in left.reason


def test_a_bias_that_nobody_would_add_does_not_appear() -> None:
    module, x = net(_without_bias), torch.randn(2, 3, 5, 6)
    module.conv1 = nn.Conv2d(3, 4, 3, bias=False)
    folded, ledger = normdeploy.fold_module(module, x)
    wanted = exact(module, x)
    assert float((exact(folded, x) - wanted).abs().max() / wanted.abs().max()) < 3e-6
    assert [entry.module for entry in ledger.norms() if entry.outcome == "left"] == ["bn1"]


def test_a_harmless_question_keeps_nothing() -> None:
    module = net(lambda s, x: s.bn1(s.conv1(x)) if isinstance(s.bn1, nn.Module) and not s.bn1.training else x)
    folded, _ = normdeploy.fold_module(module, torch.randn(2, 3, 5, 6))
    assert isinstance(folded.bn1, nn.Identity)


def test_a_layer_norm_whose_weight_is_read_keeps_it() -> None:
    torch.manual_seed(0)
    module = Net(
        lambda s, x: s.up(s.ln2(torch.relu(s.down(s.ln1(x.to(s.ln1.weight.dtype)))))),
        ln1=nn.LayerNorm(5), down=nn.Linear(5, 4), ln2=nn.LayerNorm(4), up=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    for part in module.modules():
        randomize(part)
    x = torch.randn(2, 7, 5)
    folded, ledger = normdeploy.fold_module(module, x)
    assert isinstance(folded.ln1.weight, nn.Parameter)  # type: ignore[union-attr]  # Net keeps its parts as modules
    assert folded.ln2.weight is None  # type: ignore[union-attr]
    assert [entry.codes for entry in ledger.norms() if entry.module == "ln1"] == [("NT007",)]
    torch.testing.assert_close(exact(folded, x), exact(module, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "items", [pytest.param((5, 1), marks=pytest.mark.real, id="one"), pytest.param((3, 6), id="twice as many")]
)
def test_a_forward_that_skips_the_norm_at_another_batch_size_is_refused(items: tuple[int, int]) -> None:
    given, other = items
    module = Net(
        lambda s, x: s.fc(x) if len(x) == other else s.bn(s.fc(x)), fc=nn.Linear(3, 4), bn=nn.BatchNorm1d(4)
    ).eval()
    randomize(module.bn)  # type: ignore[arg-type]  # Net keeps its parts as modules
    with pytest.raises(NormdeployError, match="is off from the module") as caught:
        normdeploy.fold_module(module, torch.randn(given, 3))
    assert "branches on its sizes" in caught.value.fix


def test_a_batch_size_that_the_module_does_not_take_is_left_out() -> None:
    module = Net(lambda s, x: s.bn(s.fc(x.reshape(2, 3))), fc=nn.Linear(3, 4), bn=nn.BatchNorm1d(4)).eval()
    folded, _ = normdeploy.fold_module(module, torch.randn(2, 3))
    assert isinstance(folded.bn, nn.Identity)


def test_a_module_that_draws_numbers_is_refused() -> None:
    module = net(lambda s, x: s.bn1(s.conv1(x)))
    module.call = lambda s, x: s.bn1(s.conv1(x)) * torch.bernoulli(torch.full_like(x[:, :1, 2:, 2:], 0.5))
    with pytest.raises(NormdeployError):
        normdeploy.fold_module(module, torch.randn(2, 3, 5, 6))


@pytest.mark.parametrize("bad", [(), ("c",), ("a", "h"), tuple("abcdefgh")], ids=len)
def test_what_cannot_be_done_is_told_apart_in_few_trials(bad: tuple[str, ...]) -> None:
    trials = []

    def try_out(names: Sequence[str]) -> None:
        trials.append(names)
        if found := set(names) & set(bad):
            raise InputError(f"not {min(found)}")

    errors = refused("abcdefgh", try_out)
    assert {name: error.what for name, error in errors.items()} == {name: f"not {name}" for name in bad}
    assert len(trials) <= max(1, 7 * len(bad), 15 if len(bad) == 8 else 0)
