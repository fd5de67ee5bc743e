"""Folds each model of torchvision or timm that is named, as ``library:name``, and prints what came of it as JSON.

Run in a process of its own, where tests/real/test_foreign.py's declarations let torchvision be imported. The networks
are untrained, their statistics drawn; what is compared is the module and the folded one, both in float64.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import time
from collections import Counter
from typing import Any

import torch
from architectures import randomize
from torch import Tensor, nn

import normdeploy

SIZES = {"swin_t": 64, "inception_v3": 96, "levit_128s": 224, "fastvit_t8": 128, "efficientformerv2_s0": 224}
"""Pixels; 64 for all others."""
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 64},
    "vit_tiny_patch16_224": {"img_size": 64},
    "mixer_s32_224": {"img_size": 64},
}


def made(library: str, name: str) -> nn.Module:
    """Return the network in eval mode, seeded."""
    torch.manual_seed(0)
    options = OPTIONS.get(name, {})
    module: nn.Module
    if library == "timm":
        import timm

        module = timm.create_model(name, num_classes=10, **options)
    elif library == "segmentation":
        from torchvision.models import segmentation

        module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    else:
        from torchvision import models

        module = models.get_model(name, weights=None, num_classes=10, **options)
    with torch.no_grad():
        for part in module.modules():
            randomize(part)
    return module.eval().requires_grad_(False)


def first(value: Any) -> Tensor:
    """Return the first tensor of what a network returns."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


def tried(library: str, name: str) -> dict[str, Any]:
    """Return how far the folded network is off, what became of its norms, and what the doctor says of it."""
    begin = time.monotonic()
    module, size = made(library, name), SIZES.get(name, 64)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    folded, ledger = normdeploy.fold_module(module, x)
    with torch.no_grad():
        wanted = first(copy.deepcopy(module).double()(x.double()))
        actual = first(copy.deepcopy(folded).double()(x.double()))
    parameter = next(iter(inspect.signature(module.forward).parameters))
    found = normdeploy.doctor(module, [f"{parameter}:2x3x{size}x{size}"])
    return {
        "name": f"{library}:{name}",
        "off": float((actual - wanted).norm() / wanted.norm()),
        "size": float(wanted.norm()),
        "norms": Counter(f"{entry.kind} {entry.outcome}" for entry in ledger.norms()),
        "codes": Counter(code for entry in ledger.norms() for code in entry.codes if entry.outcome == "left"),
        "doctor": Counter(f"{each.code} {each.severity}" for each in found.findings),
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> None:
    """Print a line a network."""
    for each in sys.argv[1:]:
        try:
            told = tried(*each.split(":"))
        except normdeploy.errors.NormdeployError as error:
            told = {"name": each, "error": str(error)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
