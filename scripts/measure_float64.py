"""How long the float64 run of a graph takes, beside eager PyTorch in float32 and in float64: ResNet-50 and BERT-base.

One image of 224×224, and 128 tokens; the graphs are folded. All take turns in one process, so that whatever slows the
machine down meets each; medians are compared. The networks come with ``make test-real``. Exit code 1 where the run
takes more than 20 times as long as eager float32.

    python scripts/measure_float64.py --rounds 9
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "real")]

from architectures import library  # type: ignore[import-not-found]  # noqa: E402  # of the tests, behind the path to it
from by_network import options  # noqa: E402

from normdeploy.export import to_graph  # noqa: E402
from normdeploy.fold import fold  # noqa: E402
from normdeploy.parity.feeds import random_feeds  # noqa: E402
from normdeploy.runtime.eager import EagerRunner  # noqa: E402
from normdeploy.runtime.float64 import Float64Runner  # noqa: E402
from normdeploy.specs import parse  # noqa: E402

LIMIT = 20.0


class Encoder(nn.Module):
    """BERT-base without its pooler: int64 [N, T] → float32 [N, T, 768]."""

    def __init__(self) -> None:
        super().__init__()
        transformers = library()
        self.bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state."""
        out: torch.Tensor = self.bert(input_ids).last_hidden_state
        return out


class Classifier(nn.Module):
    """ResNet-50: float32 [N, 3, 224, 224] → float32 [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        transformers = library()
        self.resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        out: torch.Tensor = self.resnet(x).logits
        return out


NETS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet-50": (Classifier, "x:1x3x224x224@f32"),
    "BERT-base": (Encoder, "input_ids:1x128@i64[0..30521]"),
}


def seconds(name: str, rounds: int) -> dict[str, float]:
    """Return the median of each, by name."""
    make, spec = NETS[name]
    torch.manual_seed(0)
    module, specs = make().eval().requires_grad_(False), parse([spec])
    feed = random_feeds(specs)[0].arrays
    runs: dict[str, Callable[[Mapping[str, np.ndarray]], object]] = {
        "eager float32": EagerRunner(module, specs),
        "eager float64": EagerRunner(module, specs, dtype=torch.float64),
        "graph in float64": Float64Runner(fold(to_graph(module, specs).model).model),
    }
    taken: dict[str, list[float]] = {each: [] for each in runs}
    for index in range(rounds + 1):
        for each, run in runs.items():
            begin = time.perf_counter()
            run(feed)
            if index:  # the first fills caches
                taken[each].append(time.perf_counter() - begin)
    return {each: statistics.median(times) for each, times in taken.items()}


def main() -> int:
    """Print the table."""
    parser = options(__doc__, NETS)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    print("| network | eager float32, s | eager float64, s | graph in float64, s | times eager float32 |")
    print("|---|--:|--:|--:|--:|")
    worst = 0.0
    for name in asked.net:
        found = seconds(name, asked.rounds)
        ratio = found["graph in float64"] / found["eager float32"]
        worst = max(worst, ratio)
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in found.values())} | {ratio:.1f} |", flush=True)
    return int(worst > LIMIT)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
