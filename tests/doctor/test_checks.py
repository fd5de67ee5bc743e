"""Each check: a module that has what it looks for, one that has not, and nothing of a healthy network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normdeploy.doctor.checks import CHECKS, check
from normdeploy.doctor.codes import PAGES
from normdeploy.doctor.findings import SEVERITIES, chosen, finding
from normdeploy.errors import InputError

Make = Callable[[], nn.Module]


def trained(layer: Any = None, **tensors: Any) -> nn.Module:
    """A network in eval mode whose one norm has seen data; ``tensors`` are other numbers of it."""
    norm = nn.BatchNorm1d(4) if layer is None else layer
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.2, 0.1]))
        norm.running_var.copy_(torch.tensor([1.5, 0.5, 2.0, 0.7]))
    for name, values in tensors.items():
        getattr(norm, name).data[: len(values)] = torch.tensor(values)
    return nn.ModuleDict({"norm": norm}).eval()


def in_training() -> nn.Module:
    module = trained()
    module["norm"].train()  # type: ignore[index]  # a ModuleDict
    return module


def two_names(*, same: bool) -> nn.Module:
    module = trained()
    module["again"] = module["norm"] if same else trained()["norm"]  # type: ignore[index, operator]  # a ModuleDict
    return module


CASES: dict[str, tuple[Make, Make, str]] = {
    "ND001": (in_training, lambda: trained().train(), "in training mode inside a module in eval mode"),
    "ND002": (lambda: nn.ModuleDict({"norm": nn.BatchNorm1d(4)}).eval(), trained, "no batch has updated them"),
    "ND003": (
        lambda: trained(nn.BatchNorm1d(4, track_running_stats=False)),
        lambda: trained(nn.InstanceNorm1d(4)),  # which is meant to
        "keeps no running statistics",
    ),
    "ND004": (
        lambda: trained(running_var=[float("nan"), float("inf")]),
        lambda: trained(running_var=[1e30]),
        "running_var is NaN or infinite in 2 of 4",
    ),
    "ND005": (
        lambda: trained(running_var=[-0.5]),
        lambda: trained(running_var=[0.0]),
        "negative in 1 of 4 channels, down to -0.5, and 1 stay below 0",
    ),
    "ND006": (
        lambda: trained(running_var=[0.0, 0.0], weight=[2.0, 3.0]),
        lambda: trained(running_var=[5.6e-45]),
        "is 0 in 2 of 4 channels: eps alone decides what it is divided by, and folded weights are "
        "multiplied by up to 948.7",
    ),
    "ND007": (
        lambda: trained(running_var=[5.6e-45]),
        lambda: trained(running_var=[1.2e-38]),
        "subnormal in 1 of 4 channels, 5.6e-45 at least",
    ),
    "ND008": (
        lambda: trained(nn.LayerNorm(4), weight=[-1.5e-9]),
        lambda: trained(nn.LayerNorm(4), weight=[1e-3]),
        "1 of 4 channels (-1.5e-09; the largest is 1)",
    ),
    "ND009": (
        lambda: trained(running_var=[0.0], weight=[6.0]),
        lambda: trained(running_var=[0.0], weight=[3.0]),
        "multiplies 1 of 4 channels by more than 1000, by 1897 at most",
    ),
    "ND012": (
        lambda: trained(nn.BatchNorm1d(4, momentum=0.0)),
        lambda: trained(nn.BatchNorm1d(4, momentum=None)),
        "momentum is 0",
    ),
    "ND013": (
        lambda: trained(nn.BatchNorm1d(4, eps=0.7)),
        lambda: trained(nn.BatchNorm1d(4, eps=1e-3)),
        "eps is 0.7",
    ),
    "ND014": (lambda: trained(nn.LayerNorm(1)), lambda: trained(nn.LayerNorm(2)), "its bias comes out"),
    "ND015": (
        lambda: trained(running_var=[497_000.0]),
        lambda: trained(running_var=[60_000.0]),
        "over 65504 in 1 of 4 channels, 497,000 at most (running_var up to 497,000)",
    ),
    "ND017": (lambda: two_names(same=True), lambda: two_names(same=False), "it is also again"),
    "ND020": (
        lambda: trained(nn.LayerNorm(4, eps=1e-12)),
        lambda: trained(nn.BatchNorm1d(4, eps=1e-12)),  # its variances are far above
        "eps is 1e-12, which is 0 in float16",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_what_is_looked_for_is_found(code: str) -> None:
    make, _, words = CASES[code]
    (found,) = [each for each in check(make()) if each.code == code]
    assert found.module == "norm"
    assert words in found.message
    assert str(found).startswith(f"{code} {SEVERITIES[code]} norm: ")


@pytest.mark.parametrize("code", CASES)
def test_what_is_near_it_is_not(code: str) -> None:
    _, make, _ = CASES[code]
    assert code not in {each.code for each in check(make())}


def test_every_check_has_a_case_and_a_page() -> None:
    assert set(CASES) == set(CHECKS)
    assert {page.code for page in PAGES} == set(SEVERITIES)


@pytest.mark.parametrize(
    "layer", [None, nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, track_running_stats=True)]
)
def test_of_a_healthy_network_nothing_is_found(layer: nn.Module | None) -> None:
    assert list(check(trained(layer))) == []


@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_an_eps_that_cannot_keep_a_division_finite_is_found(eps: float) -> None:
    found = [each for each in check(trained(nn.LayerNorm(4, eps=eps))) if each.code == "ND013"]
    assert "divided by 0" in found[0].message


def test_scales_of_a_norm_in_16_bits_are_read_in_float64() -> None:
    assert list(check(trained().half())) == []


NAN = float("nan")


@pytest.mark.parametrize(
    "tensors",
    [
        {"running_var": [NAN, -1.0, 0.0, 5.6e-45]},
        {"running_var": [0.0, 5.6e-45, 1e-12, 1e30], "weight": [NAN, NAN, 1.0, 1.0]},
        {"running_mean": [NAN, 1e4], "running_var": [float("inf"), 1.0]},
        {"weight": [float("inf"), 5e3, NAN]},
    ],
    ids=["variance", "scale", "mean", "infinite scale"],
)
def test_nan_in_one_channel_spoils_no_number_of_the_others(tensors: dict[str, list[float]]) -> None:
    found = {each.code: each.message for each in check(trained(**tensors))}
    assert "ND004" in found
    assert len(found) > 1
    for code, message in found.items():
        if code != "ND004":
            assert not {"nan", "inf", "nan:", "inf:"} & set(message.replace(",", " ").split()), message
    if "ND005" in found:
        assert "negative in 1 of 4 channels, down to -1, and" in found["ND005"]


# -- which are shown ------------------------------------------------------------------------------

FOUND = [finding(code, "norm", "words") for code in ("ND001", "ND006", "ND013")]


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        ((), (), ["ND001", "ND006", "ND013"]),
        (("ND00*",), (), ["ND001", "ND006"]),
        ((), ("ND006",), ["ND001", "ND013"]),
        (("ND00*",), ("ND001",), ["ND006"]),
        (("nd00*",), ("nd001",), ["ND006"]),
    ],
)
def test_codes_are_selected_and_ignored(select: tuple[str, ...], ignore: tuple[str, ...], codes: list[str]) -> None:
    assert [each.code for each in chosen(FOUND, select, ignore)] == codes


def test_a_code_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="no check has the code 'ND999'") as refused:
        chosen(FOUND, ("ND999",), ())
    assert refused.value.where == "--select"
