from __future__ import annotations

import torch
from torch import nn

from normdeploy.doctor.inventory import NormInfo, norms


class Frozen(nn.Module):
    """The FrozenBatchNorm2d that detectors carry: buffers only, no class of torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))
        self.eps = 1e-5


class Mine(nn.BatchNorm2d):
    pass


def test_every_kind_of_norm_is_found_by_name() -> None:
    layers: dict[str, nn.Module] = {
        "bn1": nn.BatchNorm1d(3),
        "bn2": nn.BatchNorm2d(3),
        "bn3": nn.BatchNorm3d(3),
        "sync": nn.SyncBatchNorm(3),
        "lazy": nn.LazyBatchNorm2d(),
        "in1": nn.InstanceNorm1d(3),
        "in2": nn.InstanceNorm2d(3),
        "in3": nn.InstanceNorm3d(3),
        "ln": nn.LayerNorm(3),
        "gn": nn.GroupNorm(1, 3),
        "rms": nn.RMSNorm(3),
        "mine": Mine(3),
        "frozen": Frozen(),
    }
    net = nn.ModuleDict({**layers, "conv": nn.Conv2d(3, 3, 1), "relu": nn.ReLU(), "local": nn.LocalResponseNorm(2)})
    assert {norm.name: norm.kind for norm in norms(net)} == {k: type(v).__name__ for k, v in layers.items()}


def test_a_bare_norm_and_a_shared_one() -> None:
    assert [norm.name for norm in norms(nn.BatchNorm1d(3))] == [""]
    shared = nn.BatchNorm1d(3)
    assert [norm.name for norm in norms(nn.Sequential(shared, nn.ReLU(), shared))] == ["0"]


def test_facts_of_each_form() -> None:
    def info(layer: nn.Module) -> NormInfo:
        (found,) = norms(layer)
        return found

    plain = info(nn.BatchNorm2d(3, eps=1e-3))
    assert plain == NormInfo("", "BatchNorm2d", True, batch_statistics=False, running=True, affine=True, eps=1e-3)
    assert not info(nn.BatchNorm2d(3).eval()).training
    untracked = info(nn.BatchNorm2d(3, track_running_stats=False))
    assert (untracked.batch_statistics, untracked.running) == (True, False)
    assert not info(nn.BatchNorm2d(3, affine=False)).affine
    instance = info(nn.InstanceNorm2d(3))
    assert (instance.batch_statistics, instance.running, instance.affine) == (False, False, False)
    assert info(nn.InstanceNorm2d(3, track_running_stats=True)).running
    assert not info(nn.LayerNorm(3, elementwise_affine=False)).affine
    assert info(nn.RMSNorm(3)).eps is None
    assert info(Frozen()).running


def test_batch_statistics_is_what_eval_really_computes() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(5, 3), torch.randn(7, 3)
    for layer in (nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)):
        layer.eval()
        alone, together = layer(x), layer(torch.cat([x, other]))[:5]
        assert norms(layer)[0].batch_statistics != torch.equal(alone, together)


def test_a_flag_flipped_after_construction_does_not_hide_the_running_statistics() -> None:
    layer = nn.BatchNorm1d(3)
    layer.track_running_stats = False
    assert norms(layer)[0].running
    assert not norms(layer)[0].batch_statistics
