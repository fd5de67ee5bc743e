"""PyTorch's own samples of BatchNorm1d, 2d and 3d, exported with a layer between two of them, and folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from harness import TOLERANCE, channel_error, folded, op_types
from reference64 import truth
from support import says
from torch import nn

from normdeploy import specs
from normdeploy.export import to_graph

CLASSES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
Shape = tuple[int, ...]


def _samples(cls: type[nn.Module]) -> list[tuple[Any, Shape]]:
    """Constructor arguments and input shape of every sample of ``cls``."""
    from torch.testing._internal.common_modules import module_db  # takes seconds

    (info,) = (info for info in module_db if info.module_cls is cls)
    made = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=False)
    # An empty batch shows nothing.
    return [(s.constructor_input, (2, *s.forward_input.args[0].shape[1:])) for s in made]


def _norm(cls: type[nn.Module], arguments: Any, seed: int) -> nn.Module:
    """One norm, with parameters and statistics like a trained one's."""
    norm = cls(*arguments.args, **arguments.kwargs)
    generator = torch.Generator().manual_seed(seed)
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator) * 2 - 1
            value.copy_(drawn.abs() + 0.25 if name == "running_var" else drawn)
    return norm


class Chains(nn.Module):
    """For every sample: the norm, a layer, the norm again. One export is enough for all of them."""

    def __init__(self, cls: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.chains = nn.ModuleList()
        for arguments, shape in _samples(cls):
            channels, rank = arguments.args[0], len(shape)
            layer = LAYERS[rank](channels, channels, *([] if rank == 2 else [1]))
            self.chains.append(nn.Sequential(_norm(cls, arguments, 1), layer, _norm(cls, arguments, 2)))

    def forward(
        self,
        x0: torch.Tensor,
        x1: torch.Tensor,
        x2: torch.Tensor,
        x3: torch.Tensor,
        x4: torch.Tensor,
        x5: torch.Tensor,
        x6: torch.Tensor,
        x7: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        inputs = [x for x in (x0, x1, x2, x3, x4, x5, x6, x7) if x is not None]
        return [chain(x) for chain, x in zip(self.chains, inputs, strict=True)]


@pytest.mark.parametrize(("cls", "count"), list(zip(CLASSES, (8, 7, 7), strict=True)))
def test_every_sample_folds_into_its_layer(cls: type[nn.Module], count: int) -> None:
    shapes = [shape for _, shape in _samples(cls)]
    assert len(shapes) == count
    module = Chains(cls).eval()
    texts = [f"x{i}:{'x'.join(map(str, shape))}@f32" for i, shape in enumerate(shapes)]
    proto = ir.to_proto(to_graph(module, specs.parse(texts)).model)
    new, ledger = folded(proto)
    tracked = [chain[0].track_running_stats for chain in module.chains]
    outcomes = {entry.module: entry for entry in ledger.norms()}
    for index, is_tracked in enumerate(tracked):
        for end in (0, 2):
            entry = outcomes[f"chains.{index}.{end}"]
            assert entry.outcome == ("folded" if is_tracked else "left"), str(entry)
            assert is_tracked or says(entry, "NF101")
    assert op_types(new)["BatchNormalization"] == 2 * tracked.count(False)
    rng = np.random.default_rng(3)
    feeds = {f"x{i}": rng.standard_normal(shape) for i, shape in enumerate(shapes)}
    with torch.inference_mode():
        expected = module.double()(*(torch.from_numpy(x) for x in feeds.values()))
    for actual, wanted in zip(truth(new, feeds).values(), expected, strict=True):
        assert channel_error(wanted.numpy(), actual) <= TOLERANCE["float32"]


INSTANCE_NORMS = {
    "1d": (nn.Conv1d, nn.InstanceNorm1d, (2, 3, 11)),
    "2d": (nn.Conv2d, nn.InstanceNorm2d, (2, 3, 8, 11)),
    "3d": (nn.Conv3d, nn.InstanceNorm3d, (2, 3, 4, 8, 5)),
}


@pytest.mark.parametrize("dims", INSTANCE_NORMS)
def test_an_instance_norm_with_running_statistics_folds(dims: str) -> None:
    layer, norm, shape = INSTANCE_NORMS[dims]
    torch.manual_seed(0)
    module = nn.Sequential(layer(3, 5, 3), norm(5, affine=True, track_running_stats=True)).eval()
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    module[1].weight.data.uniform_(-2, 2)
    module[1].bias.data.uniform_(-1, 1)
    sizes = "x".join(map(str, shape[1:]))
    proto = ir.to_proto(to_graph(module, specs.parse([f"input:N=1..2..4x{sizes}@f32"])).model)
    new, ledger = folded(proto)
    assert [(entry.module, entry.outcome) for entry in ledger.norms()] == [("1", "folded")]
    assert not op_types(new)["BatchNormalization"]
    x = np.random.default_rng(5).standard_normal(shape)
    with torch.inference_mode():
        expected = module.double()(torch.from_numpy(x)).numpy()
    (actual,) = truth(new, {"input": x}).values()
    assert channel_error(expected, actual) <= TOLERANCE["float32"]
