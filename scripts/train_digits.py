"""Trains the four networks of ``models/digits.py`` and writes their weights and held-out accuracy.

    python scripts/train_digits.py [--out models]

A fixed number of epochs and the last weights: the held-out scans choose nothing. Seeds and thread count are
fixed, so a second run on the same machine writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import digits  # noqa: E402 (the checkout is not installed: it must be on the path first)

SEED = 0
EPOCHS = {"resnet": 20, "conv1d": 30, "conv3d": 20, "vit": 100}
BATCH = 48  # 1,437 training scans leave a last batch of 45: BatchNorm never sees a tiny one
PEAK_RATE = 3e-3


def train(name: str, epochs: int) -> nn.Module:
    """The network ``name`` after ``epochs`` passes over the training scans, in eval mode."""
    torch.manual_seed(SEED)
    module: nn.Module = getattr(digits, name)()
    images, labels = digits.split()[0]
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(shifted(images[batch])), labels[batch], label_smoothing=0.05)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return module.eval()


def shifted(images: Tensor) -> Tensor:
    """The images ``[N, 1, 8, 8]``, each shifted at random by at most one pixel in each direction."""
    side = digits.SIDE
    windows = functional.pad(images, (1, 1, 1, 1)).unfold(2, side, 1).unfold(3, side, 1)  # [N, 1, 3, 3, side, side]
    down, right = torch.randint(0, 3, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def correct(module: nn.Module) -> int:
    """How many held-out scans the network names rightly."""
    images, labels = digits.held_out()
    with torch.inference_mode():
        return int((module(images).argmax(1) == labels).sum())


def record(name: str, module: nn.Module) -> dict[str, object]:
    """What is said about a checkpoint in the JSON beside it."""
    right = correct(module)
    train_size = len(digits.split()[0][0])
    return {
        "factory": f"models.digits:{name}",
        "accuracy": right / digits.HELD_OUT,
        "correct": right,
        "split": {
            "data": "sklearn.datasets.load_digits",
            "train": train_size,
            "held_out": digits.HELD_OUT,
            "stratified": True,
            "seed": digits.SPLIT_SEED,
        },
        "seed": SEED,
        "epochs": EPOCHS[name],
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "torch": torch.__version__.split("+")[0],
    }


def write(path: Path, data: bytes) -> None:
    """Replaces the file in one step: a stopped run leaves the old weights whole."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the digit networks of models/digits.py.")
    parser.add_argument("--out", type=Path, default=ROOT / "models", help="folder to write to (default: models/)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums must not depend on the number of cores
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in EPOCHS:
        start = time.perf_counter()
        module = train(name, EPOCHS[name])
        facts = record(name, module)
        write(arguments.out / f"digits_{name}.safetensors", save(module.state_dict()))
        write(arguments.out / f"digits_{name}.json", (json.dumps(facts, indent=2) + "\n").encode())
        print(f"{name}: accuracy {facts['accuracy']:.4f}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
