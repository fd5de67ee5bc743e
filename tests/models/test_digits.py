"""The committed checkpoints are what their JSON says: trained, small, and judged on scans no training has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import digits
from scripts.train_digits import EPOCHS, correct, shifted, train, write

FOLDER = Path(digits.__file__).parent
NORMS = {
    "resnet": (nn.BatchNorm2d, 9),
    "conv1d": (nn.BatchNorm1d, 3),
    "conv3d": (nn.BatchNorm3d, 3),
    "vit": (nn.LayerNorm, 7),
}
every_network = pytest.mark.parametrize("name", NORMS)


def facts(name: str) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads((FOLDER / f"digits_{name}.json").read_text())
    return stated


def trained(name: str) -> nn.Module:
    module: nn.Module = getattr(digits, name)()
    module.load_state_dict(load_file(FOLDER / f"digits_{name}.safetensors"))
    return module.eval()


def logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = module(images)
    return result


@every_network
def test_the_checkpoint_reaches_the_accuracy_its_json_states(name: str) -> None:
    images, labels = digits.held_out()
    right = int((logits(trained(name), images).argmax(1) == labels).sum())
    assert right == correct(trained(name)) == facts(name)["correct"]
    assert facts(name)["accuracy"] == right / len(labels) >= 0.95


@every_network
def test_the_accuracy_comes_from_the_weights(name: str) -> None:
    torch.manual_seed(0)
    assert correct(getattr(digits, name)().eval()) < digits.HELD_OUT / 2


@every_network
def test_the_checkpoint_is_small_and_described(name: str) -> None:
    assert (FOLDER / f"digits_{name}.safetensors").stat().st_size <= 400_000
    stated = facts(name)
    assert stated["factory"] == f"models.digits:{name}"
    assert stated["epochs"] == EPOCHS[name]
    assert stated["parameters"] == sum(parameter.numel() for parameter in trained(name).parameters())
    (train_images, _), (held_images, _) = digits.split()
    assert (stated["split"]["train"], stated["split"]["held_out"]) == (len(train_images), len(held_images))
    assert stated["split"]["seed"] == digits.SPLIT_SEED


@every_network
def test_float32_names_every_scan_as_float64_does(name: str) -> None:
    images, _ = digits.held_out()
    exact = logits(trained(name).double(), images.double())
    assert torch.equal(logits(trained(name), images).argmax(1), exact.argmax(1))
    best, second = exact.topk(2).values.unbind(1)
    assert (best - second).min() > 1e-2  # float32 errs by 1e-5: a deployed form that disagrees has a fault


@every_network
def test_norms_are_of_one_kind_and_trained(name: str) -> None:
    kind, count = NORMS[name]
    found = [module for module in trained(name).modules() if "Norm" in type(module).__name__]
    assert [type(norm) for norm in found] == [kind] * count
    for norm in found:
        assert (norm.get_parameter("weight") - 1).abs().max() > 1e-2
    for norm in (norm for norm in found if kind is not nn.LayerNorm):
        assert norm.get_buffer("running_mean").abs().max() > 1e-2
        assert norm.get_buffer("running_var").min() > 1e-3


@every_network
@pytest.mark.parametrize("count", [1, 5])
def test_logits_of_a_scan_do_not_depend_on_its_batch(name: str, count: int) -> None:
    module, (images, _) = trained(name).double(), digits.held_out()
    alone = logits(module, images[:count].double())
    assert alone.shape == (count, digits.CLASSES)
    torch.testing.assert_close(alone, logits(module, images[:7].double())[:count], rtol=1e-12, atol=1e-12)


def test_the_split_holds_out_a_fifth_of_every_digit() -> None:
    (train_images, train_labels), (held_images, held_labels) = digits.split()
    assert train_images.shape == (1797 - digits.HELD_OUT, 1, 8, 8)
    assert held_images.shape == (digits.HELD_OUT, 1, 8, 8)
    assert train_images.dtype == held_images.dtype == torch.float32
    assert train_labels.dtype == held_labels.dtype == torch.int64
    assert (held_images.min().item(), held_images.max().item()) == (0, 1)
    assert all(abs(count - digits.HELD_OUT / 10) <= 1 for count in held_labels.bincount(minlength=10).tolist())


def test_no_training_scan_is_held_out_and_the_split_repeats() -> None:
    (train_images, _), (held_images, held_labels) = digits.split()
    assert torch.cdist(held_images.flatten(1), train_images.flatten(1)).min() > 0.1
    again = digits.held_out()
    assert torch.equal(again[0], held_images)
    assert torch.equal(again[1], held_labels)


def test_training_repeats_itself() -> None:
    first, second = (train("conv1d", epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_shifting_moves_each_image_by_at_most_one_pixel() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 8, 8)
    images[:, 0, 4, 2] = 1
    places = shifted(images).squeeze(1).nonzero()[:, 1:]
    assert len(places) == len(images)
    expected = {(row, column) for row in (3, 4, 5) for column in (1, 2, 3)}
    assert {(int(row), int(column)) for row, column in places} == expected


def test_conv3d_sees_the_image_and_its_shifted_copies() -> None:
    seen: list[Tensor] = []
    network = digits.Conv3d().eval()
    network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.arange(64.0).reshape(1, 1, 8, 8) + 1
    logits(network, image)
    still, right, down = seen[0][0, 0]
    assert torch.equal(still, image[0, 0])
    assert torch.equal(right[:, 1:], image[0, 0, :, :-1])
    assert torch.equal(down[1:], image[0, 0, :-1])
    assert not right[:, 0].any()
    assert not down[0].any()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "weights.safetensors"
    target.write_bytes(b"old")

    def full(path: Path, data: bytes) -> int:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write(target, b"new")
    assert target.read_bytes() == b"old"
    write(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
