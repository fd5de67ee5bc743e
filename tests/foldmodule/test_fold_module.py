"""Modules whose weights took in their norms are what they were, in float64; what a module cannot express stays."""

from __future__ import annotations

import copy
import re
import threading
from typing import Any

import pytest
import torch
from module_cases import CASES, ModuleCase, randomize
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

import normdeploy
from normdeploy.errors import InputError

CORE = (
    "conv without bias, bn", "grouped transposed conv, bn", "square linear of ones, bn", "bn, linear",
    "linear on 3 axes, flattened, bn", "the same without bias", "as many steps as features, bn over the steps",
    "one conv with two norms", "one norm, once behind a conv and once behind a relu", "one conv, one norm, twice",
    "one weight in two layers", "RepVGG block", "relu, bn, padded conv", "ln, two linears", "pre-norm encoder",
    "conv, frozen bn", "conv, bn with its activation inside", "weight_norm", "standardized conv, bn",
    "linear, layer scale",
)  # fmt: skip
"""One of each kind; ``make test-real`` has them all."""


def case(name: str) -> ModuleCase:
    return next(each for each in CASES if each.name == name)


def in_float64(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        output: Tensor = copy.deepcopy(module).double()(*(tensor.double() for tensor in inputs))
    return output


def relative(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "each", [pytest.param(c, marks=[] if c.name in CORE else pytest.mark.real) for c in CASES], ids=lambda c: c.name
)
def test_the_folded_module_is_the_module(each: ModuleCase) -> None:
    module, inputs = each.module(), each.inputs()
    before = copy.deepcopy(module.state_dict())
    folded, ledger = normdeploy.fold_module(module, inputs)
    # the weights are rounded to float32 once, the sums of a cancelling channel by some more
    assert relative(in_float64(folded, inputs), each.module().double()(*(x.double() for x in inputs)).detach()) < 3e-6
    gone = {entry.module for entry in ledger.norms() if entry.outcome != "left"}
    left = [entry for entry in ledger.norms() if entry.outcome == "left"]
    assert (len(gone), len({entry.module for entry in left})) == (each.gone, each.left)
    assert all(entry.reason for entry in left)
    assert not any(part.training for part in folded.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_core_cases_are_there() -> None:
    assert set(CORE) <= {each.name for each in CASES}
    assert len({each.name for each in CASES}) == len(CASES) >= 49


def test_a_choice_among_the_zeros_of_a_relu_is_no_other_module() -> None:
    class Places(nn.Module):
        """(B, 6) → the rows of the largest, more of them than are not 0."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            places: Tensor = torch.relu(self.norm(self.linear(x))).T.topk(min(150, len(x)), dim=1).indices.T
            return places

    torch.manual_seed(0)
    folded, _ = normdeploy.fold_module(Places().eval(), torch.randn(200, 6))
    assert isinstance(folded.norm, nn.Identity)


def test_norms_become_identities_and_biases_appear() -> None:
    each = case("the same without bias")
    folded, _ = normdeploy.fold_module(each.module(), each.inputs())
    assert isinstance(folded.bn, nn.Identity)
    assert isinstance(folded.fc, nn.Linear)
    assert folded.fc.bias is not None


def test_a_layer_norm_loses_scale_and_bias() -> None:
    each = case("ln, two linears")
    folded, _ = normdeploy.fold_module(each.module(), each.inputs())
    assert isinstance(folded.ln, nn.LayerNorm)
    assert (folded.ln.weight, folded.ln.bias) == (None, None)


def test_a_norm_with_its_activation_inside_keeps_the_activation() -> None:
    each = case("conv, bn with its activation inside")
    folded, _ = normdeploy.fold_module(each.module(), each.inputs())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(folded[1](x), torch.relu(x))


def test_a_refusal_has_its_code() -> None:
    each = case("one conv with two norms")
    _, ledger = normdeploy.fold_module(each.module(), each.inputs())
    assert {entry.codes for entry in ledger.norms()} == {("NT001",)}


def test_a_parametrized_module_stays_as_it_is() -> None:
    each = case("weight_norm")
    module = each.module()
    with torch.no_grad():
        before = module(*each.inputs())
        normdeploy.fold_module(module, each.inputs())
        assert torch.equal(module(*each.inputs()), before)


def test_torch_compiles_it() -> None:
    each = case("pre-norm encoder")
    folded, _ = normdeploy.fold_module(each.module(), each.inputs())
    compiled: Any = torch.compile(folded, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*each.inputs()), folded(*each.inputs()))


def test_arguments_by_name_and_values_that_are_no_tensors() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor, *, double: bool = False) -> dict[str, Tensor]:
            y = self.bn(self.fc(x))
            return {"y": y * 2 if double else y}

    module = Scaled().eval()
    randomize(module.bn)
    x = torch.randn(5, 3)
    folded, ledger = normdeploy.fold_module(module, {"x": x, "double": True})
    assert [entry.outcome for entry in ledger.norms()] == ["folded"]
    with torch.no_grad():
        torch.testing.assert_close(folded(x)["y"], module(x)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv, bn", "bn, linear"])
def test_a_module_in_float64_is_folded_with_the_eps_that_it_has(name: str) -> None:
    each = case(name)
    module, inputs = each.module().double(), tuple(tensor.double() for tensor in each.inputs())
    for part in module.modules():
        if hasattr(part, "running_var"):
            part.running_var.mul_(1e-5)  # so that eps tells
    folded, ledger = normdeploy.fold_module(module, inputs)
    assert [entry.outcome for entry in ledger.norms()] == ["folded"]
    assert relative(in_float64(folded, inputs), in_float64(module, inputs)) < 1e-13


# -- what is refused -----------------------------------------------------------------------------


def _conv_bn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def test_a_norm_in_training_mode_is_refused() -> None:
    module = _conv_bn()
    module[1].train()
    with pytest.raises(InputError, match="training mode"):
        normdeploy.fold_module(module, torch.randn(1, 3, 5, 5))


class Bag(nn.Module):
    """An EmbeddingBag, which is exported as scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.linear, self.norm = nn.EmbeddingBag(20, 4, mode="mean"), nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.linear(self.bag(ids)))  # type: ignore[no-any-return]  # a module returns anything


class Steps(nn.Module):
    """A scan over the rows, whose body is a graph of its own, and a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            carry = 0.5 * carry + row
            return carry.clone(), carry.clone()

        return self.norm(self.linear(scan(step, torch.zeros_like(x[0]), x)[1]))  # type: ignore[no-any-return]  # a module returns anything


class Branch(nn.Module):
    """A norm in one of two branches, of which both are exported, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cond(x.sum() > 0, lambda x: self.inner(self.first(x)), lambda x: x * 2, (x,))
        return self.norm(self.linear(x))  # type: ignore[no-any-return]  # a module returns anything


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Bag, torch.randint(0, 20, (3, 5))),
        (Steps, torch.ones(3, 4)),
        (Branch, torch.ones(3, 4)),
        (Branch, -torch.ones(3, 4)),
    ],
    ids=["bag", "scan", "branch", "other branch"],
)
def test_norms_beside_bags_scans_and_branches_fold(make: type[nn.Module], inputs: Tensor) -> None:
    torch.manual_seed(0)
    module = make().eval()
    randomize(module)
    folded, ledger = normdeploy.fold_module(module, inputs)
    assert next(entry for entry in ledger.norms() if entry.module == "norm").outcome == "folded"
    assert type(folded.norm) is nn.Identity
    given = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        assert relative(folded.double()(given), module.double()(given)) < 3e-6


def test_a_hook_of_the_module_itself_is_called_as_ever() -> None:
    """It looks for arguments by position, as forward's caller gives them."""
    module = _conv_bn()
    module.register_forward_pre_hook(lambda part, given: (given[0] / 255,))
    x = torch.rand(2, 3, 5, 5) * 255
    folded, ledger = normdeploy.fold_module(module, x)
    assert [entry.outcome for entry in ledger.norms()] == ["folded"]
    assert relative(in_float64(folded, (x,)), in_float64(module, (x,))) < 3e-6


def test_hooks_are_refused() -> None:
    module = _conv_bn()
    module[0].register_forward_hook(lambda part, given, output: None)
    with pytest.raises(InputError, match="hooks"):
        normdeploy.fold_module(module, torch.randn(1, 3, 5, 5))


def test_sixteen_bits_are_refused_and_the_advice_works() -> None:
    module = _conv_bn().half()
    with pytest.raises(InputError, match="rounded twice") as refused:
        normdeploy.fold_module(module, torch.randn(1, 3, 5, 5).half())
    assert "fold_module(module.float(), ...)[0].half()" in refused.value.fix
    folded = normdeploy.fold_module(module.float(), torch.randn(1, 3, 5, 5))[0].half()
    assert folded[0].weight.dtype == torch.float16


class Mixed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


def test_forward_in_sixteen_bits_is_refused_and_the_advice_works() -> None:
    module, x = Mixed(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval(), torch.randn(3, 5)
    randomize(module)
    with pytest.raises(InputError, match="forward computes in 16 bits") as refused:
        normdeploy.fold_module(module, x)
    assert "take torch.autocast and casts to 16 bits out of forward, and call this outside" in refused.value.fix
    plain = nn.Sequential(*module).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="forward computes in 16 bits"):
        normdeploy.fold_module(plain, x)
    assert type(normdeploy.fold_module(plain, x)[0][1]) is nn.Identity


def test_inputs_that_forward_does_not_take_are_refused() -> None:
    with pytest.raises(InputError, match="not what forward takes"):
        normdeploy.fold_module(_conv_bn(), (torch.randn(1, 3, 5, 5), 1, 2, 3))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "torch.compile"])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    folded, ledger = normdeploy.fold_module(wrap(_conv_bn()), torch.randn(1, 3, 5, 5))
    assert isinstance(folded, nn.Sequential)
    assert any(note.code == "NT006" and "wrapped" in note.text for note in ledger.notes)


class Locked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.lock = threading.Lock()


class Single(nn.Sequential):
    """A module of which there is to be one alone."""

    def __deepcopy__(self, memo: Any) -> Single:
        return self


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Locked(), "the module cannot be copied: cannot pickle '_thread.lock' object"),
        (Single(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "its copy shares modules with it"),
        (lambda x: x, "a function is no torch.nn.Module"),
    ],
    ids=["lock", "single", "function"],
)
def test_what_cannot_be_copied_is_one_error_and_stays_as_it_is(module: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        normdeploy.fold_module(module, torch.zeros(2, 3, 4, 4))
    if isinstance(module, Single):
        assert isinstance(module[1], nn.BatchNorm2d)
