"""Modules as factories return them: unwrapped, uncompiled, no longer lazy, or refused by name."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from normdeploy.checkpoint.prepare import settle, unwrapped
from normdeploy.errors import InputError

X = torch.randn(3, 5)


def compiler(*_: object) -> Callable[..., object]:
    raise AssertionError("compiled code would run")


compiled = functools.partial(torch.compile, backend=compiler)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(torch.relu(self.a(x)))


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.part = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


class Decorated(Net):
    @compiled()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(torch.relu(self.a(x)))


def compiled_in_place() -> nn.Module:
    module = Net()
    module.compile(backend=compiler)
    return module


def compiled_forward() -> nn.Module:
    module = Net()
    module.forward = compiled(module.forward)
    return module


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: compiled(Net()), "wrapped in OptimizedModule"),
    "a compiled part": (lambda: Outer(compiled(Net())), "part was compiled"),
    "compiled twice over": (lambda: compiled(nn.DataParallel(compiled(Net()))), "wrapped in DataParallel"),
    "compiled in place": (compiled_in_place, ""),
    "a compiled forward": (compiled_forward, "forward of the module was compiled"),
    "a decorated forward": (Decorated, "forward of the module was compiled"),
    "an average": (lambda: AveragedModel(Net()), "wrapped in AveragedModel"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_is_deployed_is_the_module_as_it_was_written(kind: str) -> None:
    make, said = WRAPPED[kind]
    module, notes = unwrapped(make(), "m:f")
    assert said in "\n".join(notes)
    assert torch.equal(copy.deepcopy(module).eval()(X), Net().eval()(X))
    assert not any("_orig_mod" in name for name, _ in module.named_modules())


def test_the_compiler_of_these_tests_would_have_run() -> None:
    with pytest.raises(Exception, match="compiled code would run"):
        compiled(Net())(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: torch.jit.script(Net()), "the module itself"),
        (lambda: torch.jit.trace(Net().eval(), X), "the module itself"),
        (lambda: Outer(torch.jit.script(Net())), "part"),
        (lambda: Outer(nn.Sequential(torch.jit.trace(Net().eval(), X))), "part.0"),
    ],
)
def test_torchscript_is_refused_by_name(make: Callable[[], nn.Module], where: str) -> None:
    with pytest.raises(InputError, match="TorchScript cannot be traced") as caught:
        unwrapped(make(), "m:f")
    assert caught.value.where.startswith(f"m:f: {where}")


LAZY: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.LazyLinear(4), lambda: nn.Linear(3, 4), (2, 3)),
    "conv": (lambda: nn.LazyConv2d(4, 3), lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 5)),
    "grouped": (lambda: nn.LazyConv1d(4, 3, groups=2), lambda: nn.Conv1d(6, 4, 3, groups=2), (2, 6, 5)),
    "transposed": (lambda: nn.LazyConvTranspose2d(4, 3), lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 5, 5)),
    "batch norm": (lambda: nn.LazyBatchNorm2d(), lambda: nn.BatchNorm2d(6), (2, 6, 3, 3)),
    "no affine": (lambda: nn.LazyBatchNorm1d(affine=False), lambda: nn.BatchNorm1d(6, affine=False), (2, 6)),
}


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_layer_with_weights_is_what_its_first_call_makes_of_it(kind: str) -> None:
    lazy, usual, shape = LAZY[kind]
    module, other = Outer(lazy()).eval(), Outer(usual()).eval()
    module.load_state_dict(other.state_dict())
    settle(module, "m:f")
    assert type(module.part) is type(other.part)
    assert repr(module.part) == repr(other.part)
    x = torch.randn(shape)
    assert torch.equal(copy.deepcopy(module)(x), other(x))


def test_a_lazy_layer_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="have no shape yet") as caught:
        settle(Outer(nn.LazyLinear(4)), "m:f")
    assert caught.value.where == "m:f: part.weight, part.bias"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_computed_can_be_copied() -> None:
    module = Outer(torch.nn.utils.weight_norm(nn.Linear(5, 4)))
    expected = module(X).detach()
    settle(module, "m:f")
    assert torch.equal(copy.deepcopy(module)(X), expected)


def test_other_attributes_stay_as_they_are() -> None:
    module = Net()
    module.lock, module.generator = threading.Lock(), (n for n in range(3))
    kept = module.lock, module.generator
    settle(unwrapped(module, "m:f")[0], "m:f")
    assert (module.lock, module.generator) == kept
