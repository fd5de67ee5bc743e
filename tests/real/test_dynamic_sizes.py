"""Networks of torchvision and timm with dynamic batch, height and width: each size gives what PyTorch gives.

Each is exported in a process of its own, for PyPI's torchvision declares operators, which a process can only do once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_foreign import DECLARED, FOREIGN, PACKAGES, ROOT

pytestmark = pytest.mark.real

FREE = "x:N=1..2..3x3xH=65..97..150xW=71..128..170"
NETWORKS = {
    "torchvision:resnet18": FREE,
    "torchvision:squeezenet1_1": FREE,  # its pools have ceil_mode
    "torchvision:mobilenet_v3_small": FREE,
}
HOLD = """
import sys
import numpy as np
import torch
from architectures import randomize
from exporting import eager, export, feeds_of, rms, run

package, _, name = sys.argv[1].partition(":")
torch.manual_seed(0)
if package == "timm":
    import timm
    module = timm.create_model(name, **({"dynamic_img_size": True} if name.startswith("vit") else {}))
else:
    import torchvision
    module = getattr(torchvision.models, name)()
module = module.eval().requires_grad_(False)
with torch.no_grad():
    for part in module.modules():
        randomize(part)
exported = export(module, sys.argv[2])
for feeds in feeds_of(sys.argv[2]):
    exact, plain, actual = eager(module, feeds, torch.float64), eager(module, feeds), run(exported, feeds)
    for key, reference in exact.items():
        assert actual[key].shape == reference.shape, key
        bound = 4 * rms(plain[key] - reference, reference) + 8 * np.finfo(np.float32).eps
        assert rms(actual[key] - reference, reference) <= bound, (key, reference.shape)
"""


@pytest.mark.parametrize("network", NETWORKS)
def test_every_size_gives_what_pytorch_gives(network: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DECLARED)
    paths = [tmp_path, ROOT / "tests" / "real", ROOT / "tests" / "export", ROOT, PACKAGES, FOREIGN]
    command = [sys.executable, "-c", HOLD, network, NETWORKS[network]]
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
