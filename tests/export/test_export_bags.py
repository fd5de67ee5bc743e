"""EmbeddingBag: as in PyTorch for every bag, in a session of ONNX Runtime as it comes, and without a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exporting import export, nodes
from torch import nn

from normdeploy.precision import to_precision
from normdeploy.runtime.float64 import Float64Runner

BAGS = {
    "usual": ([1, 3, 3, 5, 19, 0, 7], [0, 2, 5]),
    "empty ones": ([1, 3, 3, 5, 19, 0, 7], [0, 0, 2, 2, 7]),
    "of padding": ([3, 3, 3, 19, 19, 1], [0, 3, 5]),
    "all in one": (list(range(20)), [0]),
    "one each": ([4, 3, 2, 1], [0, 1, 2, 3]),
}
LAYERS: list[tuple[dict[str, Any], bool]] = [
    ({"mode": "sum"}, False), ({"mode": "mean"}, False), ({"mode": "max"}, False), ({"mode": "sum"}, True),
    ({"mode": "sum", "include_last_offset": True}, True), ({"mode": "mean", "padding_idx": 3}, False),
    ({"mode": "max", "padding_idx": -1}, False),
]  # fmt: skip
"""Options, and whether each element has a weight of its own, which PyTorch allows in a sum."""


class Bag(nn.Module):
    """(L,) ids, (B,) offsets, and weights of their own for a sum → (B, 4)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(20, 4, **options)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor, each: torch.Tensor | None = None) -> torch.Tensor:
        return self.bag(ids, offsets, each)


def plain(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session with every default: all optimizers are on."""
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("options", "weighted"), LAYERS)
def test_bags_are_pytorchs_in_a_plain_session(options: dict[str, Any], weighted: bool) -> None:
    module = Bag(**options).eval()
    specs = ["ids:L=1..8..20@i64[0..19]", "offsets:B=1..3..6@i64[0..0]", *(["each:L"] if weighted else [])]
    exported = export(module, *specs)
    assert "Loop" not in {node.op_type for node in nodes(exported)}
    session = plain(exported.model)
    for ids, offsets in BAGS.values():
        feed = {"ids": np.array(ids), "offsets": np.array(offsets)}
        if options.get("include_last_offset"):
            feed["offsets"] = np.array([*offsets, len(ids)])
        if weighted:
            feed["each"] = np.linspace(-1, 2, len(ids), dtype=np.float32)
        exact = {name: torch.from_numpy(array) for name, array in feed.items()}
        wanted = module(**exact).detach().numpy()
        (actual,) = session.run(None, feed)
        assert actual.shape == wanted.shape == (len(offsets), 4)
        np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)
        (meant,) = Float64Runner(exported.model)(feed).values()
        module.double()
        if weighted:
            exact["each"] = exact["each"].double()
        np.testing.assert_allclose(meant, module(**exact).detach().numpy(), rtol=1e-12, atol=1e-12)
        module.float()


def test_rows_of_ids_are_bags_too_and_16_bits_run_in_a_plain_session() -> None:
    """Without offsets each row is a bag. Of a mean over 5 in 16 bits three digits are left."""
    module = nn.Sequential(nn.EmbeddingBag(20, 4, mode="mean"), nn.Linear(4, 3)).eval()
    exported = export(module, "input:N=1..3..7x5@i64[0..19]")
    ids = np.random.default_rng(0).integers(0, 20, (6, 5))
    wanted = module(torch.from_numpy(ids)).detach().numpy()
    (actual,) = plain(exported.model).run(None, {"input": ids})
    np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)
    (actual,) = plain(to_precision(exported.model, "fp16")).run(None, {"input": ids})
    np.testing.assert_allclose(actual, wanted, rtol=5e-3, atol=5e-3)
