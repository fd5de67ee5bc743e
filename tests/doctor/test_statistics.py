from __future__ import annotations

import pytest
import torch
from torch import nn

from normdeploy.doctor.statistics import require_valid_statistics
from normdeploy.errors import InputError


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("running_mean", float("nan"), "bn.running_mean: NaN or infinite in 1 of 3 channels"),
        ("running_mean", float("-inf"), "bn.running_mean: NaN or infinite in 1 of 3 channels"),
        ("running_var", float("inf"), "bn.running_var: NaN or infinite in 1 of 3 channels"),
        ("running_var", -1e-30, "bn.running_var: negative in 1 of 3 channels"),
    ],
)
def test_what_no_batch_can_have_produced_is_refused(layer: type[nn.Module], kind: str, value: float, what: str) -> None:
    module = nn.ModuleDict({"bn": layer(3), "fine": nn.BatchNorm1d(3)})
    module["bn"].get_buffer(kind)[1] = value
    with pytest.raises(InputError) as caught:
        require_valid_statistics(module)
    assert caught.value.where == what


def test_all_are_named_in_one_error() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(2, track_running_stats=True))
    module[0].running_var.fill_(-1)
    module[1].running_mean[0] = float("nan")
    with pytest.raises(InputError) as caught:
        require_valid_statistics(module)
    assert caught.value.where == (
        "0.running_var: negative in 3 of 3 channels; 1.running_mean: NaN or infinite in 1 of 2 channels"
    )


def test_a_bare_norm() -> None:
    layer = nn.BatchNorm1d(3)
    layer.running_var.fill_(-1)
    with pytest.raises(InputError) as caught:
        require_valid_statistics(layer)
    assert caught.value.where.startswith("running_var")


def test_what_trained_models_have_is_valid() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    module[0].running_var.copy_(torch.tensor([0.0, 5.6e-45, 497_000.0]))
    module[0].running_mean.fill_(-7)
    require_valid_statistics(module)
