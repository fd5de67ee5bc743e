"""Statistics estimated again: what torch's own functions give, in any order, from several machines, gone on with."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normdeploy.cli import main
from normdeploy.doctor import partial
from normdeploy.errors import InputError
from normdeploy.pipeline.calibrate import calibrate

NETS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
    )


def seed():
    return nn.Sequential(nn.BatchNorm3d(2))


def bare():
    return nn.BatchNorm3d(2)
"""
INPUT = "input:N=1..4..8x3x9x7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("calibrate")
    (made / "calibrated_nets.py").write_text(NETS)
    generator = np.random.default_rng(0)
    for name, items in {"a": 20, "b": 12}.items():
        np.savez(made / f"{name}.npz", input=(3 * generator.standard_normal((items, 3, 9, 7)) + 1).astype(np.float32))
    return made


@pytest.fixture(autouse=True)
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test import the networks itself: what a command has put on the path is gone when it ends."""
    monkeypatch.syspath_prepend(folder)


def run(folder: Path, **options: Any) -> Any:
    return calibrate("calibrated_nets:net", [INPUT], app_dir=folder, batch=4, **options)


def batches(folder: Path, *names: str) -> list[Tensor]:
    return [part for name in names for part in torch.from_numpy(np.load(folder / f"{name}.npz")["input"]).split(4)]


def updated(folder: Path, *names: str) -> nn.Module:
    """The network after torch's own update_bn."""
    import calibrated_nets

    module: nn.Module = calibrated_nets.net()
    update_bn(batches(folder, *names), module)
    return module.eval()


def largest(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert set(actual) == set(wanted)
    return max(
        float(((actual[n] - wanted[n]).abs() / wanted[n].abs().clamp(min=1e-3)).max()) for n in wanted if "running" in n
    )


def test_it_is_what_update_bn_gives(folder: Path, tmp_path: Path) -> None:
    result = run(folder, out=tmp_path / "new.safetensors", data=[folder / "a.npz", folder / "b.npz"])
    found, wanted = load_file(tmp_path / "new.safetensors"), updated(folder, "a", "b").state_dict()
    assert largest(found, dict(wanted)) < 1e-6
    assert found["1.num_batches_tracked"] == wanted["1.num_batches_tracked"] == result.batches == 8
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if "running" not in name)


def test_the_order_does_not_matter_and_pooled_is_the_variance_of_all(folder: Path, tmp_path: Path) -> None:
    for name, data in {"ab": ("a", "b"), "ba": ("b", "a")}.items():
        run(folder, out=tmp_path / name, data=[folder / f"{each}.npz" for each in data], pooled=True)
    one, other = load_file(tmp_path / "ab"), load_file(tmp_path / "ba")
    assert largest(one, other) < 1e-6
    module = updated(folder, "a")
    with torch.no_grad():
        reached = module[0](torch.cat(batches(folder, "a", "b"))).double().movedim(1, 0).flatten(1)  # type: ignore[index]
    torch.testing.assert_close(one["1.running_var"].double(), reached.var(1), rtol=1e-6, atol=0)


def test_parts_of_several_machines_are_merged_exactly(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(folder, partial=tmp_path / name, data=folder / f"{name}.npz")
    run(folder, out=tmp_path / "merged", merge=[tmp_path / "a", tmp_path / "b"])
    run(folder, out=tmp_path / "whole", data=[folder / "a.npz", folder / "b.npz"])
    assert largest(load_file(tmp_path / "merged"), load_file(tmp_path / "whole")) < 1e-7


def test_it_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["normdeploy.pipeline.calibrate"], "_EVERY", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(folder, partial=tmp_path / "part", data=folder / "a.npz", counted=stop)
    assert partial.read(tmp_path / "part").done == 2
    run(folder, partial=tmp_path / "part", data=folder / "a.npz", out=tmp_path / "new")
    assert largest(load_file(tmp_path / "new"), dict(updated(folder, "a").state_dict())) < 1e-6


def test_only_some_norms(folder: Path, tmp_path: Path) -> None:
    result = run(folder, out=tmp_path / "new", data=folder / "a.npz", only=["4"])
    found = load_file(tmp_path / "new")
    assert [row.module for row in result.rows] == ["4"]
    assert torch.equal(found["1.running_mean"], torch.zeros(4))
    assert found["4.running_mean"].any()


def test_a_momentum_is_torchs_own_exactly(folder: Path, tmp_path: Path) -> None:
    """The example that the idea came with: 3 x 2 x 2 x 2 x 3, momentum 0.3, two batches."""
    data = np.random.default_rng(0).standard_normal((6, 2, 2, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input=data)
    calibrate(
        "calibrated_nets:seed", ["input:3x2x2x2x3".replace("3x2", "N=1..3..6x2", 1)], tmp_path / "new", app_dir=folder,
        data=tmp_path / "data.npz", batch=3, momentum=0.3,
    )  # fmt: skip
    norm = nn.BatchNorm3d(2, momentum=0.3).train()
    for part in torch.from_numpy(data).split(3):
        norm(part)
    found = load_file(tmp_path / "new")
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[f"0.{name}"], norm.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "a.npz"}, "nowhere to write"),
        ({"out": "x"}, "there are no data"),
        ({"out": "x", "data": "a.npz", "only": ["7"]}, "is called '7'"),
        ({"out": "x", "data": "a.npz", "momentum": 0.1, "partial": "p"}, "cannot be merged"),
        ({"out": "x", "data": "a.npz", "momentum": 0.0}, "a momentum lies above 0"),
        ({"out": "a.npz", "data": "a.npz"}, "the output is the input"),
        ({"out": "x", "merge": ["a.npz"]}, "no partial result"),
    ],
)
def test_what_cannot_be_is_one_error(folder: Path, options: dict[str, Any], words: str) -> None:
    placed = {
        name: folder / value
        if isinstance(value, str)
        else [folder / each for each in value]
        if name == "merge"
        else value
        for name, value in options.items()
    }
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=words):
        run(folder, **placed)
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


def test_batches_of_one_value_have_no_variance(tmp_path: Path, folder: Path) -> None:
    np.savez(tmp_path / "one.npz", input=np.ones((1, 2, 1, 1, 1), np.float32))
    with pytest.raises(InputError, match="more than 1 value per channel"):
        calibrate(
            "calibrated_nets:seed",
            ["input:Nx2x1x1x1".replace("N", "N=1..1..2")],
            tmp_path / "new",
            app_dir=folder,
            data=tmp_path / "one.npz",
        )


def test_a_partial_result_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    import calibrated_nets

    run(folder, partial=tmp_path / "part", data=folder / "a.npz")
    torch.manual_seed(1)
    other = copy.deepcopy(calibrated_nets.net())
    with torch.no_grad():
        other[0].weight.add_(1)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other weights"):
        run(folder, out=tmp_path / "new", merge=[tmp_path / "part"], weights=tmp_path / "other.safetensors")


def test_parts_are_merged_only_for_the_norms_that_they_were_counted_for(folder: Path, tmp_path: Path) -> None:
    """What reaches the second norm depends on whether the first normalizes by its batch, or by its old statistics."""
    for name in ("a", "b"):
        run(folder, partial=tmp_path / name, data=folder / f"{name}.npz")
        run(folder, partial=tmp_path / f"{name}4", data=folder / f"{name}.npz", only=["4"])
    parts, only = [tmp_path / "a", tmp_path / "b"], [tmp_path / "a4", tmp_path / "b4"]
    with pytest.raises(InputError, match="other norms normalized by their batch too") as refused:
        run(folder, out=tmp_path / "new", merge=parts, only=["4"])
    assert refused.value.where == "1"
    with pytest.raises(InputError, match="what --only leaves out"):
        run(folder, out=tmp_path / "new", merge=only)
    assert not (tmp_path / "new").exists()
    run(folder, out=tmp_path / "merged", merge=only, only=["4"])
    run(folder, out=tmp_path / "whole", data=[folder / "a.npz", folder / "b.npz"], only=["4"])
    assert largest(load_file(tmp_path / "merged"), load_file(tmp_path / "whole")) < 1e-7


def test_a_partial_result_of_other_statistics_in_front_is_refused(folder: Path, tmp_path: Path) -> None:
    import calibrated_nets

    run(folder, partial=tmp_path / "part", data=folder / "a.npz", only=["4"])
    other = copy.deepcopy(calibrated_nets.net())
    other[1].running_mean.add_(1)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other statistics"):
        run(folder, out=tmp_path / "new", merge=[tmp_path / "part"], only=["4"], weights=tmp_path / "other.safetensors")


def test_the_command_prints_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["calibrate", "--app-dir", str(folder), "--model", "calibrated_nets:net", "--input", INPUT]
    assert main([*command, "--data", str(folder / "a.npz"), "--out", str(tmp_path / "new.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "1 batch" in said
    assert str(tmp_path / "new.safetensors") in said


def test_the_same_partial_result_is_not_counted_twice(folder: Path, tmp_path: Path) -> None:
    run(folder, partial=tmp_path / "part", data=folder / "a.npz")
    (tmp_path / "copy").write_bytes((tmp_path / "part").read_bytes())
    for other in ("part", "copy"):
        with pytest.raises(InputError, match="would be counted twice"):
            run(folder, out=tmp_path / "new", merge=[tmp_path / "part", tmp_path / other])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["old.safetensors", "hard", "soft"])
def test_the_old_checkpoint_is_never_written_over(folder: Path, tmp_path: Path, name: str) -> None:
    import calibrated_nets

    old = tmp_path / "old.safetensors"
    save_file(calibrated_nets.net().state_dict(), old)
    (tmp_path / "hard").hardlink_to(old)
    (tmp_path / "soft").symlink_to(old)
    before = old.read_bytes()
    with pytest.raises(InputError, match="the output is the input"):
        run(folder, out=tmp_path / name, data=folder / "a.npz", weights=old, force=True)
    assert old.read_bytes() == before
    assert (tmp_path / name).samefile(old)


def test_a_partial_result_is_not_gone_on_with_by_other_data(folder: Path, tmp_path: Path) -> None:
    run(folder, partial=tmp_path / "part", data=folder / "b.npz")
    before = (tmp_path / "part").read_bytes()
    with np.load(folder / "b.npz") as arrays:
        np.savez(tmp_path / "other.npz", input=arrays["input"] + 1)
    with pytest.raises(InputError, match="of other data"):
        run(folder, partial=tmp_path / "part", data=tmp_path / "other.npz")
    assert (tmp_path / "part").read_bytes() == before


def test_a_norm_that_is_the_whole_module_is_estimated(tmp_path: Path, folder: Path) -> None:
    data = np.random.default_rng(0).normal(3, 2, (6, 2, 2, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input=data)
    spec = "input:N=1..3..6x2x2x2x3"
    calibrate("calibrated_nets:bare", [spec], tmp_path / "new", app_dir=folder, data=tmp_path / "data.npz", pooled=True)
    found, reached = load_file(tmp_path / "new"), data.astype(np.float64).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_allclose(found["running_mean"], reached.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["running_var"], reached.var(1, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.1}, {"pooled": True}], ids=["average", "momentum", "pooled"])
def test_nan_in_the_data_is_called_nan_and_nothing_is_written(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with np.load(folder / "a.npz") as arrays:
        images = arrays["input"].copy()
    images[7, 1, 2, 3] = np.nan
    np.savez(tmp_path / "hole.npz", input=images)
    with pytest.raises(InputError, match="NaN or infinite reach a norm") as caught:
        run(folder, out=tmp_path / "new", data=tmp_path / "hole.npz", **options)
    assert "hole.npz: input holds 1 values that are NaN or infinite" in caught.value.where
    assert not (tmp_path / "new").exists()


def test_the_new_checkpoint_can_be_read_by_whom_the_umask_lets(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run(folder, out=tmp_path / "new", data=folder / "a.npz")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
