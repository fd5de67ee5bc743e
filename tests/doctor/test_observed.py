"""What data show of a norm, and moments that are merged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normdeploy.doctor.moments import Moments
from normdeploy.doctor.observed import check_calls, check_data, observe
from normdeploy.doctor.weights import check_weight


def trained() -> nn.Sequential:
    """A norm whose statistics are those of values of mean 0.5 and deviation 2."""
    norm = nn.BatchNorm1d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(4.0)
    return nn.Sequential(norm).eval()


def drawn(mean: float = 0.5, deviation: float = 2.0) -> Tensor:
    return mean + deviation * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def found(module: nn.Module, *batches: Tensor) -> list[str]:
    observed = observe(module, [lambda x=x: module(x) for x in batches])  # type: ignore[misc]  # a default that binds
    return [each.code for each in (*check_calls(observed), *check_data(observed))]


def test_data_that_fit_are_no_finding() -> None:
    assert found(trained(), drawn(), drawn()) == []


@pytest.mark.parametrize(("mean", "deviation"), [(4.0, 2.0), (0.5, 0.02), (0.5, 20.0)])
def test_statistics_that_do_not_fit_are_found(mean: float, deviation: float) -> None:
    module = trained()
    x = drawn(mean, deviation)
    (each,) = check_data(observe(module, [lambda: module(x)]))
    assert each.code == "ND018"
    off = float(((x.double().mean(0) - 0.5).abs() / 2).median())
    assert f"half of the channels lie {off:.2g} standard deviations off" in each.message


def test_too_few_values_say_nothing() -> None:
    assert found(trained(), drawn(9.0)[:4]) == []


@pytest.mark.parametrize(("items", "codes"), [(16, ["ND018"]), (15, [])])
def test_a_smaller_drift_is_found_where_enough_items_tell(items: int, codes: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 2.0 * torch.randn(items, 4, 50, generator=generator)
    assert found(trained(), x) == []
    x[:, :2] += 2 * torch.tensor([0.9, 1.2])[:, None]  # deviations; of half of the channels not one
    assert found(trained(), x) == codes


def test_a_norm_that_is_called_by_name_is_seen() -> None:
    module = trained()
    x = drawn(9.0)
    (seen,) = observe(module[0], [lambda: module[0](input=x)])
    assert seen.moments is not None
    assert (seen.calls, seen.moments.count) == (1, 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_drift(value: float) -> None:
    x = drawn()
    x[3, 1] = value
    assert "ND018" not in found(trained(), x)


def test_squares_that_overflow_float16_are_found() -> None:
    norm = nn.Sequential(nn.LayerNorm(4)).eval()
    assert found(norm, torch.full((2, 4), 256.5)) == ["ND016"]
    assert found(norm, torch.full((2, 4), 255.0)) == []
    assert found(trained(), torch.full((2, 4), 256.5)) == []  # running statistics square nothing


def test_a_norm_that_is_called_twice_is_found() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = trained()[0]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(torch.relu(self.norm(x)))
            return out

    assert "ND017" in found(Twice().eval(), drawn(), drawn())


def test_no_hook_is_left() -> None:
    module = trained()
    found(module, drawn())
    assert not module[0]._forward_pre_hooks


# -- moments --------------------------------------------------------------------------------------


def test_moments_merge_in_any_order_to_those_of_all_values() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [1e4 + torch.randn(n, 3, 2, generator=generator, dtype=torch.float64) for n in (2, 5, 1)]
    together = torch.cat(parts).movedim(1, 0).flatten(1)
    for order in itertools.permutations(parts):
        first, *rest = map(Moments.of, order)
        for each in rest:
            first = first.merged(each)
        torch.testing.assert_close(first.mean, together.mean(1), rtol=1e-14, atol=0)
        torch.testing.assert_close(first.variance, together.var(1), rtol=1e-9, atol=0)
        assert (first.count, first.batches, first.largest) == (16, 3, float(together.abs().max()))


# -- weights in 16 bits ---------------------------------------------------------------------------


def weight(first: float) -> np.ndarray:
    array = np.full((3, 2, 1, 1), 0.5, np.float32)
    array[0] = first
    return array


@pytest.mark.parametrize(
    ("first", "codes"),
    [(1e5, ["ND010"]), (65504.0, []), (1e-9, ["ND011"]), (7e-5, []), (0.0, []), (1e-39, ["ND011", "ND011"])],
)
def test_weights_that_overflow_or_flush_are_found(first: float, codes: list[str]) -> None:
    assert [each.code for each in check_weight("conv", weight(first), 0)] == codes


def test_channels_are_those_of_the_axis() -> None:
    (each,) = check_weight("fc", weight(1e-9)[:, :, 0, 0].T, -1)
    assert "in 1 of 3 channels, of which 1 become 0: 1e-09 at least" in each.message


def test_what_was_lost_before_the_fold_is_not_its_doing() -> None:
    assert list(check_weight("conv", weight(1e-9), 0, weight(2e-9))) == []
    assert list(check_weight("conv", weight(1e6), 0, weight(1e5))) == []
    assert [each.code for each in check_weight("conv", weight(1e-9), 0, weight(1.0))] == ["ND011"]
