"""Networks of torchvision and timm, folded back into PyTorch: none is another network, and the doctor has no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_foreign import FOREIGN, ROOT, run

pytestmark = pytest.mark.real

MODELS = (
    "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:densenet121",
    "torchvision:shufflenet_v2_x0_5", "torchvision:mnasnet0_5", "torchvision:googlenet", "torchvision:regnet_y_400mf",
    "torchvision:vit_b_16", "torchvision:swin_t", "segmentation:lraspp_mobilenet_v3_large",
    "timm:mobilenetv3_small_050", "timm:repvgg_a0", "timm:mobileone_s0", "timm:convnext_atto",
    "timm:vit_tiny_patch16_224", "timm:ghostnet_050", "timm:mobilevit_xxs", "timm:resnet10t",
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_the_folded_network_is_the_network(model: str, tmp_path: Path) -> None:
    script = ROOT / "tests" / "real" / "vision_models.py"
    said = run(f"python -W ignore {script} {model}", tmp_path, script.parent, FOREIGN, OMP_NUM_THREADS="1")
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert told.get("error") is None, told
    assert told["size"] > 0
    assert told["off"] < 1e-5  # in float64, of weights that were rounded to float32 once more
    assert sum(told["norms"].values()) > 0
    assert not [each for each in told["doctor"] if each.endswith("error")]
